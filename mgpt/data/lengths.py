"""How many tokens each sample gives, for every task and template variant, counted once.

Packing needs lengths before it reads a code. They follow from the text and the sizes of the
pictures, so no code is read to count them. Counting encodes the text, and its ids are kept too, so
that training encodes none (`mgpt.data.outlines`). Of each task two files stand beside the shards,
npy arrays one after another, mapped:

    lengths/<fingerprint>.npy          samples, identities, counts
    lengths/<fingerprint>.text.npy     outlines

The fingerprint covers the shards, the vocabulary and the task templates: whatever changes a count
changes it. Samples are counted `PART_SAMPLES` at a time, and each part is kept until all are there:
memory does not grow with the corpus, and a count that was stopped goes on. Where the shards'
folder cannot be written, the files stand in the cache folder.

    lengths = load_lengths(open_dataset("output/512"), vocab, ["caption", "text_to_image"])
    lengths["caption"].counts_NVC[0, 1]      # sample 0, variant 1: tokens, trained, cut, after cut
    lengths["caption"].outlines.read(0, 1)   # its text as ids
"""

import hashlib
import itertools
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mgpt.data.arrays import encode_arrays, map_arrays, write_joined
from mgpt.data.dataset import TokenisedDataset, open_dataset
from mgpt.data.draws import identity64
from mgpt.data.outlines import OutlineBuilder, Outlines
from mgpt.errors import DataError, MachineError
from mgpt.files.atomic import atomic_write
from mgpt.files.local_copies import cache_folder, local_copy, record_folder
from mgpt.files.storage import Location, remove_tree, write_whole
from mgpt.tasks.registry import (
    DOCUMENTS,
    READINGS,
    SampleView,
    can_serve,
    task,
    task_fingerprint,
    task_name,
)
from mgpt.tokens.chat import outline
from mgpt.tokens.unirep import LATENTS_PER_GRID
from mgpt.tokens.vocab import Vocabulary

TOKENS, TRAINED, CUT, TRAINED_AFTER_CUT = range(4)
PART_SAMPLES = 1 << 16
PROGRESS_EVERY = 512  # samples
LENGTHS_FOLDER = "lengths"  # beside the shards
PARTS_FOLDER = "parts"  # in it
_NUM_COUNTS = _NUM_OUTLINES = 3  # arrays of each file
_REMEDY = "delete it, and it is made again"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskLengths:
    """The samples of a data set that can serve one task, in order, with counts and outlines.

    Columns of `counts_NVC` (uint32, V variants): tokens; trained tokens; `guidance_cut`, the place
    of the first trained picture, 0 for none; tokens still trained when all before it is dropped.
    """

    samples_N: np.ndarray
    identities_N: np.ndarray
    counts_NVC: np.ndarray
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.samples_N)


Lengths = dict[str, TaskLengths]


def load_lengths(
    dataset: TokenisedDataset,
    vocab: Vocabulary,
    task_names: Iterable[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> Lengths:
    """Counts of each task over a data set, from the files beside the shards or made now.

    Args:
        task_names: names of `READINGS`, or files of own tasks.
        on_progress: called with (samples counted, samples in all) while counting.

    Raises:
        ConfigError: an unknown task.
        DataError: a sample that its task cannot use, named by shard and key.
        MachineError: they can be kept neither beside the shards nor in the cache folder.
    """
    names = sorted(set(task_names))
    places = [dataset.folder / LENGTHS_FOLDER, cache_folder() / LENGTHS_FOLDER]
    stems = {name: lengths_fingerprint(dataset, vocab, name) for name in names}
    arrays = {name: _read(places, stem) for name, stem in stems.items()}
    missing = {name: stems[name] for name in names if arrays[name] is None}
    if missing:
        arrays |= _make(dataset, vocab, missing, places, on_progress or (lambda *_: None))
    fields = _field_table(dataset)
    lengths = {}
    for name, found in arrays.items():
        assert found is not None
        samples_N, identities_N, counts_NVC, text_T, segments_S, ends_NVK = found
        outlines = Outlines(text_T, segments_S, ends_NVK, fields, guided=name not in DOCUMENTS)
        lengths[name] = TaskLengths(samples_N, identities_N, counts_NVC, outlines)
    return lengths


def forget_lengths(folder: Location, vocab: Vocabulary | None) -> None:
    """Delete what is kept of the lengths of a folder of shards, so that they are counted anew; but
    parts of a count with this vocabulary that was stopped stay."""
    place = folder / LENGTHS_FOLDER
    if vocab is None:
        remove_tree(place)
        return
    dataset = open_dataset(folder)
    stems = {lengths_fingerprint(dataset, vocab, name) for name in READINGS}
    for path in [path for path in place.rglob("*") if path.is_file()]:
        if path.parent.name != PARTS_FOLDER or path.name.partition(".")[0] not in stems:
            path.unlink(missing_ok=True)


def lengths_fingerprint(dataset: TokenisedDataset, vocab: Vocabulary, name: str) -> str:
    """16 hex digits over everything that a count depends on."""
    parts = [dataset.fingerprint, vocab.fingerprint, task_fingerprint(name), task_name(name)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _field_table(dataset: TokenisedDataset) -> list[str]:
    return sorted({name for manifest in dataset.manifests for name in manifest.fields})


def _paths(place: Location, stem: str) -> tuple[Location, Location]:
    return place / f"{stem}.npy", place / f"{stem}.text.npy"


def _read(places: Sequence[Location], stem: str) -> list[np.ndarray] | None:
    """The six arrays of a task, from the first place that has them."""
    for place in places:
        counts, text = _paths(place, stem)
        try:
            return [
                *map_arrays(local_copy(counts), _NUM_COUNTS, _REMEDY, counts),
                *map_arrays(local_copy(text), _NUM_OUTLINES, _REMEDY, text),
            ]
        except FileNotFoundError:
            continue
    return None


# ------------------------------------------------------------------ made anew


class _PartGone(MachineError):
    """Another who counted the same was first, and took the parts away."""


@dataclass(frozen=True)
class _Part:
    """The six arrays of one task over some of the samples: in a file; over all samples, here."""

    path: Path
    arrays: list[np.ndarray] | None = None

    def read(self) -> list[np.ndarray]:
        if self.arrays is not None:
            return self.arrays
        if not self.path.is_file():
            raise _PartGone(f"{self.path}: removed while it was in use; start again")
        return map_arrays(self.path, _NUM_COUNTS + _NUM_OUTLINES, _REMEDY)


def _make(
    dataset: TokenisedDataset,
    vocab: Vocabulary,
    stems: dict[str, str],
    places: Sequence[Location],
    on_progress: Callable[[int, int], None],
) -> dict[str, list[np.ndarray]]:
    """Count the tasks, keep the counts in the first place that takes them, and read them there."""
    for place in places:
        try:
            folder = record_folder(place) / PARTS_FOLDER
            parts = _count_in_parts(dataset, vocab, stems, folder, on_progress)
            for name, stem in stems.items():
                if any(len(part.read()[0]) for part in parts[name]):
                    _keep(parts[name], *_paths(place, stem))
            break
        except _PartGone:
            break
        except (MachineError, PermissionError) as error:
            if place == places[-1]:
                raise
            logger.warning("lengths are kept in this machine's cache folder: %s", error)
    # Of a task that no sample serves there is no file, and each part is as empty as the others.
    made = {name: _read(places, stem) or parts[name][0].read() for name, stem in stems.items()}
    for part in itertools.chain(*parts.values()):
        part.path.unlink(missing_ok=True)
    return made


def _count_in_parts(
    dataset: TokenisedDataset,
    vocab: Vocabulary,
    stems: dict[str, str],
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> dict[str, list[_Part]]:
    """The parts of each task; those that a count left that was stopped are taken as they are."""
    parts: dict[str, list[_Part]] = {name: [] for name in stems}
    for start in range(0, max(1, len(dataset)), PART_SAMPLES):
        samples = range(start, min(start + PART_SAMPLES, len(dataset)))
        paths = {name: folder / f"{stem}.{start}.npy" for name, stem in stems.items()}
        lacking = [name for name, path in paths.items() if not path.is_file()]
        counted = _count(dataset, vocab, lacking, samples, on_progress)
        for name, path in paths.items():
            if len(samples) == len(dataset):
                parts[name].append(_Part(path, counted[name]))
                continue
            if name in counted:
                atomic_write(path, encode_arrays(counted[name]))
            parts[name].append(_Part(path))
        on_progress(samples.stop, len(dataset))
    return parts


def _count(
    dataset: TokenisedDataset,
    vocab: Vocabulary,
    names: Sequence[str],
    samples: range,
    on_progress: Callable[[int, int], None],
) -> dict[str, list[np.ndarray]]:
    """The six arrays of each task over some of the samples."""
    found: dict[str, list[int]] = {name: [] for name in names}
    identities: dict[str, list[int]] = {name: [] for name in names}
    counts = {name: array("I") for name in names}
    fields = _field_table(dataset)
    outlines = {name: OutlineBuilder(fields) for name in names}
    for index in samples if names else ():
        shard, number = dataset.locate(index)
        meta, shapes = shard.meta(number), shard.shapes(number)
        view = SampleView(meta, shapes, dataset.latent_px)
        for name in names:
            if not can_serve(name, meta, shapes):
                continue
            try:
                for side in {side for shape in shapes.values() for side in shape}:
                    vocab.size_token(side // LATENTS_PER_GRID)
                for variant in range(task(name).variants):
                    drawn = outline(task(name).build(view, variant), vocab)
                    counts[name].extend(drawn.count(shapes))
                    outlines[name].add(drawn)
            except DataError as error:
                raise DataError(
                    f"{dataset.folder}/{shard.name}.tar: sample {shard.key(number)!r} "
                    f"cannot serve task {name}: {error}"
                ) from error
            found[name].append(index)
            identities[name].append(identity64(*dataset.identity(index)))
        if (index + 1) % PROGRESS_EVERY == 0:
            on_progress(index + 1, len(dataset))
    return {
        name: [
            np.array(found[name], dtype=np.uint32),
            np.array(identities[name], dtype=np.uint64),
            np.array(counts[name], dtype=np.uint32).reshape(-1, task(name).variants, 4),
            *outlines[name].arrays(task(name).variants),
        ]
        for name in names
    }


def _keep(parts: Sequence[_Part], counts: Location, text: Location) -> None:
    """The parts one after another as the two files of a task; the counts last, which are small."""

    def blocks(place: int) -> Iterator[np.ndarray]:
        return (part.read()[place] for part in parts)

    def ends() -> Iterator[np.ndarray]:
        before = np.zeros(2, dtype="<u8")
        for part in parts:
            *_, text_T, segments_S, ends_NVK = part.read()
            yield ends_NVK + before
            before += np.array([len(text_T), len(segments_S)], dtype="<u8")

    def write_text(stream: BinaryIO) -> None:
        write_joined(stream, partial(blocks, _NUM_COUNTS))
        write_joined(stream, partial(blocks, _NUM_COUNTS + 1))
        write_joined(stream, ends)

    def write_counts(stream: BinaryIO) -> None:
        for place in range(_NUM_COUNTS):
            write_joined(stream, partial(blocks, place))

    write_whole(text, write_text)
    write_whole(counts, write_counts)
