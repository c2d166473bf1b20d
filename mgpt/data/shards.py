"""The tokenised shard: its writer, reader, index and manifest, side by side.

A shard is three files, each whole or not there at all, the manifest written last:

    <name>.tar         plain ustar: per sample `key.json`, then `key.<field>.npy` (codes [h, w],
                       uint16, or uint32 of a codebook of more than 65,536)
    <name>.index.npy   three npy arrays one after another: samples, fields, key bytes; mapped
    <name>.json        the manifest: counts, sizes, sha256 of both, origin, rejects, fingerprints

The bytes depend on the samples alone: mtime, uid and gid are 0, fields and JSON names are sorted,
and no host, process or time is written. It holds codes and text but no ids, so vocabulary and
templates can change without encoding a picture again. Nothing here knows a task or a vocabulary.

    with ShardWriter(folder, "00000") as writer:
        writer.add(TokenisedSample("cat", {"caption": "a cat"}, {"image": codes_HW}))
        writer.close({"raw": {"name": "00000", "sha256": digest}, "num_codes": 8192, ...})
    Shard(folder, "00000").sample(0).codes["image"].shape       # one seek, one read

`mgpt.data.dataset` joins the shards of a folder; `mgpt.data.verify` proves them.
"""

import dataclasses
import hashlib
import json
import re
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgpt.data.arrays import encode_arrays, map_arrays
from mgpt.data.sample_bytes import (
    BLOCK_BYTES,
    NPY_HEADER_BYTES,
    TokenisedSample,
    canonical_json,
    encode_sample,
    npy_header,
)
from mgpt.errors import DataError
from mgpt.files.local_copies import local_copy
from mgpt.files.storage import Location, WholeFile, locate, read_all, read_at, write_new
from mgpt.tokens.codes import code_dtype

FORMAT = "mgpt tokenised shard 1"
TAR_END = bytes(2 * BLOCK_BYTES)

# Offsets point at payloads; a field's counts from its sample's JSON payload. `first_field` and
# `key_end` are running totals, so a sample's fields and key lie between its own and a neighbour's.
SAMPLE_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("json_bytes", "<u4"),
        ("first_field", "<u4"),
        ("key_end", "<u4"),
        ("tasks", "<u8"),
    ]
)
FIELD_DTYPE = np.dtype([("offset", "<u4"), ("name", "<u2"), ("height", "<u2"), ("width", "<u2")])
_SAMPLE_ROW = struct.Struct("<QIIIQ")  # the same rows: one is read in a quarter of numpy's time
_FIELD_ROW = struct.Struct("<IHHH")
_Field = tuple[int, str, tuple[int, int], int]  # offset, name, (height, width), end
MAX_NAMES = 64  # bits of the task mask

SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Manifest:
    """What a finished shard holds and where it came from; its file is the last one written.

    `raw` names the raw shard (name, sha256, inputs, damaged), `rejected` lists [key, reason] of
    every raw identity that was not written. `fields` and `tasks` are the name tables of the index.
    """

    shard: str
    samples: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str
    fields: tuple[str, ...]
    tasks: tuple[str, ...]
    raw: dict[str, Any]
    rejected: tuple[tuple[str, str], ...]
    resolution_px: int
    latent_px: int
    num_codes: int
    vq_fingerprint: str
    settings_fingerprint: str


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON with a checksum of itself, so that no byte can change unnoticed."""
    values = {"format": FORMAT, **dataclasses.asdict(manifest)}
    values["checksum"] = hashlib.sha256(canonical_json(values)).hexdigest()
    return json.dumps(values, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n"


class IndexBuilder:
    """Collects what the index and its name tables hold while samples go by in order."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int, int, int, tuple[str, ...]]] = []
        self.fields: list[tuple[int, str, int, int]] = []
        self.keys = bytearray()
        self.position = 0

    def add(
        self,
        sample: TokenisedSample,
        num_bytes: int,
        json_bytes: int,
        fields: list[tuple[int, str, int, int]],
    ) -> None:
        tasks = tuple(sample.meta.get("tasks", []))
        self.keys += sample.key.encode()
        self.samples.append(
            (self.position + BLOCK_BYTES, json_bytes, len(self.fields), len(self.keys), tasks)
        )
        self.fields += fields
        self.position += num_bytes

    def finish(self) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
        """Bytes of the index file, field names, task names."""
        field_names = sorted({name for _, name, _, _ in self.fields})
        task_names = sorted({name for *_, tasks in self.samples for name in tasks})
        if len(task_names) > MAX_NAMES:
            raise DataError(f"a shard can name {MAX_NAMES} tasks, this one has {len(task_names)}")
        bit = {name: 1 << place for place, name in enumerate(task_names)}
        place = {name: number for number, name in enumerate(field_names)}
        samples = np.array(
            [(*numbers, sum(bit[name] for name in set(tasks))) for *numbers, tasks in self.samples],
            dtype=SAMPLE_DTYPE,
        )
        fields = np.array(
            [(offset, place[name], height, width) for offset, name, height, width in self.fields],
            dtype=FIELD_DTYPE,
        )
        keys = np.frombuffer(bytes(self.keys), np.uint8)
        return encode_arrays([samples, fields, keys]), tuple(field_names), tuple(task_names)


# ------------------------------------------------------------------ writer


class ShardWriter:
    """Writes one shard; nothing is visible before `close`, and nothing remains without it.

        with ShardWriter(folder, "00007") as writer:
            for sample in samples:
                writer.add(sample)
            writer.close(manifest_extra)

    The tar streams to a temporary file. What a dead writer left is deleted: the caller holds the
    claim to the name.
    """

    def __init__(self, folder: str | Location, name: str) -> None:
        if not SHARD_NAME.fullmatch(name):
            raise DataError(f"shard name {name!r}: use letters, digits, '.', '_' and '-'")
        self.folder, self.name = locate(folder), name
        self._tar_path = self.folder / f"{name}.tar"
        self._tar = WholeFile(self._tar_path)
        self._index = IndexBuilder()
        self._keys: set[str] = set()
        self._hash = hashlib.sha256()
        self._max_code = -1
        self._code_types: set[np.dtype] = set()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.__exit__(*error)

    def add(self, sample: TokenisedSample) -> None:
        """Append a sample with a new key. Raises DataError (a key twice, a name that does not fit,
        a value that is not JSON) or MachineError (the disk is full)."""
        if sample.key in self._keys:
            raise DataError(f"{self._tar_path}: key {sample.key!r} comes twice; keys are unique")
        block, json_bytes, fields = encode_sample(sample)
        self._keys.add(sample.key)
        self._max_code = max(
            [self._max_code, *(int(codes.max()) for codes in sample.codes.values() if codes.size)]
        )
        self._code_types.update(codes.dtype for codes in sample.codes.values())
        self._write(block)
        self._index.add(sample, len(block), json_bytes, fields)

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._hash.update(data)

    def close(
        self,
        manifest_extra: Mapping[str, Any],
        before_publish: Callable[[], None] | None = None,
    ) -> Manifest:
        """Publish tar, index and manifest, in this order, and return the manifest.

        Args:
            manifest_extra: `raw`, `rejected`, `resolution_px`, `latent_px`, `num_codes`,
                `vq_fingerprint`, `settings_fingerprint` of `Manifest`.
            before_publish: called once everything but the names is done, and again before the
                manifest; it raises to stop the shard from appearing (a claim that was lost).

        Raises:
            DataError: a code at or above `num_codes`.
        """
        extra = dict(manifest_extra)
        assert extra["raw"].get("name"), "the raw shard's name is half of a sample's identity"
        if self._max_code >= extra["num_codes"]:
            raise DataError(
                f"{self._tar_path}: holds code {self._max_code}, but the VQ model has "
                f"{extra['num_codes']} codes; encode with the model the manifest names"
            )
        wanted = code_dtype(extra["num_codes"])
        assert self._code_types <= {wanted}, (self._code_types, wanted)
        rejected = sorted((str(key), str(reason)) for key, reason in extra.pop("rejected", ()))
        self._write(TAR_END)
        index, fields, tasks = self._index.finish()
        manifest = Manifest(
            shard=self.name,
            samples=len(self._index.samples),
            bytes=self._index.position + len(TAR_END),
            sha256=self._hash.hexdigest(),
            index_bytes=len(index),
            index_sha256=hashlib.sha256(index).hexdigest(),
            fields=fields,
            tasks=tasks,
            rejected=tuple(rejected),
            **extra,
        )
        check = before_publish or (lambda: None)
        manifest_path = self.folder / f"{self.name}.json"

        def replace_tar() -> None:
            check()
            # An older manifest must not vouch for a newer tar, should this worker die in between.
            manifest_path.unlink(missing_ok=True)

        check()
        self._tar.publish(replace_tar)
        write_new(self.folder / f"{self.name}.index.npy", index, check)
        check()
        write_new(manifest_path, encode_manifest(manifest), check)
        return manifest


# ------------------------------------------------------------------ reader


def read_manifest(folder: str | Location, name: str) -> Manifest:
    """The manifest of one shard, checked against its own checksum.

    Raises:
        DataError: missing, not a manifest, or altered.
    """
    return read_manifests(folder, [name])[0]


def read_manifests(folder: str | Location, names: Sequence[str]) -> list[Manifest]:
    """`read_manifest` of many; remote ones are fetched side by side."""
    paths = [locate(folder) / f"{name}.json" for name in names]
    return [_parse_manifest(*both) for both in zip(paths, names, read_all(paths), strict=True)]


def _parse_manifest(path: Location, name: str, text: bytes | None) -> Manifest:
    if text is None:
        raise DataError(f"{path}: no such manifest; the shard was never finished")
    try:
        values = json.loads(text)
        format_name = values.pop("format")
        values.pop("checksum")
        values["rejected"] = tuple((key, reason) for key, reason in values["rejected"])
        values["fields"], values["tasks"] = tuple(values["fields"]), tuple(values["tasks"])
        manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a shard manifest ({error}); tokenise it again") from error
    if format_name != FORMAT:
        raise DataError(f"{path}: format {format_name!r}, this version reads {FORMAT!r}")
    if manifest.shard != name or encode_manifest(manifest) != text:
        raise DataError(f"{path}: differs from its own checksum; restore or tokenise it again")
    return manifest


class Shard:
    """One finished shard, by sample number; a sample costs one seek and one read.

    Of a remote shard the index is copied to the local cache, and a sample is one ranged request.
    Safe to read from several threads. Holds two file descriptors until it is garbage.
    """

    def __init__(self, folder: str | Location, name: str, manifest: Manifest | None = None) -> None:
        self.folder, self.name = locate(folder), name
        self.manifest = manifest if manifest is not None else read_manifest(folder, name)
        self._path = self.folder / f"{name}.tar"
        index_path = self.folder / f"{name}.index.npy"
        remedy = "run mgpt reindex on its folder"
        try:
            local = local_copy(index_path, self.manifest.index_sha256)
        except FileNotFoundError as error:
            raise DataError(f"{index_path}: missing; {remedy}") from error
        self._samples, self._fields, self._keys = map_arrays(local, 3, remedy, index_path)
        if self._samples.dtype != SAMPLE_DTYPE or self._fields.dtype != FIELD_DTYPE:
            raise DataError(f"{index_path}: columns of another format; tokenise the shard again")
        if len(self._samples) != self.manifest.samples:
            raise DataError(
                f"{index_path}: {len(self._samples)} samples, its manifest says "
                f"{self.manifest.samples}; {remedy}"
            )
        self._names = self.manifest.fields
        self._code = code_dtype(self.manifest.num_codes)
        self._sample_rows = self._samples.view(np.uint8).data
        self._field_rows = self._fields.view(np.uint8).data
        self._offsets = np.ascontiguousarray(self._samples["offset"]).data
        first_fields = self._samples["first_field"]
        self._first_fields = np.append(first_fields, np.uint32(len(self._fields))).data
        try:
            self._tar = read_at(self._path)
        except OSError as error:
            raise DataError(f"{self._path}: {error.strerror}; restore the shard") from error
        if self._tar.num_bytes != self.manifest.bytes:
            raise DataError(
                f"{self._path}: {self._tar.num_bytes} bytes, its manifest says "
                f"{self.manifest.bytes}; restore it or tokenise the shard again"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        """The sample's key, as the raw shard spells it (dots included)."""
        start = self._row(index - 1)[3] if index else 0
        return self._keys[start : self._row(index)[3]].tobytes().decode()

    def tasks(self, index: int) -> tuple[str, ...]:
        """The tasks that the sample's JSON lists, sorted; empty when it lists none."""
        mask = self._row(index)[4]
        return tuple(name for bit, name in enumerate(self.manifest.tasks) if mask >> bit & 1)

    def shapes(self, index: int) -> dict[str, tuple[int, int]]:
        """(height, width) in latents of each picture field."""
        return {name: shape for _, name, shape, _ in self._fields_of(index)}

    def meta(self, index: int) -> dict[str, Any]:
        """The sample's JSON alone; no code is read."""
        return self._parse(index, self._read(index, *self._row(index)[:2]))

    def codes(self, index: int, fields: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """The codes of each picture field, or of those named, [h, w]; no JSON is read.

        Raises:
            DataError: the bytes are not what the index says (cut short, altered, another file).
        """
        row = self._first_fields[index]
        if self._first_fields[index + 1] == row + 1:  # one picture takes half the time so
            at, name, high, wide = _FIELD_ROW.unpack_from(self._field_rows, row * _FIELD_ROW.size)
            if fields is not None and self._names[name] not in fields:
                return {}
            at += self._offsets[index]
            num_bytes = NPY_HEADER_BYTES + self._code.itemsize * high * wide
            block = self._tar.read(num_bytes, at)
            if len(block) == num_bytes and block.startswith(
                npy_header(high, wide, self._code.itemsize)
            ):
                codes_HW = np.ndarray((high, wide), self._code, block, NPY_HEADER_BYTES)
                return {self._names[name]: codes_HW}
        rows = [row for row in self._fields_of(index) if fields is None or row[1] in fields]
        if not rows:
            return {}
        first, stop = rows[0][0], rows[-1][3]
        block = self._read(index, self._row(index)[0] + first, stop - first)
        return self._cut(index, block, -first, rows)

    def sample(self, index: int) -> TokenisedSample:
        """The whole sample. Raises `DataError` as `codes` does, and where its JSON is none."""
        offset, json_bytes, *_ = self._row(index)
        rows = self._fields_of(index)
        block = self._read(index, offset, rows[-1][3] if rows else json_bytes)
        meta = self._parse(index, block[:json_bytes])
        return TokenisedSample(self.key(index), meta, self._cut(index, block, 0, rows))

    def _cut(self, index: int, block: bytes, shift: int, rows: list[_Field]) -> dict[str, Any]:
        """The arrays of a block in which the sample's JSON starts at byte `shift`."""
        codes = {}
        for offset, name, shape, _ in rows:
            start = offset + shift
            if not block.startswith(npy_header(*shape, self._code.itemsize), start):
                raise DataError(
                    f"{self._path}: sample {self.key(index)!r}: field {name!r} is not the "
                    f"{list(shape)} array of the index; run mgpt verify on {self.folder}"
                )
            codes[name] = np.ndarray(shape, self._code, block, start + NPY_HEADER_BYTES)
        return codes

    def _row(self, index: int) -> tuple[int, int, int, int, int]:
        """A row of `SAMPLE_DTYPE`: offset, json_bytes, first_field, key_end, tasks."""
        assert 0 <= index < len(self._samples), (index, len(self._samples))
        return _SAMPLE_ROW.unpack_from(self._sample_rows, index * _SAMPLE_ROW.size)

    def _fields_of(self, index: int) -> list[_Field]:
        """The fields in the order of the tar."""
        start, stop = self._first_fields[index], self._first_fields[index + 1]
        size, names, code_bytes = _FIELD_ROW.size, self._names, self._code.itemsize
        rows = _FIELD_ROW.iter_unpack(self._field_rows[start * size : stop * size])
        return [
            (
                offset,
                names[name],
                (high, wide),
                offset + NPY_HEADER_BYTES + code_bytes * high * wide,
            )
            for offset, name, high, wide in rows
        ]

    def _read(self, index: int, offset: int, num_bytes: int) -> bytes:
        data = self._tar.read(num_bytes, offset)
        if len(data) != num_bytes:
            raise DataError(
                f"{self._path}: sample {self.key(index)!r} is cut short: {len(data)} of "
                f"{num_bytes} bytes at {offset}; restore it or tokenise the shard again"
            )
        return data

    def _parse(self, index: int, text: bytes) -> dict[str, Any]:
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(
                f"{self._path}: the JSON of sample {self.key(index)!r} is damaged ({error}); "
                f"run mgpt verify on {self.folder}"
            ) from error
