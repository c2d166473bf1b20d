"""A folder of pictures, with captions in a table, beside each picture, or nowhere.

    {"file": "cats/tom.jpg", "caption": "a grey cat"}
    {"file": "room.png", "depth": "room_depth.png", "caption": "a room", "tasks": ["depth"]}

A table is `captions` or `metadata` (Hugging Face's imagefolder) as `.jsonl`, `.csv` or `.parquet`,
in the folder or in subfolders. `file`, `file_name` or `image` is the picture, relative to the
table; `image_column=` names another field. A known field name (`depth`, `segmentation`, `edit_1`,
…, or `own_…` for a task of your own) names a further picture; everything else goes into the
sample's JSON as it is. Without a table every picture in the folder and its subfolders is a sample,
in the order of their paths, and `cats/tom.txt`, `.caption`, `.json` or `cats/tom.jpg.txt` has the
caption of `cats/tom.jpg`. The key is the picture's path without extension, or the record's number
if that cannot be one or is taken.

    mgpt pack source=folder input=my_pictures output=raw/mine
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline.raw.captions import caption_of, with_caption
from data_pipeline.raw.member_names import PICTURE_EXTENSIONS, PICTURE_FIELD, name_problem
from data_pipeline.raw.shards import RawSample, Rejected
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, SourceFile
from data_pipeline.sources.plan import Plan
from data_pipeline.sources.record_files import BadRecord, Span, read_span
from data_pipeline.sources.records import (
    UNREADABLE_PICTURES,
    Item,
    Record,
    find_record_files,
    kind_of_file,
    planned_spans,
    record_key,
    span_part,
)
from mgpt.errors import ConfigError, DataError
from mgpt.files.storage import Location, find_glob, locate, relative
from mgpt.files.walk import Walk, stamp_of, walk

TABLES = tuple(f"{name}{kind}" for name in ("captions", "metadata")
               for kind in (".jsonl", ".parquet", ".csv"))  # fmt: skip
FILE_FIELDS = ("file", "file_name", "image")
_LIKELY_FIELDS = ("path", "filename", "image_path", "img", "image_file", "image_name", "photo")
_SIDE_SUFFIXES = (".txt", ".caption", ".json")
_MAX_SNIFFED = 20_000  # files of unknown extension of which the first bytes are read


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive records of the tables, or consecutive pictures; new ones behind those planned.

    Raises:
        ConfigError: no input.
        DataError: no folder, or neither tables nor pictures in it; two tables in one folder, or one
            that came after pictures were packed without it.
    """
    if cfg.input is None:
        raise ConfigError("source=folder needs input=<folder of pictures>")
    folder = locate(cfg.input)
    if folder.is_dir():
        found = walk(folder)
        tables = _tables(folder, found)
    elif folder.is_file() or find_glob(cfg.input):
        found, tables = Walk(), find_record_files(cfg)
    else:
        raise DataError(f"{folder}: no such folder; give a folder of pictures")
    plan = Plan.read(locate(cfg.output))
    planned = {name: piece for name, piece in plan.pieces.items() if isinstance(piece, list)}
    is_bare = any(not piece or isinstance(piece[-1], str) for piece in planned.values())
    if tables and planned and is_bare:
        raise DataError(
            f"{tables[0]}: came after {cfg.output} was packed without it; remove it, or give "
            "another output="
        )
    if tables:
        spans = planned_spans(cfg, tables)
        return [
            span_part(name, span, cfg, functools.partial(_read_table, span, cfg))
            for name, span in spans.items()
        ]
    sides = _Sides(found)
    known = {name for piece in planned.values() for name in piece}
    names = _legacy_names(folder) if _is_legacy(cfg, plan) else []
    known.update(names)
    names += [name for name in _picture_names(folder, found) if name not in known]
    step = cfg.samples_per_shard
    pieces = [names[start : start + step] for start in range(0, len(names), step)]
    planned |= {plan.next_name(place): piece for place, piece in enumerate(pieces)}
    if not planned:
        raise DataError(
            f"{folder}: neither pictures nor {' or '.join(TABLES)} there, with an object a "
            'picture, such as {"file": "tom.jpg", "caption": "a grey cat"}'
        )
    made, first = [], 0
    for shard, piece in planned.items():
        given = [(name, sides.of(name)) for name in piece]
        made.append(
            Part(shard, len(piece), functools.partial(_read_bare, given, first, cfg), piece)
        )
        first += len(piece)
    return made


def _tables(folder: Location, found: Walk) -> list[Location]:
    by_folder: dict[str, list[str]] = {}
    for name in found.files:
        above, _, file = name.rpartition("/")
        if file.lower() in TABLES:
            by_folder.setdefault(above, []).append(name)
    for names in by_folder.values():
        if len(names) > 1:
            raise DataError(f"{folder}: both {' and '.join(names)}; remove or rename one")
    if not by_folder and not any(_is_picture_name(name) for name in found.files):
        # What Hugging Face exports: tables that hold their pictures.
        return [folder / name for name in found.files if name.lower().endswith(".parquet")]
    return [folder / name for (name,) in by_folder.values()]


def _is_picture_name(name: str) -> bool:
    extension = PurePosixPath(name).suffix[1:].lower()
    return extension in PICTURE_EXTENSIONS or extension in UNREADABLE_PICTURES


def _picture_names(folder: Location, found: Walk) -> list[str]:
    """Every picture, of kinds that are read or not, by its extension or its first bytes; sorted."""
    names, sniffed = [], 0
    for name in found.files:
        extension = PurePosixPath(name).suffix[1:].lower()
        is_picture = _is_picture_name(name)
        if not is_picture and _is_doubtful(extension) and sniffed < _MAX_SNIFFED:
            sniffed += 1
            is_picture = kind_of_file(folder / name) is not None
        if is_picture:
            names.append(name)
    return names


def _is_doubtful(extension: str) -> bool:
    """Whether a file of this extension may be a picture: none at all, or a number or hash."""
    return not extension or not extension.isalpha()


def passed_over(cfg: PackConfig, read: Collection[str]) -> tuple[Counter[str], Counter[str]]:
    """What the folder holds beside what was read: pictures and texts, and other files, by kind."""
    assert cfg.input is not None
    folder = locate(cfg.input)
    if not folder.is_dir():
        return Counter(), Counter()
    found = walk(folder)
    pictures = set(_picture_names(folder, found))
    tables = {relative(one, folder).as_posix() for one in _tables(folder, found)}
    missed: Counter[str] = Counter()
    others = Counter(found.passed_over)
    for name in found.files.keys() - tables - set(read):
        kind = PurePosixPath(name).suffix.lower() or "no extension"
        if name in pictures:
            is_theirs = tables and cfg.pictures is None
            missed[f"{kind} that no table lists" if is_theirs else f"{kind} not packed"] += 1
        elif kind in _SIDE_SUFFIXES:
            missed[f"{kind} {'beside a table' if tables else 'without its picture'}"] += 1
        else:
            others[kind] += 1
    return missed, others


class _Sides:
    """The texts beside pictures, whatever the case of their extensions."""

    def __init__(self, found: Walk) -> None:
        self._names: dict[str, str] = {}
        for name in found.files:
            stem, dot, suffix = name.rpartition(".")
            if f"{dot}{suffix}".lower() in _SIDE_SUFFIXES:
                self._names.setdefault(f"{stem}.{suffix.lower()}", name)

    def of(self, picture: str) -> list[str]:
        """Those of one picture, the first counts."""
        stem = picture.removesuffix(PurePosixPath(picture).suffix)
        wanted = [f"{one}{suffix}" for one in (stem, picture) for suffix in _SIDE_SUFFIXES]
        return [self._names[one] for one in dict.fromkeys(wanted) if one in self._names]


def late_sides(cfg: PackConfig, read: set[str], packed: set[str]) -> list[str]:
    """Texts that came after their pictures were packed."""
    assert cfg.input is not None
    found = walk(locate(cfg.input))
    sides = _Sides(found)
    return sorted(side for name in packed for side in sides.of(name) if side not in read)


def _is_legacy(cfg: PackConfig, plan: Plan) -> bool:
    """Whether an older version packed into this output, which wrote no plan."""
    return not plan.num_generations and (locate(cfg.output) / "00000.json").exists()


def _legacy_names(folder: Location) -> list[str]:
    """The pictures that an older version took, in its order."""
    kinds = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"}
    return sorted(
        relative(path, folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix[1:].lower() in kinds and not path.name.startswith(".") and path.is_file()
    )


# ------------------------------------------------------------------ reading


def _read_bare(given: list[tuple[str, list[str]]], first: int, cfg: PackConfig) -> Iterator[Item]:
    """Samples of pictures without a table: the picture, and the texts beside it."""
    assert cfg.input is not None
    folder = locate(cfg.input)
    keys: set[str] = set()
    for number, (name, sides) in enumerate(given, first):
        seen: list[SourceFile] = []
        value: dict[str, Any] | BadRecord = {"file": name}
        try:
            value = _side_fields(folder, sides, seen) | {"file": name}
        except BadRecord as bad:
            value = bad
        yield from _items(number, value, folder, keys, cfg, seen, name)


def _side_fields(folder: Location, sides: list[str], seen: list[SourceFile]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    caption = ""
    for side in sides:
        stamp = stamp_of(folder / side)
        try:
            data = (folder / side).read_bytes()
        except OSError:
            continue
        seen.append(SourceFile(side, stamp, hashlib.sha256(data).hexdigest()[:16]))
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRecord("text_not_utf8", f"{side}: {error}") from error
        if not side.lower().endswith(".json"):
            caption = caption or text.strip()
            continue
        try:
            value = json.loads(text, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise BadRecord("bad_json", f"{side}: {error}") from error
        if not isinstance(value, dict):
            raise BadRecord("bad_json", f"{side}: {text[:40]!r} is no JSON object")
        fields = value | fields
    if caption and not caption_of(fields):
        fields["caption"] = caption
    return fields


def _read_table(span: Span, cfg: PackConfig) -> Iterator[Item]:
    pictures = span.path.parent if cfg.pictures is None else locate(cfg.pictures)
    # Files are told by their names in the input, so that those of two tables stay apart.
    base = locate(cfg.input or ".")
    is_below = base.is_dir() and pictures != base and not cfg.pictures
    above = f"{relative(pictures, base)}/" if is_below else ""
    keys: set[str] = set()
    for number, value in read_span(span):
        for item in _items(number, value, pictures, keys, cfg, [], ""):
            if isinstance(item, Rejected):
                yield replace(item, file=span.path.name)
            elif isinstance(item, SourceFile):
                yield replace(item, name=f"{above}{item.name}")
            else:
                yield item


def _items(
    number: int,
    value: dict[str, Any] | BadRecord,
    pictures: Location,
    keys: set[str],
    cfg: PackConfig,
    seen: list[SourceFile],
    name: str,
) -> Iterator[Item]:
    if isinstance(value, BadRecord):
        yield Rejected(
            _key(name, keys) or record_key(number), value.reason, value.detail, line=number
        )
        yield from seen
        return
    record = Record(number, value, pictures)
    item = _read(record, keys, cfg)
    keys.add(item.key)
    yield item
    yield from record.read_files
    yield from seen


def _key(file: str, keys: set[str]) -> str:
    """The picture's path without extension; empty if it cannot be a key or is taken."""
    key = file.removesuffix(Path(file).suffix)
    return "" if not key or key in keys or name_problem(key, key) else key


def _read(record: Record, keys: set[str], cfg: PackConfig) -> RawSample | Rejected:
    files, meta = _split_record(record.value, cfg)
    file = files.get("image", "")
    file = file if isinstance(file, str) else ""  # a table may hold the picture itself
    key = _key(file, keys) or record.key
    record = replace(record, name=key)
    try:
        if "image" not in files:
            raise BadRecord("missing_picture", _without_picture(record.value, cfg))
        pictures = {name: record.picture(value) for name, value in files.items()}
        meta = with_caption(meta, key, cfg.caption_choice, cfg.caption_column)
    except BadRecord as bad:
        return Rejected(key, bad.reason, bad.detail, line=record.number)
    return RawSample(key, pictures, meta | ({"file": file} if file else {}))


def _split_record(record: dict[str, Any], cfg: PackConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record's pictures by field, as names or bytes, and what is left of it."""
    fields = FILE_FIELDS if cfg.image_column is None else (cfg.image_column,)
    files: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for name, value in record.items():
        if name in fields and value not in (None, ""):
            files.setdefault("image", value)
        elif PICTURE_FIELD.fullmatch(name):
            files[name] = value
        elif name not in fields:
            meta[name] = value
    return files, meta


def _without_picture(record: dict[str, Any], cfg: PackConfig) -> str:
    if cfg.image_column is not None:
        return f"no field {cfg.image_column!r} (image_column=); there are {', '.join(record)}"
    likely = [name for name in _LIKELY_FIELDS if isinstance(record.get(name), str)]
    hint = f"; did you mean image_column={likely[0]}?" if likely else ""
    return f"no field {', '.join(FILE_FIELDS)}{hint}"
