"""Reads what Weights & Biases keeps of an offline run: its transaction log of protobuf records.

The file is LevelDB's log: after a header of 7 bytes, blocks of 32 KiB that hold pieces of records,
each piece with a checksum, a length and its place in the record.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER, _PIECE = 32768, 7, struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(file: Path) -> Iterator[Record]:
    """Every whole record of a .wandb file; the rest of one that was cut short is left out."""
    data, at, parts = file.read_bytes(), _HEADER, b""
    while at + _PIECE.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _PIECE.size:
            at += left
            continue
        _, size, place = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        piece = data[at : at + size]
        if place not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or len(piece) < size:
            return
        at += size
        parts = piece if place in (_WHOLE, _FIRST) else parts + piece
        if place in (_WHOLE, _LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def run_files(folder: Path) -> list[Path]:
    """The .wandb files of a stage's folder in the order of their starts."""
    files = (folder / "wandb").glob("*run-*/*.wandb")  # offline-run-<time>-<id>, run-<time>-<id>
    return sorted(files, key=lambda file: file.parent.name.partition("run-")[2])


def history(folder: Path) -> dict[int, dict[str, Any]]:
    """Step → figures, over all files of a stage's folder; later files win."""
    found: dict[int, dict[str, Any]] = {}
    for file in run_files(folder):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                row = _items(record.history.item)
                if "step" in row:
                    found.setdefault(row["step"], {}).update(row)
    return found


def config(file: Path) -> dict[str, Any]:
    """The configuration that a file's run started with."""
    for record in records(file):
        if record.WhichOneof("record_type") == "run":
            return _items(record.run.config.update)
    raise AssertionError(f"{file} has no run")


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def run_record(file: Path) -> Any:
    """What a file says of its run: project, entity, run_group, display_name, job_type, tags."""
    return next(r.run for r in records(file) if r.WhichOneof("record_type") == "run")
