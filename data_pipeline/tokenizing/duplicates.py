"""Copies of a picture anywhere in a job: found once, before tokenising, whoever looks first.

A picture is a duplicate where an earlier one, in the order of (raw shard, place in it), has the
same bytes or the same look. That is a property of the raw shards alone: it needs no decision in
the order in which workers happen to come. It takes two passes:

1. Each raw shard's fingerprints, `<output>/duplicates/<shard>.npy`; one unit a shard, shared like
   the units of tokenising.
2. All of them together, `<output>/duplicates/<shard>.json`: {key: [reason, "of <shard>/<key>"]}.
   Every process computes the same files; memory is about 100 bytes a picture.

    known = find_job_duplicates(LookJob("tokens", paths, admission), workers=4, advance=bar.advance)
    known("00000")                                # {"cat": Rejected("cat", "duplicate_picture", …)}
"""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_pipeline.raw.shards import RawShardReader, Rejected
from data_pipeline.tokenizing.admission import Admission
from data_pipeline.tokenizing.claims import Claim
from data_pipeline.tokenizing.filters import FilterConfig, fingerprints
from data_pipeline.tokenizing.looks import LOOK_DTYPE, are_alike
from data_pipeline.tokenizing.workers import run_units
from mgpt.data.shards import canonical_json
from mgpt.errors import DataError
from mgpt.files.storage import Location, locate, write_whole

FOLDER = "duplicates"
RECORD_DTYPE = np.dtype(
    [("content", "S16"), ("look", LOOK_DTYPE), ("has_look", "u1"), ("key_end", "<u8")]
)
Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class LookJob:
    """The first pass, one unit a raw shard; see `data_pipeline.tokenizing.workers.Job`."""

    job_output: str
    paths: Mapping[str, Location]
    admission: Admission
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def output(self) -> Location:
        return locate(self.job_output) / FOLDER

    def units(self) -> list[str]:
        return list(self.paths)

    def finished(self) -> set[str]:
        return {path.stem for path in self.output.glob("*.npy")}

    def is_done(self, unit: str) -> bool:
        return (self.output / f"{unit}.npy").exists()

    def open(self, slot: int) -> "LookWorker":
        return LookWorker(self)

    @property
    def filter_config(self) -> FilterConfig:
        return self.admission.filter_config


class LookWorker:
    """Takes the fingerprints of one raw shard's samples."""

    def __init__(self, job: LookJob) -> None:
        self._job = job

    def work(self, unit: str, claim: Claim, advance: Callable[[int], None]) -> None:
        admission, rows, keys = self._job.admission, [], bytearray()
        filters = admission.filters(known={})
        with RawShardReader.open(self._job.paths[unit], self._job.members) as reader:
            for item in reader:
                pictures = admission.admit(item, filters)
                advance(1)
                if isinstance(item, Rejected) or isinstance(pictures, Rejected) or not pictures:
                    continue
                width, height = next(iter(pictures.values())).size
                if width * height < admission.smallest_px**2:
                    continue  # written nowhere, so nothing is a copy of it
                content, look = fingerprints(item, pictures, admission.filter_config)
                keys += item.key.encode()
                blank = np.zeros((), LOOK_DTYPE)
                rows.append((content, blank if look is None else look, look is not None, len(keys)))
        buffer = io.BytesIO()
        for array in (np.array(rows, RECORD_DTYPE), np.frombuffer(bytes(keys), np.uint8)):
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
        claim.check()
        write_whole(self._job.output / f"{unit}.npy", buffer.getvalue())


Known = Callable[[str], Mapping[str, Rejected]]


def find_job_duplicates(job: LookJob, workers: int, advance: Callable[[int], None]) -> Known:
    """Do what is missing of both passes; the duplicates of a raw shard by its name.

    Raises:
        DataError: fingerprints that cannot be read.
    """
    if not {*job.units()} <= {path.stem for path in job.output.glob("*.json")}:
        run_units(job, workers, advance)
        _write_duplicates(job)
    return KnownDuplicates(job.output)


@dataclass(frozen=True)
class KnownDuplicates:
    """Reads what the second pass wrote; travels to the processes."""

    folder: Location

    def __call__(self, unit: str) -> dict[str, Rejected]:
        found = json.loads((self.folder / f"{unit}.json").read_bytes())
        return {key: Rejected(key, reason, detail) for key, (reason, detail) in found.items()}


def _write_duplicates(job: LookJob) -> None:
    units = job.units()
    parts = [_read(job.output / f"{unit}.npy") for unit in units]
    ends = np.cumsum([len(records) for records, _ in parts])
    records = np.concatenate([records for records, _ in parts])
    first_of, same_bytes = find_duplicates(records, job.filter_config)

    def identity(place: int) -> tuple[int, str]:
        unit = int(np.searchsorted(ends, place, side="right"))
        own, keys = parts[unit]
        number = place - int(ends[unit]) + len(own)
        start = int(own["key_end"][number - 1]) if number else 0
        return unit, keys[start : int(own["key_end"][number])].tobytes().decode()

    found: list[dict[str, tuple[str, str]]] = [{} for _ in units]
    for place in np.flatnonzero(first_of >= 0).tolist():
        unit, key = identity(place)
        first_unit, first_key = identity(int(first_of[place]))
        reason = "duplicate_picture" if same_bytes[place] else "lookalike_picture"
        found[unit][key] = (reason, f"of {units[first_unit]}/{first_key}")
    for name, duplicates in zip(units, found):
        write_whole(job.output / f"{name}.json", canonical_json(duplicates) + b"\n")


def _read(path: Location) -> tuple[Records, npt.NDArray[np.uint8]]:
    try:
        stream = io.BytesIO(path.read_bytes())
        records = np.lib.format.read_array(stream, allow_pickle=False)
        if records.dtype != RECORD_DTYPE:
            raise ValueError("columns of another format")
        return records, np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run again") from error


# ------------------------------------------------------------------ all together


def find_duplicates(
    records_N: Records, cfg: FilterConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of each record the place of an earlier copy, or -1; and whether that has the same bytes.

    An earlier copy counts also where it is a copy itself, so the answer is that of every pair on
    its own, in no order.
    """
    first_of_N = np.full(len(records_N), -1, np.int64)
    same_bytes_N = np.zeros(len(records_N), np.bool_)
    if cfg.drop_duplicates:
        places_N = np.arange(len(records_N))
        firsts_N = _first_equal(records_N["content"])
        same_bytes_N = firsts_N < places_N
        first_of_N[same_bytes_N] = firsts_N[same_bytes_N]
    if cfg.max_look_bits is not None:
        with_look = np.flatnonzero(records_N["has_look"])
        alike = _first_alike(records_N["look"][with_look], cfg.max_look_bits)
        places = with_look[(alike >= 0) & ~same_bytes_N[with_look]]
        first_of_N[places] = with_look[alike[(alike >= 0) & ~same_bytes_N[with_look]]]
    return first_of_N, same_bytes_N


def _first_equal(values_N: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Of each value the first place that holds it."""
    _, first, inverse = np.unique(values_N, return_index=True, return_inverse=True)
    return first[inverse]


def _first_alike(looks_N: Records, max_bits: int) -> npt.NDArray[np.int64]:
    """Of each look the first place before it of one that is alike, or -1.

    Two hashes that differ in at most b of 64 bits are equal in one of b + 1 pieces of them, so
    only those that share a piece are compared.
    """
    firsts_N = _first_equal(np.ascontiguousarray(looks_N).view(f"S{LOOK_DTYPE.itemsize}"))
    unique_U = np.unique(firsts_N)  # places of the first of equal looks, ascending
    hashes_U, best_U = looks_N["bits"][unique_U], unique_U.copy()
    edges = [64 * piece // (max_bits + 1) for piece in range(max_bits + 2)]
    for low, high in itertools.pairwise(edges):
        mask = np.uint64((1 << (high - low)) - 1)
        pieces_U = hashes_U >> np.uint64(low) & mask
        for mine, other in _pairs_of_equal(pieces_U):
            near = np.bitwise_count(hashes_U[mine] ^ hashes_U[other]) <= max_bits
            mine, other = mine[near], other[near]
            looks, others = looks_N[unique_U[mine]], looks_N[unique_U[other]]
            alike = are_alike(looks, others, max_bits)
            mine, other = mine[alike], other[alike]
            best_U[mine] = np.minimum(best_U[mine], unique_U[other])
    # What is alike to a look is alike to all that are equal to it.
    best_N = best_U[np.searchsorted(unique_U, firsts_N)]
    return np.where(best_N < np.arange(len(looks_N)), best_N, -1)


def _pairs_of_equal(
    values_U: npt.NDArray[np.uint64],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """All pairs (later, earlier) of places with equal values; each later one once at a time."""
    order_U = np.argsort(values_U, kind="stable")
    sorted_U = values_U[order_U]
    # Each with the one before it, then the one before that, for as long as the value is the same.
    later, lag = np.arange(1, len(order_U)), 1
    while len(later := later[sorted_U[later] == sorted_U[later - lag]]):
        yield order_U[later], order_U[later - lag]
        lag += 1
        later = later[later >= lag]
