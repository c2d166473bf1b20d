"""Raw shards: webdataset tars of encoded pictures and their texts, read strictly, written alike.

A raw shard is img2dataset's layout: per sample consecutive members `<key>.jpg|png|webp` (the field
`image`), `<key>.<field>.png` for further pictures, `<key>.txt` (a caption) and `<key>.json`. This
module turns such a stream into samples and refusals in bounded memory, and writes one
with bytes that depend on the samples alone. It never decodes a picture, never unpickles, and
extracts nothing to the disk. It knows no codes, tasks or resolutions.

Plain webdataset ends a shard that is cut at a member's border without a word, and cuts keys at the
first dot. Here the end marker must be there, and a key ends before a known field and extension
(`data_pipeline.raw.member_names`):

    >>> with RawShardReader.open("00000.tar") as reader:
    ...     for item in reader:                       # RawSample | Rejected
    ...         ...
    >>> reader.inputs, reader.damaged, reader.sha256  # complete once the loop has ended
    (1000, None, '3f…')
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_pipeline.raw.member_names import (
    MAX_KEY_BYTES,
    NO_MEMBERS,
    TEXT_EXTENSIONS,
    MemberName,
    name_problem,
    printable,
    split_name,
)
from data_pipeline.raw.sample_texts import json_problem, read_texts
from data_pipeline.raw.scattered import (
    HOW_TO_SORT,
    MAX_HELD_BYTES,
    Gathering,
    find_scattered,
    is_system_member,
)
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

_LEAST, _MOST, _MOST_BYTES = 16, 64, 3_000_000  # of `write_some`
TEXT_ONLY_FIELDS = ("dialog", "text", "conversations", "interleaved")

REASONS = {
    "bad_json": "the json is not one JSON object, or a field of it has another type",
    "cut_short": "the shard ends inside the sample",
    "duplicate_key": "the key was used before in this shard; the first one counts",
    "duplicate_member": "two members for one field",
    "member_too_large": f"a member above {MAX_MEMBER_BYTES} bytes",
    "members_apart": "members of the sample that are apart in the tar and cannot be joined",
    "missing_picture": "neither a picture nor text to train on",
    "name_not_utf8": "a member name that is not UTF-8",
    "name_too_long": f"a key above {MAX_KEY_BYTES} bytes",
    "not_a_file": "a link or device where a file should be",
    "sample_too_large": f"members of more than {MAX_SAMPLE_BYTES} bytes in all",
    "text_not_utf8": "a text that is not UTF-8",
    "text_too_large": f"a text above {MAX_TEXT_BYTES} bytes, or JSON of many parts",
    "unsafe_name": "an absolute name, one with '..' or control characters, or one without a key",
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


# ------------------------------------------------------------------ reading


@dataclass
class _Group:
    """The members of one key while they go by."""

    key: str
    pictures: dict[str, Picture] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    num_bytes: int = 0
    num_members: int = 0
    problem: Rejected | None = None

    @property
    def held_bytes(self) -> int:
        return 0 if self.problem else self.num_bytes

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
    - `ignored`: members of other kinds, counted by extension; they are never opened;
    - `captions`: how many samples with pictures have a caption.

    Members of one key that are apart are joined (`data_pipeline.raw.scattered`).
    """

    def __init__(
        self, stream: BinaryIO, name: str, members: Mapping[str, str] = NO_MEMBERS
    ) -> None:
        self.name = name
        self.captions = 0
        self._members = members
        self._gathered: dict[str, _Group] = {}
        self.inputs = 0
        self.damaged: str | None = None
        self.ignored: dict[str, int] = {}
        self._stream = stream
        self._tar = TarStream(stream)
        self._seen: set[str] = set()
        self._last_suffixes: set[str] = set()

    @classmethod
    def open(
        cls, path: str | Location, members: Mapping[str, str] = NO_MEMBERS
    ) -> "RawShardReader":
        """A reader of a file, local or remote; `members` as `split_name`.

        Raises:
            DataError: the file cannot be opened.
        """
        try:
            stream = open_stream(locate(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        return cls(stream, locate(path).name, members)

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
        scattered = find_scattered(self._stream, lambda name: self._split(name)[:2])
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
            if is_system_member(member.name):
                self.ignored["system file"] = self.ignored.get("system file", 0) + 1
                continue
            name = self._split(member.name)
            if group is not None and name.key != group.key:
                yield self._finish(group, scattered.fields)
                group = None
            if (gathering := scattered.keys.get(name.key)) is not None:
                if whole := self._gather(name, member, gathering):
                    yield self._finish(whole, scattered.fields)
                continue
            group = group or _Group(name.key)
            self._add(group, name, member)
        if group is not None:
            yield self._finish(group)

    def _split(self, name: str) -> MemberName:
        return split_name(printable(name), self._members)

    def _gather(self, name: MemberName, member: Member, gathering: Gathering) -> _Group | None:
        """The group of a key whose members are apart, once it has them all."""
        group = self._gathered.setdefault(name.key, _Group(name.key))
        if not gathering.is_sample:
            group.refuse("members_apart", f"{member.name}: {HOW_TO_SORT}")
        self._add(group, name, member)
        group.num_members += 1
        if group.num_members == gathering.num_members:
            return self._gathered.pop(name.key)
        if sum(one.held_bytes for one in self._gathered.values()) > MAX_HELD_BYTES:
            limit = f"more than {MAX_HELD_BYTES >> 20} MiB would have to be held"
            group.refuse("members_apart", f"{limit}: {HOW_TO_SORT}")
        return None

    def _finish_damaged(
        self, group: _Group | None, cut_member: str | None
    ) -> Iterator[RawSample | Rejected]:
        """The sample before the damage, and the one whose member it cuts."""
        cut_key = None if cut_member is None else self._split(cut_member).key
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
            group.refuse(problem, f"member {printable(member.name)[:200]!r}")
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

    def _finish(self, group: _Group, wanted: frozenset[str] = frozenset()) -> RawSample | Rejected:
        """The sample, or why it is none; `wanted`: fields without which it is not whole."""
        self.inputs += 1
        if not wanted <= group.suffixes and not group.problem:
            lacking = ", ".join(sorted(wanted - group.suffixes))
            group.refuse("cut_short", f"the tar is cut before its {lacking}; {HOW_TO_SORT}")
        if group.key in self._seen:
            return Rejected(group.key, "duplicate_key")
        self._seen.add(group.key)
        self._last_suffixes = group.suffixes
        if group.problem:
            return group.problem
        meta = read_texts(group.texts)
        if isinstance(meta, tuple):
            return Rejected(group.key, *meta)
        if not group.pictures and not any(meta.get(name) for name in TEXT_ONLY_FIELDS):
            found = ", ".join(sorted(group.suffixes)) or "none of a known kind"
            return Rejected(group.key, "missing_picture", f"members: {found}")
        self.captions += bool(group.pictures) and bool(meta.get("caption"))
        return RawSample(group.key, dict(sorted(group.pictures.items())), meta)


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
        refused = Rejected(sample.key, problem, repr(sample.key)) if problem else None
        if refused is None and (found := json_problem(sample.meta)) is not None:
            refused = Rejected(sample.key, *found)
        if refused is not None:
            raise RefusedSample(self._path, refused)
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
