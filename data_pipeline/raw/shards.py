"""Raw shards: webdataset tars of encoded pictures and their texts, read strictly, written alike.

A raw shard is img2dataset's layout: per sample consecutive members `<key>.jpg|png|webp` (the field
`image`), `<key>.<field>.png` for further pictures, `<key>.txt` (a caption) and `<key>.json`. This
module turns such a stream into samples and refusals, one pass, in bounded memory, and writes one
with bytes that depend on the samples alone. It never decodes a picture, never unpickles, and
extracts nothing to the disk. It knows no codes, tasks or resolutions.

Plain webdataset ends a shard that is cut at a member's border without a word, and cuts keys at the
first dot. Here the end marker must be there, and a key ends before a known field and extension:

    >>> split_name("part/scene.v2.depth.png")
    MemberName(key='part/scene.v2', field='depth', extension='png')
    >>> with RawShardReader.open("00000.tar") as reader:
    ...     for item in reader:                       # RawSample | Rejected
    ...         ...
    >>> reader.inputs, reader.damaged, reader.sha256  # complete once the loop has ended
    (1000, None, '3f…')
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.raw.tar_stream import (
    BLOCK_BYTES,
    MAX_MEMBER_BYTES,
    Damaged,
    Member,
    TarStream,
)
from mgpt.data.shards import canonical_json
from mgpt.data.tar_header import tar_header
from mgpt.errors import DataError
from mgpt.files.storage import Location, WholeFile, locate, open_stream

MAX_SAMPLE_BYTES = 2 * MAX_MEMBER_BYTES
MAX_TEXT_BYTES = 4 << 20
MAX_JSON_PARTS = 100_000  # commas and brackets: 4 MB of [[],[],…] would be 100 MB and a second
MAX_KEY_BYTES = 80  # `<key>.<field>.npy` fits ustar's 100 bytes

PICTURE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff",
     "ppm", "pgm", "pbm", "pnm"}
)  # fmt: skip
TEXT_EXTENSIONS = frozenset({"txt", "json"})
PICTURE_FIELD = re.compile(
    r"depth|normals|segmentation|pose|detection|other|edit_\d+|view_\d+|image_\d+|own_[a-z0-9_]+"
)
_LEAST, _MOST, _MOST_BYTES = 16, 64, 3_000_000  # of `write_some`
TEXT_ONLY_FIELDS = ("dialog", "text", "conversations", "interleaved")

REASONS = {
    "bad_json": "the json is not one JSON object, or a field of it has another type",
    "cut_short": "the shard ends inside the sample",
    "duplicate_key": "the key was used before in this shard; the first one counts",
    "duplicate_member": "two members for one field",
    "member_too_large": f"a member above {MAX_MEMBER_BYTES} bytes",
    "missing_picture": "neither a picture nor text to train on",
    "name_not_utf8": "a member name that is not UTF-8",
    "name_too_long": f"a key above {MAX_KEY_BYTES} bytes",
    "not_a_file": "a link or device where a file should be",
    "sample_too_large": f"members of more than {MAX_SAMPLE_BYTES} bytes in all",
    "text_not_utf8": "a text that is not UTF-8",
    "text_too_large": f"a text above {MAX_TEXT_BYTES} bytes, or JSON of many parts",
    "unsafe_name": "an absolute name, one with '..', or one without a key",
}
"""Why a sample is refused here; filters and `mgpt tokenize` have reasons of their own."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture, as found: its bytes, and its file extension without the dot."""

    data: bytes
    extension: str


@dataclass(frozen=True)
class RawSample:
    """One sample: encoded pictures by field (`image` first among them), and its JSON."""

    key: str
    pictures: dict[str, Picture]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A sample that is not used: its key, a short reason (a word of a table), and what was seen.

    `file` and `line` (a record's number, from 0) say where, if not in the shard itself.
    """

    key: str
    reason: str
    detail: str = ""
    file: str = ""
    line: int | None = None


class RefusedSample(DataError):
    """A sample that cannot be written; `rejected` says why."""

    def __init__(self, path: Location, rejected: Rejected) -> None:
        why = rejected.detail or REASONS[rejected.reason]
        super().__init__(f"{path}: sample {rejected.key!r}: {why}")
        self.rejected = rejected


class MemberName(NamedTuple):
    """A member's name taken apart; `field` is empty where the extension is not a known one."""

    key: str
    field: str
    extension: str


def split_name(name: str) -> MemberName:
    """Key, field and extension of a member; only a known field or extension ends the key."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.rpartition(".")
    extension = extension.lower() if stem else ""
    stem = stem or file
    field_name = ""
    if extension in PICTURE_EXTENSIONS:
        field_name = "image"
        head, _, tail = stem.rpartition(".")
        if head and PICTURE_FIELD.fullmatch(tail):
            stem, field_name = head, tail
    elif extension in TEXT_EXTENSIONS:
        field_name = extension
    return MemberName(folder + slash + stem, field_name, extension)


# ------------------------------------------------------------------ reading


@dataclass
class _Group:
    """The members of one key while they go by."""

    key: str
    pictures: dict[str, Picture] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    num_bytes: int = 0
    problem: Rejected | None = None

    def refuse(self, reason: str, detail: str = "") -> None:
        self.problem = self.problem or Rejected(self.key, reason, detail)
        self.pictures.clear()
        self.texts.clear()

    def keep(self, name: MemberName, data: bytes) -> None:
        """Take a member's content, unless the sample is refused already."""
        self.suffixes.add(name.field)
        self.num_bytes += len(data)
        if self.num_bytes > MAX_SAMPLE_BYTES:
            self.refuse("sample_too_large")
        elif name.extension in TEXT_EXTENSIONS and len(data) > MAX_TEXT_BYTES:
            self.refuse("text_too_large", f"{name.field}: {len(data)} bytes")
        elif self.problem is None and name.extension in TEXT_EXTENSIONS:
            self.texts[name.field] = data
        elif self.problem is None:
            self.pictures[name.field] = Picture(data, name.extension)


class RawShardReader:
    """Iterates over a raw shard's samples and refusals, in the order of the tar, once.

    Every key that the shard holds comes out exactly once, as `RawSample` or `Rejected` (a key that
    comes back later is one more `Rejected`). After the last item these are complete:

    - `inputs`: how many items there were;
    - `damaged`: None, or what is wrong with the tar as a whole. The samples before the damage have
      come out; the one it cuts is `cut_short` unless it already has every kind of member that the
      sample before it had;
    - `sha256`, `num_bytes` of the whole stream;
    - `ignored`: members of other kinds, counted by extension; they are never opened.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self.inputs = 0
        self.damaged: str | None = None
        self.ignored: dict[str, int] = {}
        self._stream = stream
        self._tar = TarStream(stream)
        self._seen: set[str] = set()
        self._last_suffixes: set[str] = set()

    @classmethod
    def open(cls, path: str | Location) -> "RawShardReader":
        """A reader of a file, local or remote.

        Raises:
            DataError: the file cannot be opened.
        """
        try:
            stream = open_stream(locate(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        return cls(stream, locate(path).name)

    def __enter__(self) -> "RawShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def sha256(self) -> str:
        return self._tar.sha256

    @property
    def num_bytes(self) -> int:
        return self._tar.num_bytes

    def __iter__(self) -> Iterator[RawSample | Rejected]:
        group: _Group | None = None
        members = self._tar.members()
        while True:
            try:
                member = next(members, None)
            except Damaged as damage:
                self.damaged = str(damage)
                yield from self._finish_damaged(group, damage.member)
                return
            if member is None:
                break
            name = split_name(_printable(member.name))
            if group is None or name.key != group.key:
                if group is not None:
                    yield self._finish(group)
                group = _Group(name.key)
            self._add(group, name, member)
        if group is not None:
            yield self._finish(group)

    def _finish_damaged(
        self, group: _Group | None, cut_member: str | None
    ) -> Iterator[RawSample | Rejected]:
        """The sample before the damage, and the one whose member it cuts."""
        cut_key = None if cut_member is None else split_name(_printable(cut_member)).key
        if group is not None:
            # At a member's border nothing tells whether more was to follow, but the neighbour.
            whole = bool(self._last_suffixes) and group.suffixes >= self._last_suffixes
            if cut_key == group.key or (cut_key is None and not whole):
                group.problem = Rejected(group.key, "cut_short", self.damaged or "")
            yield self._finish(group)
        if cut_key is not None and (group is None or cut_key != group.key):
            cut = _Group(cut_key)
            cut.refuse("cut_short", self.damaged or "")
            yield self._finish(cut)

    def _add(self, group: _Group, name: MemberName, member: Member) -> None:
        problem = name_problem(member.name, name.key)
        if problem:
            group.refuse(problem)
        elif not member.is_file:
            group.refuse("not_a_file", member.name)
        elif not name.field:
            kind = name.extension[:16]
            self.ignored[kind] = self.ignored.get(kind, 0) + 1
        elif member.data is None:
            group.refuse("member_too_large", f"{member.name}: {member.num_bytes} bytes")
        elif name.field in group.suffixes:
            group.refuse("duplicate_member", member.name)
        else:
            group.keep(name, member.data)

    def _finish(self, group: _Group) -> RawSample | Rejected:
        self.inputs += 1
        if group.key in self._seen:
            return Rejected(group.key, "duplicate_key")
        self._seen.add(group.key)
        self._last_suffixes = group.suffixes
        if group.problem:
            return group.problem
        meta = _read_texts(group.texts)
        if isinstance(meta, str):
            return Rejected(group.key, meta)
        if not group.pictures and not any(meta.get(name) for name in TEXT_ONLY_FIELDS):
            return Rejected(group.key, "missing_picture")
        return RawSample(group.key, dict(sorted(group.pictures.items())), meta)


def _printable(name: str) -> str:
    """The name with bytes that are not UTF-8 written as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_problem(name: str, key: str) -> str | None:
    """The reason why a member's name, or the key in it, is refused; None where it is good."""
    if _printable(name) != name:
        return "name_not_utf8"
    parts = key.split("/")
    if not key or key.startswith("/") or ".." in parts or "" in parts or not key.isprintable():
        return "unsafe_name"
    return "name_too_long" if len(key.encode()) > MAX_KEY_BYTES else None


def _read_texts(texts: dict[str, bytes]) -> dict[str, Any] | str:
    """The sample's JSON with the caption of its txt where it has none; or a reason."""
    try:
        decoded = {name: data.decode("utf-8") for name, data in texts.items()}
    except UnicodeDecodeError:
        return "text_not_utf8"
    meta: dict[str, Any] = {}
    if "json" in decoded:
        if sum(map(decoded["json"].count, ",[{")) > MAX_JSON_PARTS:
            return "text_too_large"
        try:
            meta = json.loads(decoded["json"], parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return "bad_json"
        if not isinstance(meta, dict):
            return "bad_json"
    if "txt" in decoded and not isinstance(meta.get("caption"), str):
        meta["caption"] = decoded["txt"].strip()
    return json_problem(meta) or meta


def json_problem(meta: dict[str, Any]) -> str | None:
    """The reason why a sample's JSON is not one; None where it is."""
    tasks = meta.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        return "bad_json"
    try:
        canonical_json(meta)
    except (UnicodeEncodeError, RecursionError):  # half a surrogate pair in an escape
        return "text_not_utf8"
    except (TypeError, ValueError):  # 1e999 reads as infinity
        return "bad_json"
    return None


# ------------------------------------------------------------------ writing


@dataclass(frozen=True)
class RawShardStats:
    """What a written raw shard holds; the file `<shard>.json` beside it, written last."""

    samples: int
    bytes: int
    sha256: str


class RawShardWriter:
    """Writes one raw shard: plain ustar, mtime, uid and gid 0, names sorted within a sample.

        with RawShardWriter(locate("train/00000.tar")) as writer:
            writer.add(RawSample("cat", {"image": Picture(data, "jpg")}, {"caption": "a cat"}))
            stats = writer.close()

    Nothing is visible before `close`, and nothing remains without it. Starting a writer deletes
    what a dead one left under the same name: the caller holds the claim to it.
    """

    def __init__(self, path: Location) -> None:
        self._path = path
        self._tar = WholeFile(path)
        self._hash = hashlib.sha256()
        self._keys: set[str] = set()
        self._num_bytes = 0

    def __enter__(self) -> "RawShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.__exit__(*error)

    def add(self, sample: RawSample) -> None:
        """Append a sample; its key is new in the shard and safe as a file name.

        Raises:
            RefusedSample: a key that was used before or is no file name, or a value that is not
                JSON; the shard is as it was.
            MachineError: the disk is full.
        """
        problem = name_problem(sample.key, sample.key)
        if sample.key in self._keys:
            problem = "duplicate_key"
        problem = problem or json_problem(sample.meta)
        if problem:
            raise RefusedSample(self._path, Rejected(sample.key, problem))
        self._keys.add(sample.key)
        members = {f"{sample.key}.json": canonical_json(sample.meta)}
        for field_name, picture in sample.pictures.items():
            infix = "" if field_name == "image" else f".{field_name}"
            members[f"{sample.key}{infix}.{picture.extension}"] = picture.data
        for name, data in sorted(members.items()):
            self._write(tar_header(name, len(data)))
            self._write(data)
            self._write(bytes(-len(data) % BLOCK_BYTES))

    def close(self, before_publish: Callable[[], None] | None = None) -> RawShardStats:
        """End the tar and give it its name; `before_publish` may raise to stop that."""
        self._write(bytes(2 * BLOCK_BYTES))
        if before_publish is not None:
            before_publish()
        self._tar.publish(before_publish)
        return RawShardStats(len(self._keys), self._num_bytes, self._hash.hexdigest())

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._hash.update(data)
        self._num_bytes += len(data)


def try_add(writer: RawShardWriter, sample: RawSample) -> Rejected | None:
    """The sample into the shard, or why it cannot be written."""
    try:
        writer.add(sample)
    except RefusedSample as refusal:
        return refusal.rejected
    return None


def write_some(output: Location, items: Iterable[RawSample | Rejected], seconds: float) -> int:
    """The first samples of a source or of other shards as one raw shard; returns their number.

    It ends after about so many seconds, or with 3 MB of pictures, but not before 16 samples; with
    64 in any case.
    """
    output.mkdir(parents=True, exist_ok=True)
    began, count, num_bytes = time.monotonic(), 0, 0
    with RawShardWriter(output / "00000.tar") as writer:
        for item in items:
            if isinstance(item, Rejected) or try_add(writer, item) is not None:
                continue
            count += 1
            num_bytes += sum(len(picture.data) for picture in item.pictures.values())
            is_enough = time.monotonic() - began > seconds or num_bytes > _MOST_BYTES
            if count >= _MOST or (count >= _LEAST and is_enough):
                break
        writer.close()
    return count
