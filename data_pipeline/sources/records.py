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
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.raw.member_names import PICTURE_EXTENSIONS
from data_pipeline.raw.shards import Picture, RawSample, Rejected
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, SourceFile
from data_pipeline.sources.plan import Plan
from data_pipeline.sources.record_files import FORMATS, BadRecord, Span, find_spans, read_span
from mgpt.errors import ConfigError, DataError
from mgpt.files.storage import Location, find_glob, locate, open_stream, relative
from mgpt.files.walk import is_hidden, stamp_of

# Of a folder's files the first kinds that are there: notes beside records are no records.
_KINDS = ((".jsonl", ".json", ".parquet"), (".csv", ".tsv"), (".txt",))
Item = RawSample | Rejected | SourceFile

# How pictures begin: (bytes, where, extension).
_SIGNATURES = (
    (b"\xff\xd8\xff", 0, "jpg"),
    (b"\x89PNG", 0, "png"),
    (b"WEBP", 8, "webp"),
    (b"GIF8", 0, "gif"),
    (b"BM", 0, "bmp"),
    (b"II*\0", 0, "tif"),
    (b"MM\0*", 0, "tif"),
    (b"ftypheic", 4, "heic"),
    (b"ftypheix", 4, "heic"),
    (b"ftypmif1", 4, "heic"),
    (b"ftypavif", 4, "avif"),
    (b"\xff\x0a", 0, "jxl"),
    (b"\0\0\0\x0cJXL ", 0, "jxl"),
    (b"\0\0\0\x0cjP  ", 0, "jp2"),
    (b"8BPS", 0, "psd"),
    (b"<svg", 0, "svg"),
)
UNREADABLE_PICTURES = frozenset(
    {"heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "svg", "psd", "eps", "ico", "tga", "exr",
     "hdr", "dds", "pcx", "cr2", "cr3", "nef", "arw", "dng", "raf", "orf", "rw2", "raw"}
)  # fmt: skip
"""Extensions of pictures that are not read; each such file is rejected and counted."""
_AS_JPEG = {"jfif": "jpg", "jpe": "jpg"}


@dataclass(frozen=True)
class Record:
    """One record, its number in its file, and the folder of the pictures it names."""

    number: int
    value: dict[str, Any]
    pictures: Location
    read_files: list[SourceFile] = field(default_factory=list, compare=False)
    """Files of pictures that were read for it, or looked for."""
    name: str = ""
    """Its sample's key; empty for the number."""

    @property
    def key(self) -> str:
        """Its sample's key, else its number in nine digits."""
        return self.name or record_key(self.number)

    def text(self, name: str) -> str:
        """A text that must be there and not be empty."""
        value = self.value.get(name)
        if not isinstance(value, str) or not value.strip():
            raise BadRecord("missing_text", f"{name} is {str(value)[:40]!r}")
        return value

    def picture(self, value: object) -> Picture:
        """A picture: the name of a file, or bytes, `{"bytes": …, "path": …}`, as tables hold it."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return embedded_picture(value)
        if not isinstance(value, str) or not value:
            raise BadRecord("missing_picture", f"{str(value)[:40]!r}")
        return self.picture_file(self.pictures, value)

    def picture_file(self, folder: Location, name: str) -> Picture:
        """A picture in a folder."""
        return read_picture(folder, name, self.key, self.read_files)


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
    spans = planned_spans(cfg, files)
    if not spans:
        raise DataError(f"{cfg.input}: no record in {', '.join(path.name for path in files)}")
    pictures = pictures_folder(cfg)
    return [
        span_part(name, span, cfg, functools.partial(_read, span, pictures, read))
        for name, span in spans.items()
    ]


def planned_spans(cfg: PackConfig, files: Sequence[Location]) -> dict[str, Span]:
    """Spans of records by shard: those planned before, then those of files that are new."""
    plan = Plan.read(locate(cfg.output))
    spans = {
        name: Span(_record_file(cfg, piece[0]), *piece[1:])
        for name, piece in plan.pieces.items()
        if isinstance(piece, list)
    }
    known = {_file_name(cfg, span.path) for span in spans.values()}
    new = [path for path in files if _file_name(cfg, path) not in known]
    found = [span for path in new for span in find_spans(path, cfg.samples_per_shard)]
    return spans | {plan.next_name(place): span for place, span in enumerate(found)}


def span_part(name: str, span: Span, cfg: PackConfig, read: Callable[[], Iterator[Item]]) -> Part:
    piece = [_file_name(cfg, span.path), span.first, span.count, span.offset]
    return Part(name, span.count, read, piece, (span.path,))


def _file_name(cfg: PackConfig, path: Location) -> str:
    """A records file as plans name it: relative to the input, so that both may be moved."""
    base = _base(cfg)
    try:
        return relative(path, base).as_posix()
    except ValueError:
        return str(path)


def _record_file(cfg: PackConfig, name: str) -> Location:
    return locate(name) if "://" in name else _base(cfg) / name


def _base(cfg: PackConfig) -> Location:
    path = locate(cfg.input or ".")
    return path if path.is_dir() else path.parent


def _read(
    span: Span, pictures: Location, read: Callable[[Record], Iterable[RawSample]]
) -> Iterator[Item]:
    for number, value in read_span(span):
        record = Record(number, value if isinstance(value, dict) else {}, pictures)
        try:
            if isinstance(value, BadRecord):
                raise value
            yield from list(read(record))
        except BadRecord as bad:
            yield Rejected(record.key, bad.reason, bad.detail, span.path.name, number)
        yield from record.read_files


def find_record_files(cfg: PackConfig) -> list[Location]:
    """The files that `input=` names: itself, those of a folder, or those of a glob; sorted."""
    if cfg.input is None:
        raise ConfigError(f"source={cfg.source} needs input=<file, folder or glob of records>")
    path = locate(cfg.input)
    if path.is_dir():
        here = [one for one in path.iterdir() if not is_hidden(one.name)]
        found: list[Location] = []
        for kinds in _KINDS if cfg.source != "plain_text" else [FORMATS]:
            found = found or [one for one in here if one.suffix.lower() in kinds]
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


def read_picture(
    folder: Location, name: str, key: str = "", seen: list[SourceFile] | None = None
) -> Picture:
    """The picture as it stands in the folder; raises `BadRecord` where it cannot be had.

    Args:
        key: of the sample that is rejected without it.
        seen: is told of the file, or of its absence.
    """
    extension = Path(name).suffix[1:].lower()
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadRecord("unsafe_name", name)
    if extension in UNREADABLE_PICTURES:
        raise BadRecord("unreadable_picture", f"{name}: {extension} is not read; convert it to PNG")
    if extension not in PICTURE_EXTENSIONS and extension.isalpha():
        raise BadRecord("unknown_extension", name)
    path = folder / name
    try:
        if extension not in PICTURE_EXTENSIONS:
            embedded_picture(first_bytes(path), name)  # of a name that says nothing
        stamp = stamp_of(path) if seen is not None else None
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if seen is not None:
            seen.append(SourceFile(name, None, key=key))
        raise BadRecord("missing_picture", name) from error
    if seen is not None:
        seen.append(SourceFile(name, stamp, hashlib.sha256(data).hexdigest()[:16], key))
    if extension not in PICTURE_EXTENSIONS:
        return embedded_picture(data, name)
    return Picture(data, _AS_JPEG.get(extension, extension))


def picture_kind(data: bytes) -> str | None:
    """The extension that a file's first bytes stand for, be it read or not; None for no picture."""
    for signature, at, extension in _SIGNATURES:
        if data[at : at + len(signature)] == signature:
            return extension
    return None


def first_bytes(path: Location) -> bytes:
    """As many as tell a picture's kind. Raises OSError as `open` does."""
    with open_stream(path) as stream:
        return stream.read(32)


def kind_of_file(path: Location) -> str | None:
    """`picture_kind` of a file; None if it cannot be read."""
    try:
        return picture_kind(first_bytes(path))
    except OSError:
        return None


def embedded_picture(data: bytes, where: str = "a picture") -> Picture:
    """A picture whose kind its first bytes tell."""
    kind = picture_kind(data)
    if kind is None:
        raise BadRecord("unknown_extension", f"{where} begins with {data[:8]!r}")
    if kind not in PICTURE_EXTENSIONS:
        raise BadRecord("unreadable_picture", f"{where}: {kind} is not read; convert it to PNG")
    return Picture(data, kind)
