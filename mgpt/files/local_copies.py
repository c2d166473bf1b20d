"""Local copies of remote files, by their hash, in a cache that may be deleted at any time.

index = local_copy(locate("s3://corpus/tokens/512/00000.idx"), sha256)  # fetched once, mapped
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mgpt.errors import MachineError
from mgpt.files import atomic
from mgpt.files.remote import RemotePath, info
from mgpt.files.storage import BLOCK_BYTES, Location, content_stamp, open_stream


def cache_folder() -> Path:
    """$MGPT_CACHE, else `mgpt` in the user's cache folder; anything in it may be deleted."""
    own = os.environ.get("MGPT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own).expanduser() if own else Path(base) / "mgpt"


def record_folder(output: Location) -> Path:
    """Where the record of a stage with this output stands: there, or for a remote output in the
    cache, since it is appended to."""
    if not isinstance(output, RemotePath):
        return output
    name = hashlib.sha256(output.url.encode()).hexdigest()[:8]
    folder = cache_folder() / "records" / f"{output.name}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def local_copy(path: Location, sha256: str | None = None) -> Path:
    """The file itself, or its copy in the cache, to be mapped.

    Args:
        sha256: what it must hold, where that is known; a copy of it is fetched once. Otherwise
            a copy stands for the URL and the version that the store names.

    Raises:
        FileNotFoundError: there is no such file.
        MachineError: the remote file holds something else, or the cache cannot be written.
    """
    if not isinstance(path, RemotePath):
        path.stat()
        return path
    if sha256 is None:
        listed = RemotePath.listed(path.url, info(path))
        name = hashlib.sha256(f"{path}\0{content_stamp(listed, 0)}".encode()).hexdigest()
    else:
        name = sha256
    copy = cache_folder() / "files" / name[:2] / f"{name}{path.suffix}"
    if copy.is_file():
        return copy
    if sha256 is None:

        def fetch(stream: BinaryIO) -> None:
            with open_stream(listed) as source:
                shutil.copyfileobj(source, stream, BLOCK_BYTES)

        atomic.atomic_write(copy, fetch)
        return copy
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise MachineError(
            f"{path}: sha256 is {found}, its manifest says {sha256}; run mgpt verify on its "
            "folder, or mgpt reindex"
        )
    atomic.atomic_write(copy, data)
    return copy


@contextmanager
def local_files(folder: Location, names: Sequence[str]) -> Iterator[Path]:
    """The folder itself, or a temporary one with copies of these files of a remote one, as far as
    they are there."""
    if not isinstance(folder, RemotePath):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mgpt-") as copies:
        for name in names:
            with suppress(FileNotFoundError):
                data = (folder / name).read_bytes()
                (Path(copies) / name).write_bytes(data)
        yield Path(copies)
