"""A folder of pictures, with or without `captions.jsonl` (an object a line) or `.parquet` (a row).

    {"file": "cats/tom.jpg", "caption": "a grey cat"}
    {"file": "room.png", "depth": "room_depth.png", "caption": "a room", "tasks": ["depth"]}

`file` is the picture, relative to the folder; a known field name (`depth`, `segmentation`,
`edit_1`, …, or `own_…` for a task of your own) names a further picture; everything else goes into
the sample's JSON as it is. Without such a file every picture in the folder and its subfolders is a
sample, in the order of their paths, and `cats/tom.txt` is the caption of `cats/tom.jpg`. The key is
the picture's path without extension, or the record's number where that cannot be one or is taken.

    mgpt pack source=folder input=my_pictures output=raw/mine
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.raw.shards import (
    PICTURE_EXTENSIONS,
    PICTURE_FIELD,
    RawSample,
    Rejected,
    name_problem,
)
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, shard_name
from data_pipeline.sources.record_files import BadRecord, Numbered, find_spans, read_span
from data_pipeline.sources.records import Record, pictures_folder, record_key
from mgpt.errors import ConfigError, DataError
from mgpt.files.storage import Location, locate, relative

CAPTIONS_FILES = ("captions.jsonl", "captions.parquet")
FILE_FIELDS = ("file", "file_name")


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive records of the captions file, or consecutive pictures.

    Raises:
        ConfigError: no input.
        DataError: no folder, or neither captions nor pictures in it; two captions files.
    """
    if cfg.input is None:
        raise ConfigError("source=folder needs input=<folder of pictures>")
    folder, step = locate(cfg.input), cfg.samples_per_shard
    captions = [folder / name for name in CAPTIONS_FILES if (folder / name).is_file()]
    if len(captions) > 1:
        raise DataError(f"{folder}: both {' and '.join(CAPTIONS_FILES)}; remove or rename one")
    reads: list[tuple[int, functools.partial[Iterator[Numbered]]]] = []
    if captions:
        for span in find_spans(captions[0], step):
            reads.append((span.count, functools.partial(read_span, span)))
    else:
        names = _picture_names(folder)
        for start in range(0, len(names), step):
            some = names[start : start + step]
            reads.append((len(some), functools.partial(_bare_records, folder, some, start)))
    if not reads:
        raise DataError(
            f"{folder}: neither pictures nor {' or '.join(CAPTIONS_FILES)} there, with an object a "
            'picture, such as {"file": "tom.jpg", "caption": "a grey cat"}'
        )
    pictures = pictures_folder(cfg)
    return [
        Part(shard_name(place), count, functools.partial(_read_part, read, pictures))
        for place, (count, read) in enumerate(reads)
    ]


def _picture_names(folder: Location) -> list[str]:
    """Every picture below the folder, as a relative path; sorted."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of pictures")
    return sorted(
        relative(path, folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix[1:].lower() in PICTURE_EXTENSIONS
        and not path.name.startswith(".")
        and path.is_file()
    )


def _bare_records(folder: Location, names: list[str], first: int) -> Iterator[Numbered]:
    """Records of pictures that have none: the file, and the caption that stands beside it."""
    for number, name in enumerate(names, first):
        record: dict[str, Any] | BadRecord = {"file": name}
        try:
            caption = (folder / name).with_suffix(".txt").read_bytes().decode("utf-8-sig").strip()
            record = {"file": name, "caption": caption}
        except FileNotFoundError:
            pass
        except UnicodeDecodeError as error:
            record = BadRecord("text_not_utf8", str(error))
        yield number, record


def _read_part(
    records: functools.partial[Iterator[Numbered]], pictures: Location
) -> Iterator[RawSample | Rejected]:
    keys: set[str] = set()
    for number, value in records():
        if isinstance(value, BadRecord):
            yield Rejected(record_key(number), value.reason, value.detail)
            continue
        item = _read(Record(number, value, pictures), keys)
        keys.add(item.key)
        yield item


def _read(record: Record, keys: set[str]) -> RawSample | Rejected:
    files, meta = _split_record(record.value)
    file = files.get("image", "")
    file = file if isinstance(file, str) else ""  # a table may hold the picture itself
    key = file.removesuffix(Path(file).suffix)
    if not key or key in keys or name_problem(key, key):
        key = record.key
    try:
        pictures = {name: record.picture(value) for name, value in files.items()}
        if not pictures and not meta:
            raise BadRecord("missing_picture")
    except BadRecord as bad:
        return Rejected(key, bad.reason, bad.detail)
    return RawSample(key, pictures, meta | ({"file": file} if file else {}))


def _split_record(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record's pictures by field, as names or bytes, and what is left of it."""
    files, meta = {}, {}
    for name, value in record.items():
        if name in FILE_FIELDS or (name == "image" and isinstance(value, dict)):
            files["image"] = value
        elif PICTURE_FIELD.fullmatch(name):
            files[name] = value
        else:
            meta[name] = value
    return files, meta
