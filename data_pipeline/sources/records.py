"""For sources whose samples are records of a file: all but what one record means.

A source gives `record_parts` a function from a record to its samples. Records come from `input=`,
a .jsonl, .json (a list), .parquet or .txt file, a folder or a glob of these; the pictures they
name lie under `pictures=`, or in the input's own folder. A record that cannot be used is refused
whole, under its number in its file and a short reason, and counted.

    def parts(cfg: PackConfig) -> list[Part]:
        return record_parts(cfg, read)

    def read(record: Record) -> list[RawSample]:
        picture = record.picture(record.value["photo"])     # raises BadRecord where it is missing
        return [RawSample(record.key, {"image": picture}, {"caption": record.text("title")})]
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.raw.shards import PICTURE_EXTENSIONS, Picture, RawSample, Rejected
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, shard_name
from data_pipeline.sources.record_files import FORMATS, BadRecord, Span, find_spans, read_span
from mgpt.errors import ConfigError, DataError
from mgpt.files.storage import Location, find_glob, locate

# How files begin that a table holds without their names.
_SIGNATURES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


@dataclass(frozen=True)
class Record:
    """One record, its number in its file, and the folder of the pictures it names."""

    number: int
    value: dict[str, Any]
    pictures: Location

    @property
    def key(self) -> str:
        """The number as a sample's key: nine digits."""
        return record_key(self.number)

    def text(self, name: str) -> str:
        """A text that must be there and not be empty."""
        value = self.value.get(name)
        if not isinstance(value, str) or not value.strip():
            raise BadRecord("missing_text", f"{name} is {str(value)[:40]!r}")
        return value

    def picture(self, value: object) -> Picture:
        """A picture: the name of a file, or `{"bytes": …}` as tables hold it."""
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            return embedded_picture(value["bytes"])
        if not isinstance(value, str) or not value:
            raise BadRecord("missing_picture", f"{str(value)[:40]!r}")
        return read_picture(self.pictures, value)


def record_key(number: int) -> str:
    return f"{number:09d}"


def record_parts(cfg: PackConfig, read: Callable[[Record], Iterable[RawSample]]) -> list[Part]:
    """Spans of `samples_per_shard` records, one part each.

    Args:
        read: the samples of a record; it raises `BadRecord` for one that cannot be used.

    Raises:
        ConfigError: no input.
        DataError: no file with records, or one that cannot be read.
    """
    files = find_record_files(cfg)
    pictures = pictures_folder(cfg)
    spans = [span for path in files for span in find_spans(path, cfg.samples_per_shard)]
    if not spans:
        raise DataError(f"{cfg.input}: no record in {', '.join(path.name for path in files)}")
    return [
        Part(shard_name(place), span.count, functools.partial(_read, span, pictures, read))
        for place, span in enumerate(spans)
    ]


def _read(
    span: Span, pictures: Location, read: Callable[[Record], Iterable[RawSample]]
) -> Iterator[RawSample | Rejected]:
    for number, value in read_span(span):
        try:
            if isinstance(value, BadRecord):
                raise value
            yield from list(read(Record(number, value, pictures)))
        except BadRecord as bad:
            yield Rejected(record_key(number), bad.reason, bad.detail)


def find_record_files(cfg: PackConfig) -> list[Location]:
    """The files that `input=` names: itself, those of a folder, or those of a glob; sorted."""
    if cfg.input is None:
        raise ConfigError(f"source={cfg.source} needs input=<file, folder or glob of records>")
    path = locate(cfg.input)
    if path.is_dir():
        found = [one for one in path.iterdir() if one.suffix.lower() in FORMATS]
    else:
        found = [path] if path.is_file() else list(find_glob(cfg.input))
    if not found:
        raise DataError(f"{cfg.input}: no records there ({', '.join(FORMATS)} files)")
    return sorted(found)


def pictures_folder(cfg: PackConfig) -> Location:
    """Where the pictures lie that records name."""
    if cfg.pictures is not None:
        return locate(cfg.pictures)
    path = locate(cfg.input or ".")
    return path if path.is_dir() else path.parent


def read_picture(folder: Location, relative: str) -> Picture:
    """The picture as it stands in the folder; raises `BadRecord` where it cannot be had."""
    extension = Path(relative).suffix[1:].lower()
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise BadRecord("unsafe_name", relative)
    if extension not in PICTURE_EXTENSIONS:
        raise BadRecord("unknown_extension", relative)
    try:
        return Picture((folder / relative).read_bytes(), extension)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise BadRecord("missing_picture", relative) from error


def embedded_picture(data: bytes) -> Picture:
    """A picture whose kind its first bytes tell."""
    for signature, extension in _SIGNATURES.items():
        if data.startswith(signature):
            return Picture(data, extension)
    raise BadRecord("unknown_extension", f"a picture that begins with {data[:8]!r}")
