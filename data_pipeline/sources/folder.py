"""A folder of pictures with `captions.jsonl`: one JSON object a line, in the order of the samples.

    {"file": "cats/tom.jpg", "caption": "a grey cat"}
    {"file": "room.png", "depth": "room_depth.png", "caption": "a room", "tasks": ["depth"]}

`file` is the picture, relative to the folder; a known field name (`depth`, `segmentation`,
`edit_1`, …) names a further picture; everything else goes into the sample's JSON as it is. The key
is the file's name without extension, or the line's number where that cannot be one or is taken.

    mgpt pack source=folder input=my_pictures output=raw/mine
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.pack_config import PackConfig
from data_pipeline.raw_shards import (
    PICTURE_EXTENSIONS,
    PICTURE_FIELD,
    Picture,
    RawSample,
    Rejected,
    name_problem,
)
from data_pipeline.sources.part import Part, shard_name
from mgpt.errors import ConfigError, DataError

CAPTIONS_FILE = "captions.jsonl"
FILE_FIELDS = ("file", "file_name")


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive lines of the captions file.

    Raises:
        ConfigError: no input.
        DataError: no captions file, or an empty one.
    """
    if cfg.input is None:
        raise ConfigError(f"source=folder needs input=<folder with {CAPTIONS_FILE}>")
    folder = Path(cfg.input)
    found: list[Part] = []
    for first, offset, count in _line_ranges(folder / CAPTIONS_FILE, cfg.samples_per_shard):
        read = functools.partial(_read, folder, first, offset, count)
        found.append(Part(shard_name(len(found)), count, read))
    if not found:
        raise DataError(f"{folder / CAPTIONS_FILE}: empty; give one JSON object a line")
    return found


def _line_ranges(path: Path, step: int) -> Iterator[tuple[int, int, int]]:
    """(number of the first line, its byte offset, number of lines) of each part."""
    try:
        stream = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); it holds one JSON object a line, such as "
            '{"file": "tom.jpg", "caption": "a grey cat"}'
        ) from error
    with stream:
        first, offset, position, count = 0, 0, 0, 0
        for line in stream:
            position += len(line)
            count += 1
            if count == step:
                yield first, offset, count
                first, offset, count = first + count, position, 0
        if count:
            yield first, offset, count


def _read(folder: Path, first: int, offset: int, count: int) -> Iterator[RawSample | Rejected]:
    keys: set[str] = set()
    with open(folder / CAPTIONS_FILE, "rb") as stream:
        stream.seek(offset)
        for number in range(first, first + count):
            line = stream.readline()
            if not line.strip():
                continue
            item = _read_line(folder, line, f"{number:09d}", keys)
            keys.add(item.key)
            yield item


def _read_line(folder: Path, line: bytes, number: str, keys: set[str]) -> RawSample | Rejected:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Rejected(number, "text_not_utf8")
    except (ValueError, RecursionError) as error:
        return Rejected(number, "bad_json", str(error))
    if not isinstance(record, dict):
        return Rejected(number, "bad_json", "not an object")
    files, meta = _split_record(record)
    file = files.get("image", "")
    key = file.removesuffix(Path(file).suffix)
    if not key or key in keys or name_problem(key, key):
        key = number
    if not isinstance(meta.get("tasks", []), list):
        return Rejected(key, "bad_json", "tasks is not a list")
    pictures = {}
    for name, relative in files.items():
        picture = _read_picture(folder, relative)
        if isinstance(picture, str):
            return Rejected(key, picture, relative)
        pictures[name] = picture
    if not pictures and not meta:
        return Rejected(key, "missing_picture")
    return RawSample(key, pictures, meta | ({"file": file} if file else {}))


def _split_record(record: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """The record's picture files by field, and what is left of it."""
    files, meta = {}, {}
    for name, value in record.items():
        if name in FILE_FIELDS and isinstance(value, str):
            files["image"] = value
        elif PICTURE_FIELD.fullmatch(name) and isinstance(value, str):
            files[name] = value
        else:
            meta[name] = value
    return files, meta


def _read_picture(folder: Path, relative: str) -> Picture | str:
    """The picture as it stands in the folder, or a reason."""
    path = folder / relative
    extension = path.suffix[1:].lower()
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        return "unsafe_name"
    if extension not in PICTURE_EXTENSIONS:
        return "unknown_extension"
    try:
        return Picture(path.read_bytes(), extension)
    except OSError:
        return "missing_picture"
