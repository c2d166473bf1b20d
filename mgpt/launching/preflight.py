"""What can be known to go wrong before a job waits hours for its machines.

Each look returns the mistakes it found, in words; the stage that submits raises them together. The
ranks' port is not among them: a job's script looks for a free one where they meet, and torchrun
takes one of its own.

    >>> problems = [*disk(Path("out"), need_bytes=3e12), *inputs({"tokens": "name:tokens"})]
    >>> problems
    ['out: 0.9 TB are free, its checkpoints need 3.0 TB; …', 'tokens: there is no such file …']
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:\[[^\]]*\])?\s*([<>=!~,.0-9 ]*)")


def disk(folder: Path, need_bytes: float) -> list[str]:
    """Whether the disk of a folder, which may not exist yet, has room."""
    there = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    if free >= need_bytes:
        return []
    return [
        f"{folder}: {free / 1e9:,.1f} GB are free, its checkpoints need {need_bytes / 1e9:,.1f} "
        "GB; make room, set keep lower, or give another output"
    ]


def inputs(fingerprints: Mapping[str, str]) -> list[str]:
    """Whether every input is there, by what a stage's `inputs` says of them."""
    return [
        f"{path}: there is no such file or folder, seen from {Path.cwd()}"
        for path, found in fingerprints.items()
        if found == f"name:{path}"
    ]


def versions() -> list[str]:
    """Whether the packages that are installed here are ones that this one works with."""
    try:
        wanted = requires("mgpt") or []
    except PackageNotFoundError:
        return []
    problems = []
    for line in wanted:
        match = _REQUIREMENT.fullmatch(line.partition(";")[0].strip())
        if match is None or "extra" in line.partition(";")[2]:
            continue
        name, limits = match.groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            problems.append(f"{name} is not installed in {sys.prefix}; pip install {name}{limits}")
            continue
        if not all(_holds(found, limit) for limit in limits.replace(" ", "").split(",") if limit):
            problems.append(
                f"{name} {found} is installed in {sys.prefix}, mgpt works with {limits}"
            )
    return problems


def _holds(found: str, limit: str) -> bool:
    match = re.fullmatch(r"(>=|<=|==|!=|>|<)([0-9.]+)", limit)
    if match is None:
        return True
    have, bound = _numbers(found), _numbers(match[2])
    width = max(len(have), len(bound))
    have, bound = have + (0,) * (width - len(have)), bound + (0,) * (width - len(bound))
    return {
        ">=": have >= bound,
        "<=": have <= bound,
        "==": have == bound,
        "!=": have != bound,
        ">": have > bound,
        "<": have < bound,
    }[match[1]]


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version: 2.13.0 of `2.13.0+cpu`."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
