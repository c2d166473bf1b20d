"""What has happened to a pack's input since its shards were written: changed, or there at last.

    input_files(cfg)                              # every file whose change may be more work
    arrived(cfg, parts, finished, again)          # {"00000": ["000000017"]}; DataError: changed

A file is compared by size and modification time; one whose time alone differs is read.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from data_pipeline.raw.inputs import find_raw_shards
from data_pipeline.raw.inputs import passed_over as raw_passed_over
from data_pipeline.raw.shards import RawSample
from data_pipeline.sources import coco_keypoints, folder
from data_pipeline.sources.pack_config import SOURCES, PackConfig
from data_pipeline.sources.part import Part, SourceFile
from data_pipeline.sources.plan import FOLDER, Plan, ReadFiles, check_file
from data_pipeline.sources.records import Item, find_record_files, pictures_folder
from mgpt.errors import ConfigError, DataError
from mgpt.files.remote import RemotePath
from mgpt.files.storage import Location, find_glob, locate, read_all
from mgpt.files.walk import FileStamp, is_hidden, stamp_of, walk
from mgpt.lifecycle.identity import is_same_input, told_by_files


def input_files(cfg: PackConfig) -> dict[str, FileStamp | None]:
    """Files of the input by name; what a source does not take is not among them."""
    assert cfg.input is not None
    path = locate(cfg.input)
    if cfg.source == "folder" or cfg.source not in SOURCES:
        if path.is_dir():
            return dict(walk(path).files)
        found = [path] if path.is_file() else list(find_glob(cfg.input))
        return {str(one): stamp_of(one) for one in found}
    try:
        if cfg.source == "img2dataset":
            found = list(find_raw_shards(cfg.input).values())
        elif cfg.source == "coco_keypoints":
            found = list(coco_keypoints.input_files(path))
        else:
            found = find_record_files(cfg)
    except DataError:  # whoever reads it says what is wrong
        return {}
    return {str(one) if len(found) > 1 else one.name: stamp_of(one) for one in found}


def arrived(
    cfg: PackConfig,
    parts: Mapping[str, Part],
    finished: Collection[str],
    again: Collection[tuple[str, str]],
) -> dict[str, list[str]]:
    """Shard → keys of records that were rejected without a file that is there now.

    Args:
        again: (shard, key) of records that are to be read again already.

    Raises:
        DataError: a file that a finished shard was read from has changed.
    """
    names = [name for name in parts if name in finished]
    output = locate(cfg.output)
    records = read_all([output / FOLDER / f"{name}.json" for name in names])
    stamps = _Stamps(cfg)
    found: dict[str, list[str]] = {}
    read: set[str] = set()
    for name, data in zip(names, records, strict=True):
        files = ReadFiles.decode(data)
        remedy = (
            f"restore it, delete {name}.tar and {name}.json in {output} to pack that shard again, "
            "or give another output="
        )
        for file, entry in files.files.items():
            path = stamps.path(file, parts[name])
            when = f"when it was packed into shard {name}"
            check_file(path, entry, stamps.of(file, path), when, remedy)
        read.update(files.files)
        keys = {
            key for file, key in files.absent if stamps.of(file, stamps.path(file, parts[name]))
        }
        keys -= {key for of, key in again if of == name}
        if keys:
            found[name] = sorted(keys)
    if cfg.source == "folder":
        _check_sides(cfg, parts, names, read)
    return found


def _check_sides(
    cfg: PackConfig, parts: Mapping[str, Part], finished: list[str], read: set[str]
) -> None:
    packed = {file for name in finished for file in names_of(parts[name].piece)
              if file in read and isinstance(parts[name].piece[-1], str)}  # fmt: skip
    late = folder.late_sides(cfg, read, packed) if packed else []
    if late:
        more = f" and {len(late) - 1} more" if len(late) > 1 else ""
        raise DataError(
            f"{cfg.input}: {late[0]}{more} not there when its picture was packed; remove it, or "
            "give another output= to pack it with its picture"
        )


class _Stamps:
    """The stamps of pictures as they are now; those in an object store by one listing."""

    def __init__(self, cfg: PackConfig) -> None:
        self._folder = pictures_folder(cfg) if cfg.input or cfg.pictures else locate(".")
        self._listed: dict[str, FileStamp] | None = None

    def path(self, name: str, part: Part) -> Location:
        if not name:
            return part.files[0]
        return self._folder / name

    def of(self, name: str, path: Location) -> FileStamp | None:
        if not name or not isinstance(self._folder, RemotePath):
            return stamp_of(path)
        if self._listed is None:
            self._listed = walk(self._folder).files
        return self._listed.get(name)


def passed_over(cfg: PackConfig, parts: Mapping[str, Part]) -> tuple[Counter[str], Counter[str]]:
    """What the input holds that was not packed, counted by kind: pictures and captions, and other
    files. What was rejected is not among them."""
    if cfg.input is None or cfg.source not in SOURCES:
        return Counter(), Counter()
    if cfg.source == "img2dataset":
        return Counter(), raw_passed_over(cfg.input)
    if cfg.source == "folder":
        output = locate(cfg.output)
        records = read_all([output / FOLDER / f"{name}.json" for name in parts])
        read = {name for data in records for name in ReadFiles.decode(data).files}
        read |= {file for part in parts.values() for file in names_of(part.piece)}
        return folder.passed_over(cfg, read)
    path = locate(cfg.input)
    if not path.is_dir():
        return Counter(), Counter()
    taken = {one.name for one in find_record_files(cfg)}
    names = [one.name for one in path.iterdir() if one.name not in taken and one.is_file()]
    return Counter(), Counter(
        f"hidden file {name}" if is_hidden(name) else PurePosixPath(name).suffix or "no extension"
        for name in names
    )


def names_of(piece: Any) -> list[str]:
    """The files that a piece names."""
    if not isinstance(piece, list):
        return []
    return piece if all(isinstance(one, str) for one in piece) else piece[:1]


def read_again(name: str, piece: dict[str, Any], parts: Mapping[str, Part]) -> Part:
    """A shard of records that another shard rejected."""
    of = parts[piece["again"]]
    keys = frozenset(piece["keys"])
    return Part(name, len(keys), functools.partial(_some, of, keys), piece, of.files)


def _some(part: Part, keys: frozenset[str]) -> Iterator[Item]:
    for item in part.read():
        if (isinstance(item, RawSample) or not isinstance(item, SourceFile) or item.key) and (
            item.key in keys
        ):
            yield item


def check_older_output(cfg: PackConfig) -> None:
    """Raises ConfigError for shards of an older version whose input has changed: they do not say
    what they were made of, so nothing can be added to them."""
    output = locate(cfg.output)
    if cfg.input is None or not (output / "00000.json").exists() or getattr(cfg, "redo", False):
        return
    if Plan.read(output).num_generations:
        return
    try:
        record = json.loads((output / "stage.json").read_bytes())
        then, path = record["inputs"][record["config"]["input"]], record["config"]["input"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if path == cfg.input and told_by_files(then) and not is_same_input(then, "", cfg.input):
        raise ConfigError(
            f"{output}: an older version of mgpt packed it, and {cfg.input} has changed since; "
            "restore it, set redo=true to pack all again, or give another output="
        )
