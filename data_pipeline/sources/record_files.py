"""Records of JSON lines, JSON lists, parquet and CSV tables and lines of text, read in spans.

A *span* is a run of consecutive records of one file and the place where it starts, so that any
process reads its records without those before them, and holds one at a time. What is wrong with a
single record comes out in its place as a `BadRecord`; a file that cannot be followed any further
(a JSON list with a syntax error) is refused as a whole, before anything is written.

    for span in find_spans(locate("chats.jsonl"), step=500):
        for number, value in read_span(span):     # number in the file; dict, or BadRecord
            ...
"""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from data_pipeline.raw.tar_stream import CHUNK_BYTES, MAX_MEMBER_BYTES
from mgpt.errors import DataError, MachineError
from mgpt.files.storage import Location, open_stream

MAX_RECORD_BYTES = MAX_MEMBER_BYTES
_SPACE = re.compile("[ \t\r\n\ufeff]*")  # with the byte order mark that some editors write
_PARQUET_ROWS = 256  # decoded at once
_LISTS = ("data", "rows", "records", "samples", "examples", "items")
"""Where an object holds its list of records."""


class BadRecord(Exception):
    """A record that is not used: a short reason, and what was seen."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


Numbered = tuple[int, dict[str, Any] | BadRecord]


@dataclass(frozen=True)
class Span:
    """`count` records from number `first` on; `offset` is where that one starts: a byte, in a
    parquet file its row."""

    path: Location
    first: int
    count: int
    offset: int


def find_spans(path: Location, step: int) -> Iterator[Span]:
    """The spans of `step` records that a file falls into, in one pass over it.

    Raises:
        DataError: the file cannot be read, is of another kind, or is no JSON list of records.
        MachineError: a parquet file without pyarrow.
    """
    found = _format(path)
    if found is not FORMATS[".parquet"]:
        _check_encoding(path)
    return found.find(path, step)


def _check_encoding(path: Location) -> None:
    with open_records(path) as stream:
        data = stream.read(4)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(data) > 1 and 0 in data[:2]):
        raise DataError(f"{path}: UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")


def read_span(span: Span) -> Iterator[Numbered]:
    """The records of a span with their numbers in the file; blank lines are passed over."""
    return _format(span.path).read(span)


def open_records(path: Location) -> BinaryIO:
    """The file, to be read. Raises `DataError` where it cannot be."""
    try:
        return open_stream(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


# ------------------------------------------------------------------ lines


def _find_lines(path: Location, step: int) -> Iterator[Span]:
    with open_records(path) as stream:
        first, offset, position, count = 0, 0, 0, 0
        while num_bytes := _next_line(stream)[1]:
            position += num_bytes
            count += 1
            if count == step:
                yield Span(path, first, count, offset)
                first, offset, count = first + count, position, 0
        if count:
            yield Span(path, first, count, offset)


def _read_lines(span: Span, parse: Callable[[bytes], dict[str, Any]]) -> Iterator[Numbered]:
    with open_records(span.path) as stream:
        stream.seek(span.offset)
        for number in range(span.first, span.first + span.count):
            line, num_bytes = _next_line(stream)
            if line is None:
                yield number, BadRecord("record_too_large", f"{num_bytes} bytes")
            elif line.strip():
                try:
                    yield number, parse(line)
                except BadRecord as bad:
                    yield number, bad


def _next_line(stream: BinaryIO) -> tuple[bytes | None, int]:
    """The line, None where it is too large to hold, and its bytes; 0 of them at the end."""
    line = stream.readline(MAX_RECORD_BYTES + 1)
    num_bytes = len(line)
    if num_bytes <= MAX_RECORD_BYTES:
        return line, num_bytes
    while line and not line.endswith(b"\n"):
        line = stream.readline(CHUNK_BYTES)
        num_bytes += len(line)
    return None, num_bytes


def _parse_json(line: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(line.decode("utf-8-sig"), parse_constant=lambda _: None))
    except UnicodeDecodeError as error:
        raise BadRecord("text_not_utf8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadRecord("bad_json", str(error)) from error


def _parse_text(line: bytes) -> dict[str, Any]:
    try:
        return {"text": line.decode("utf-8-sig").rstrip("\r\n")}
    except UnicodeDecodeError as error:
        raise BadRecord("text_not_utf8", str(error)) from error


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRecord("bad_json", "not an object")
    return value


# ------------------------------------------------------------------ one JSON value


class JsonStream:
    """A JSON file taken value by value, so that only one is held; `offset` is the byte to come.

    with open_records(path) as file:
        for offset, annotation in JsonStream(file, path).elements():
            ...
    """

    def __init__(self, stream: BinaryIO, path: Location, offset: int = 0) -> None:
        stream.seek(offset)
        self.offset = offset
        self._stream, self._path = stream, path
        # Bytes that are no UTF-8 refuse their record when it is written, not the whole file.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder(parse_constant=lambda _: None)
        self._text, self._at = "", 0

    def peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._move(match.end())
            if self._at < len(self._text) or not self._fill():
                return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            problem: Exception | None = None
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                value, end, problem = None, len(self._text), error
            # A number at the end of what was read may go on.
            if problem is None and end < len(self._text):
                self._move(end)
                return value
            if not self._fill():
                if problem is not None:
                    raise self._damage(str(problem)) from problem
                self._move(len(self._text))
                return value

    def elements(self, inside: bool = False) -> Iterator[tuple[int, Any]]:
        """(byte, value) of each element of the list here; with `inside`, from an element on."""
        if not inside:
            self._expect("[")
            if self.peek() == "]":
                self._expect("]")
                return
        while True:
            self.peek()
            offset = self.offset
            yield offset, self.value()
            if self._expect(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The names of the object here; whoever gets one takes its value before the next."""
        self._expect("{")
        while True:
            name = self.value()
            self._expect(":")
            yield str(name)
            if self._expect(",}") == "}":
                return

    def _expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise self._damage(f"{found!r} where {' or '.join(characters)} must stand")
        self._move(self._at + 1)
        return found

    def _move(self, end: int) -> None:
        passed = self._text[self._at : end]
        self.offset += len(passed.encode("utf-8", "surrogateescape"))
        self._at = end

    def _fill(self) -> bool:
        kept = self._text[self._at :]
        if len(kept) > MAX_RECORD_BYTES:
            raise self._damage(f"no end of a record within {MAX_RECORD_BYTES} bytes")
        data = self._stream.read(max(CHUNK_BYTES, len(kept)))
        self._text, self._at = kept + self._decoder.decode(data, final=not data), 0
        return bool(data)

    def _damage(self, what: str) -> DataError:
        return DataError(f"{self._path}: no JSON at byte {self.offset}: {what}; restore the file")


def _list_in(json_stream: JsonStream) -> bool:
    """Moves to the list of records: the file's, or that of an object `{"data": [{…}, …]}`. False
    for JSON lines."""
    if json_stream.peek() == "[":
        return True
    try:
        for name in json_stream.members():
            if name in _LISTS and json_stream.peek() == "[":
                return True
            json_stream.value()
    except DataError:  # lines are read one by one, each with its own mistakes
        pass
    return False


def _find_json(path: Location, step: int) -> Iterator[Span]:
    with open_records(path) as stream:
        json_stream = JsonStream(stream, path)
        if not _list_in(json_stream):
            yield from _find_lines(path, step)
            return
        first = offset = count = 0
        for at, _ in json_stream.elements():
            if count == step:
                yield Span(path, first, count, offset)
                first, count = first + count, 0
            offset = at if count == 0 else offset
            count += 1
        if count:
            yield Span(path, first, count, offset)


def _read_json(span: Span) -> Iterator[Numbered]:
    with open_records(span.path) as stream:
        if not _list_in(JsonStream(stream, span.path)):
            yield from _read_lines(span, _parse_json)
            return
        elements = JsonStream(stream, span.path, span.offset).elements(inside=True)
        for number in range(span.first, span.first + span.count):
            try:
                yield number, _object(next(elements)[1])
            except BadRecord as bad:
                yield number, bad


# ------------------------------------------------------------------ parquet


def _parquet(path: Location) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MachineError(f"{path}: parquet needs pyarrow: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(open_records(path))
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error})") from error


def _find_parquet(path: Location, step: int) -> Iterator[Span]:
    with _parquet(path) as table:
        num_rows = table.metadata.num_rows
    for first in range(0, num_rows, step):
        yield Span(path, first, min(step, num_rows - first), first)


def _is_null(value: object) -> bool:
    """Whether a cell holds nothing: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and value != value)


def _plain(value: Any) -> Any:
    """A cell as JSON can have it: dates and decimals as texts, null for NaN in lists."""
    if isinstance(value, list):
        return [None if _is_null(one) else _plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): None if _is_null(one) else _plain(one) for name, one in value.items()}
    if isinstance(value, (str, int, float, bool, bytes, type(None))):
        return value
    return str(value)


def _read_parquet(span: Span) -> Iterator[Numbered]:
    """Rows as objects, without their nulls."""
    stop = span.first + span.count
    with _parquet(span.path) as table:
        start = 0
        for group in range(table.num_row_groups):
            num_rows = table.metadata.row_group(group).num_rows
            if start + num_rows <= span.first or start >= stop:
                start += num_rows
                continue
            for batch in table.iter_batches(_PARQUET_ROWS, row_groups=[group]):
                low, high = (min(max(n - start, 0), batch.num_rows) for n in (span.first, stop))
                rows = batch.slice(low, high - low).to_pylist()
                for number, row in enumerate(rows, start + low):
                    yield (
                        number,
                        {name: _plain(value) for name, value in row.items() if not _is_null(value)},
                    )
                start += batch.num_rows


# ------------------------------------------------------------------ csv


def _rows(path: Location, stream: BinaryIO) -> Iterator[Numbered]:
    """The rows below the names of the columns."""
    # Bytes that are no UTF-8 refuse their row, not the whole file.
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    csv.field_size_limit(MAX_RECORD_BYTES)
    rows = csv.DictReader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    for number in itertools.count():
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}: no CSV in row {number}: {error}; restore the file") from error
        if None in row or None in row.values():
            yield number, BadRecord("bad_csv", "more or fewer cells than columns")
        elif any(_has_escapes(cell) for cell in row.values()):
            yield number, BadRecord("text_not_utf8", f"row {number}")
        else:
            yield number, {name: cell for name, cell in row.items() if cell != ""}


def _has_escapes(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _find_csv(path: Location, step: int) -> Iterator[Span]:
    with open_records(path) as stream:
        count = sum(1 for _ in _rows(path, stream))
    for first in range(0, count, step):
        yield Span(path, first, min(step, count - first), first)


def _read_csv(span: Span) -> Iterator[Numbered]:
    with open_records(span.path) as stream:
        yield from itertools.islice(_rows(span.path, stream), span.first, span.first + span.count)


# ------------------------------------------------------------------ kinds of files


@dataclass(frozen=True)
class _Format:
    find: Callable[[Location, int], Iterator[Span]]
    read: Callable[[Span], Iterator[Numbered]]


FORMATS: dict[str, _Format] = {
    ".jsonl": _Format(_find_lines, lambda span: _read_lines(span, _parse_json)),
    ".json": _Format(_find_json, _read_json),
    ".csv": _Format(_find_csv, _read_csv),
    ".tsv": _Format(_find_csv, _read_csv),
    ".parquet": _Format(_find_parquet, _read_parquet),
    ".txt": _Format(_find_lines, lambda span: _read_lines(span, _parse_text)),
}
"""By file extension. A `.json` is a list of objects, or JSON lines under another name; of a `.txt`
each line is a record `{"text": line}`."""


def _format(path: Location) -> _Format:
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise DataError(f"{path}: records are read from {', '.join(FORMATS)} files")
    return found
