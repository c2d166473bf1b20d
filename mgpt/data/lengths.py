"""How many tokens each sample gives, for every task and template variant, counted once.

Packing needs lengths before it reads a code. They follow from the text and the sizes of the
pictures, so no code is read to count them. The counts of each task are kept beside the shards as
`lengths/<fingerprint>.npy` (npy arrays one after another, mapped), where the fingerprint covers
the shards, the vocabulary and the task templates: whatever changes a count changes it.

    lengths = load_lengths(open_dataset("output/512"), vocab, ["caption", "text_to_image"])
    lengths["caption"].counts_NVC[0, 1]      # sample 0, variant 1: tokens, trained, cut, after cut
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mgpt.data.arrays import encode_arrays, map_arrays
from mgpt.data.dataset import TokenisedDataset
from mgpt.data.draws import identity64
from mgpt.errors import DataError, MachineError
from mgpt.storage import Location, local_copy, write_whole
from mgpt.tasks.registry import SampleView, can_serve, task, tasks_fingerprint
from mgpt.tokens.chat import count
from mgpt.tokens.unirep import LATENTS_PER_GRID
from mgpt.tokens.vocab import Vocabulary

TOKENS, TRAINED, CUT, TRAINED_AFTER_CUT = range(4)
PROGRESS_EVERY = 512  # samples
LENGTHS_FOLDER = "lengths"  # beside the shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskLengths:
    """The samples of a data set that can serve one task, in order, with their counts.

    Columns of `counts_NVC` (uint32, V variants): tokens; trained tokens; `guidance_cut`, the place
    of the first trained picture, 0 for none; tokens still trained when all before it is dropped.
    """

    samples_N: np.ndarray
    identities_N: np.ndarray
    counts_NVC: np.ndarray

    def __len__(self) -> int:
        return len(self.samples_N)


Lengths = dict[str, TaskLengths]


def load_lengths(
    dataset: TokenisedDataset,
    vocab: Vocabulary,
    task_names: Iterable[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> Lengths:
    """Counts of each task over a data set, from the file beside the shards or made now.

    Args:
        task_names: names of `READINGS`.
        on_progress: called with (samples counted, samples in all) while counting.

    Raises:
        ConfigError: an unknown task.
        DataError: a sample that its task cannot use, named by shard and key.
    """
    names = sorted(set(task_names))
    paths = {name: _path(dataset, vocab, name) for name in names}
    arrays = {name: _read(path) for name, path in paths.items()}
    missing = [name for name in names if arrays[name] is None]
    if missing:
        counted = _count_all(dataset, vocab, missing, on_progress)
        arrays |= counted
        try:
            for name, three in counted.items():
                if len(three[0]):
                    write_whole(paths[name], encode_arrays(three))
        except MachineError as error:
            logger.warning("lengths are counted again at the next start: %s", error)
    return {name: TaskLengths(*three) for name, three in arrays.items() if three is not None}


def lengths_fingerprint(dataset: TokenisedDataset, vocab: Vocabulary, name: str) -> str:
    """16 hex digits over everything that a count depends on."""
    parts = [dataset.fingerprint, vocab.fingerprint, tasks_fingerprint(), name]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _path(dataset: TokenisedDataset, vocab: Vocabulary, name: str) -> Location:
    return dataset.folder / LENGTHS_FOLDER / f"{lengths_fingerprint(dataset, vocab, name)}.npy"


def _read(path: Location) -> list[np.ndarray] | None:
    try:
        return map_arrays(local_copy(path), 3, "delete it, and it is made again", path)
    except FileNotFoundError:
        return None


def _count_all(
    dataset: TokenisedDataset,
    vocab: Vocabulary,
    names: list[str],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, list[np.ndarray]]:
    """Samples, identities and counts of each task."""
    samples: dict[str, list[int]] = {name: [] for name in names}
    identities: dict[str, list[int]] = {name: [] for name in names}
    counts: dict[str, list[list[tuple[int, ...]]]] = {name: [] for name in names}
    for index in range(len(dataset)):
        shard, number = dataset.locate(index)
        meta, shapes = shard.meta(number), shard.shapes(number)
        view = SampleView(meta, shapes, dataset.latent_px)
        for name in names:
            if not can_serve(name, meta, shapes):
                continue
            try:
                for side in {side for shape in shapes.values() for side in shape}:
                    vocab.size_token(side // LATENTS_PER_GRID)
                variants = [
                    count(task(name).build(view, variant), shapes, vocab)
                    for variant in range(task(name).variants)
                ]
            except DataError as error:
                raise DataError(
                    f"{dataset.folder}/{shard.name}.tar: sample {shard.key(number)!r} "
                    f"cannot serve task {name}: {error}"
                ) from error
            samples[name].append(index)
            identities[name].append(identity64(*dataset.identity(index)))
            counts[name].append(
                [(c.tokens, c.trained, c.guidance_cut, c.trained_after_cut) for c in variants]
            )
        if on_progress is not None and (index + 1) % PROGRESS_EVERY == 0:
            on_progress(index + 1, len(dataset))
    if on_progress is not None:
        on_progress(len(dataset), len(dataset))
    return {
        name: [
            np.array(samples[name], dtype=np.uint32),
            np.array(identities[name], dtype=np.uint64),
            np.array(counts[name], dtype=np.uint32).reshape(-1, task(name).variants, 4),
        ]
        for name in names
    }
