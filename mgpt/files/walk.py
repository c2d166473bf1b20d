"""Files below a folder, told apart by size and modification time, and what was passed over.

Hidden folders and files (`.ipynb_checkpoints`, `@eaDir`, `.DS_Store`) are not entered or taken but
counted; links are followed, and no folder is entered twice. Nothing is read.

    found = walk(locate("pictures"))
    found.files["cats/tom.jpg"]                   # FileStamp(num_bytes=…, version="1700000000…")
    found.passed_over                             # {"hidden folder .Trash-1000": 1}
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mgpt.files.remote import RemotePath, info
from mgpt.files.storage import Location, digest, relative

# Folders and files that file systems, desktops and network disks keep for themselves.
_SYSTEM_NAMES = frozenset(
    {"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini"}
)


@dataclass(frozen=True)
class FileStamp:
    """What tells a file from another without reading it."""

    num_bytes: int
    version: str
    """Modification time in ns, or the ETag of an object; empty if its store has neither."""

    def is_like(self, other: FileStamp) -> bool:
        """Whether nothing tells the two apart."""
        known = self.version and other.version
        return self.num_bytes == other.num_bytes and (not known or self.version == other.version)


@dataclass
class Walk:
    """Files by their path relative to the folder, sorted; and counts of what was not taken."""

    files: dict[str, FileStamp] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """Links to nowhere, by their path; they are among `passed_over` too."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def stamp_of(path: Location) -> FileStamp | None:
    """The stamp of one file; None if there is none."""
    if isinstance(path, RemotePath):
        try:
            listed = (
                path if path.num_bytes is not None else RemotePath.listed(str(path), info(path))
            )
        except FileNotFoundError:
            return None
        return None if listed.num_bytes is None else FileStamp(listed.num_bytes, listed.version)
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return _stamp(found) if stat.S_ISREG(found.st_mode) else None


def is_same_file(path: Location, then: FileStamp, sha256: str, now: FileStamp) -> bool:
    """Whether a file is what it was; one with another modification time alone is read.

    Args:
        sha256: of the file then, or the beginning of it; empty if it was never read.
    """
    if then.is_like(now):
        return True
    return then.num_bytes == now.num_bytes and bool(sha256) and digest(path).startswith(sha256)


def walk(folder: Location) -> Walk:
    """Every file below a folder."""
    found = Walk()
    if isinstance(folder, RemotePath):
        hidden_folders = set()
        for path in folder.rglob("*"):
            *above, name = relative(path, folder).parts
            hidden = next((one for one in above if is_hidden(one)), None)
            if hidden is not None:
                hidden_folders.add("/".join([*above[: above.index(hidden)], hidden]))
            elif is_hidden(name):
                found.passed_over[f"hidden file {name}"] += 1
            elif (stamp := stamp_of(path)) is not None:
                found.files["/".join([*above, name])] = stamp
        for one in sorted(hidden_folders):
            found.passed_over[f"hidden folder {one.rpartition('/')[2]}"] += 1
    else:
        _walk_local(folder, found)
    found.files = dict(sorted(found.files.items()))
    return found


def _walk_local(folder: Path, found: Walk) -> None:
    entered: set[tuple[int, int]] = set()
    links: list[tuple[str, str]] = []  # entered last, so that a folder keeps its own path
    waiting = [(str(folder), "")]
    while waiting or links:
        at, prefix = waiting.pop() if waiting else links.pop(0)
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in entered:
            found.passed_over["link to a folder that is read already"] += 1
            continue
        entered.add((here.st_dev, here.st_ino))
        with os.scandir(at) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            name = f"{prefix}{entry.name}"
            try:
                seen = entry.stat()
            except OSError:
                found.passed_over["link to nowhere"] += 1
                found.broken.append(name)
                continue
            is_folder = stat.S_ISDIR(seen.st_mode)
            if is_hidden(entry.name):
                found.passed_over[f"hidden {'folder' if is_folder else 'file'} {entry.name}"] += 1
            elif is_folder:
                (links if entry.is_symlink() else waiting).append((entry.path, f"{name}/"))
            elif stat.S_ISREG(seen.st_mode):
                found.files[name] = _stamp(seen)
            else:
                found.passed_over["no regular file"] += 1


def _stamp(found: os.stat_result) -> FileStamp:
    return FileStamp(found.st_size, str(found.st_mtime_ns))
