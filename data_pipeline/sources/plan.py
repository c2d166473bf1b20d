"""What a pack's shards are made of, settled before the first is written, so that inputs may grow.

    <output>/inputs/plan-0000.json   shard → piece of the input, in order; one more file a growth
    <output>/inputs/<shard>.json     the files that a finished shard was read from, and those that
                                     its rejected records named and that were not there

A piece is what its source makes of it: names of pictures, or a span of a records file. What is in
no piece is new, and becomes shards behind those there. Plan files are created exclusively, so
processes that share a job agree on them.

    plan = Plan.read(output)
    plan.next_name()                              # "00012"
    plan.extend(output, parts)                    # False: another process was first, read again
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.sources.part import Part, SourceFile, shard_name
from mgpt.errors import DataError
from mgpt.files import atomic
from mgpt.files.storage import Location, create, digest
from mgpt.files.walk import FileStamp, is_same_file, stamp_of

FOLDER = "inputs"
_REMEDY = "restore it, or give another output folder"
Entry = list[Any]  # num_bytes, version, sha256; nulls for a file that was not there


@dataclass
class Plan:
    """Pieces by shard, and the files that all records of some shards come from."""

    pieces: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Entry] = field(default_factory=dict)
    num_generations: int = 0

    @classmethod
    def read(cls, output: Location) -> Plan:
        """The plan of an output; empty if it has none.

        Raises:
            DataError: a plan file that cannot be read.
        """
        plan = cls()
        paths: list[Location] = sorted((output / FOLDER).glob("plan-*.json"))
        for path in paths:
            try:
                values = json.loads(path.read_bytes())
                plan.pieces |= values["parts"]
                plan.files |= values["files"]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise DataError(f"{path}: cannot be read ({error}); restore it") from error
        plan.num_generations = len(paths)
        return plan

    def next_name(self, offset: int = 0) -> str:
        """The name of a shard behind all there."""
        return shard_name(max(map(int, self.pieces), default=-1) + 1 + offset)

    def extend(self, output: Location, parts: Iterable[Part]) -> bool:
        """Adds the pieces of these parts; False if another process has extended it meanwhile."""
        parts = list(parts)
        files = {str(path): path for part in parts for path in part.files}
        values = {
            "parts": {part.name: part.piece for part in parts},
            "files": {name: _entry(path) for name, path in sorted(files.items())},
        }
        path = output / FOLDER / f"plan-{self.num_generations:04d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(path, Path):
            atomic.remove_leftovers(path.parent, "plan-")
        return create(path, json.dumps(values, separators=(",", ":")).encode() + b"\n")

    def check_files(self, parts: Iterable[Part]) -> None:
        """Raises DataError if a records file is not what it was when its shards were planned."""
        for path in sorted({path for part in parts for path in part.files}):
            entry = self.files.get(str(path))
            if entry is not None:
                check_file(path, entry, stamp_of(path), "when it was planned", _REMEDY)


def check_file(
    path: Location, then: Entry, now: FileStamp | None, when: str, remedy: str
) -> FileStamp | None:
    """The stamp of a file that is what it was; None if it is gone, and nothing needs it any more.

    Raises:
        DataError: it holds something else.
    """
    num_bytes, version, sha256 = then
    if num_bytes is None:
        if now is not None:
            raise DataError(f"{path}: not there {when}, {now.num_bytes} bytes now; {remedy}")
        return None
    if now is None or is_same_file(path, FileStamp(num_bytes, version), sha256, now):
        return now
    then_words, now_words = f"{num_bytes} bytes", f"{now.num_bytes} bytes"
    if num_bytes == now.num_bytes:
        then_words, now_words = f"sha256 {sha256 or 'unknown'}", f"{digest(path)[:16]}"
    raise DataError(f"{path}: {then_words} {when}, {now_words} now; {remedy}")


def _entry(path: Location) -> Entry:
    stamp = stamp_of(path)
    if stamp is None:
        return [None, None, None]
    return [stamp.num_bytes, stamp.version, digest(path)[:16]]


def encode_read_files(files: Iterable[SourceFile]) -> bytes:
    """The record of a finished shard's files."""
    present: dict[str, Entry] = {}
    absent: list[tuple[str, str]] = []
    for one in files:
        if one.stamp is not None:
            present[one.name] = [one.stamp.num_bytes, one.stamp.version, one.sha256]
        elif one.key:
            absent.append((one.name, one.key))
    values = {"files": present, "absent": absent}
    return json.dumps(values, separators=(",", ":"), sort_keys=True).encode() + b"\n"


@dataclass(frozen=True)
class ReadFiles:
    """What a finished shard was read from: entries by name; (name, key) of what was not there."""

    files: Mapping[str, Entry]
    absent: Sequence[tuple[str, str]]

    @classmethod
    def decode(cls, data: bytes | None) -> ReadFiles:
        """Nothing for a shard of an older version."""
        try:
            values = json.loads(data or b"{}")
            return cls(values.get("files", {}), values.get("absent", []))
        except (ValueError, AttributeError):
            return cls({}, [])
