"""The list of hashes beside a model's files, in the form that `sha256sum -c` reads.

A flipped bit in a safetensors file changes a weight and nothing else: the file opens, and the model
computes. Ours therefore carry `SHA256SUMS`, written before `config.json`; Meta's downloads carry
`checklist.chk` with MD5. A folder with neither can only be checked for what its headers and values
show. Knows files, not tensors.

    >>> write_sums(folder, {"model.safetensors": "9f86d081…"})
    >>> check_sums([folder / "model.safetensors"])
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mgpt.errors import CheckpointError
from mgpt.files.atomic import atomic_write, file_hash

__all__ = ["SUMS", "check_sums", "sums_list", "write_sums"]

SUMS = "SHA256SUMS"
_ALGORITHMS = {SUMS: "sha256", "checklist.chk": "md5"}
_LINE = re.compile(r"([0-9a-f]+) [ *]?(.+)")
_WEIGHTS = ".safetensors"


def sums_list(folder: Path) -> str | None:
    """Name of the list that stands in a folder; None where there is none."""
    return next((name for name in _ALGORITHMS if (folder / name).is_file()), None)


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes `SHA256SUMS`: file name → hex sha256."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    atomic_write(folder / SUMS, "".join(lines).encode())


def check_sums(files: Sequence[Path]) -> None:
    """Holds files of one folder against its list; a folder without a list passes.

    Every file is read once, several at a time. Files that the list does not name pass too, all but
    safetensors beside our own list.

    Raises CheckpointError that names every file that is not what the list says.
    """
    folder = files[0].parent
    name = sums_list(folder)
    if name is None:
        return
    wanted = _read(folder / name)
    listed = [path for path in files if path.name in wanted]
    unlisted = [p.name for p in files if p.name not in wanted and p.suffix == _WEIGHTS]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        found = list(threads.map(lambda path: file_hash(path, _ALGORITHMS[name]), listed))
    problems = [
        path.name for path, digest in zip(listed, found, strict=True) if digest != wanted[path.name]
    ]
    if name == SUMS:
        problems += [f"{file} (not in the list)" for file in unlisted]
    if problems:
        raise CheckpointError(
            f"{folder}: not as {name} has it: {', '.join(problems)}; a file was altered or badly "
            f"copied: copy the folder again, or remove {name} where you changed it on purpose"
        )


def _read(path: Path) -> dict[str, str]:
    sums = {}
    for line in path.read_text(errors="replace").splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise CheckpointError(
                f"{path}: {line[:80]!r} is no line of hashes; copy the folder again"
            )
        sums[match[2].strip()] = match[1]
    return sums
