"""Training state as tensors in a folder: one layout for every backend and any number of ranks.

The folder holds safetensors files, each with the pieces that one rank owned, as PyTorch's
Distributed Checkpoint writes them, and `updates.json`; `mgpt.parallel.snapshot` makes it. Names are
`model.<name>` for weights and `<tensor>.<name>` for each state tensor that the optimizer declares
(AdamW's are exp_avg and exp_avg_sq; `ema` are averaged weights), float32, where <name> is the
parameter's name in the model. A sharded parameter is a DTensor split along its first dimension; a
plain tensor is the whole. Reading asks for whatever split the reader has.

    >>> Snapshot.take([("model.norm.weight", torch.ones(8))], 3, World(), copy=False).write(folder)
    >>> target = {"model.norm.weight": torch.empty(8)}
    >>> read_state(folder, target, World())
    SavedState(num_updates=3, has_averages=True)
    >>> [(name, read()) for name, _, _, read in stored_weights(folder)]
    [('norm.weight', tensor([1., 1., ...]))]
"""

import functools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor

from mgpt.errors import CheckpointError
from mgpt.optim.config import OptimConfig
from mgpt.optim.optimizer import AVERAGE, Optimizer
from mgpt.parallel.dist import World
from mgpt.parallel.shapes import check_shapes
from mgpt.parallel.snapshot import UPDATES_FILE

__all__ = [
    "SavedState",
    "checkpoint_bytes",
    "full_tensor",
    "has_averages",
    "is_first_copy",
    "local_part",
    "local_rows",
    "read_state",
    "stored_weights",
    "training_state",
    "weights_checksum",
]

WEIGHTS = "model"
_ITEMSIZE = 4  # float32


def training_state(
    named_parameters: Iterable[tuple[str, nn.Parameter]], optimizer: Optimizer
) -> dict[str, Tensor]:
    """The live tensors of weights and optimizer state under the names of the layout."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_parameters:
        tensors[f"{WEIGHTS}.{name}"] = parameter.detach()
        for key, tensor in optimizer.state[name].items():
            tensors[f"{key}.{name}"] = tensor
    return tensors


def checkpoint_bytes(
    named_parameters: Iterable[tuple[str, nn.Parameter]], optim_cfg: OptimConfig
) -> int:
    """Bytes of all weights and optimizer state of these parameters, whole."""
    shapes = [(name, parameter.shape) for name, parameter in named_parameters]
    weights = sum(shape.numel() for _, shape in shapes)
    return _ITEMSIZE * (weights + optim_cfg.state_numel(shapes))


class SavedState(NamedTuple):
    """What a state folder holds beside its tensors."""

    num_updates: int
    """Updates that the state had seen."""
    has_averages: bool
    """Whether the averaged weights that were asked for, if any, were there."""


def read_state(folder: Path, targets: Mapping[str, Tensor], world: World) -> SavedState:
    """Fills the targets in place, each rank its own pieces; collective.

    Averaged weights may be missing, and are then left as they are, or be there unasked.

    Raises:
        CheckpointError: a name is missing or unknown, a shape differs, another optimizer's state is
            there, or a file is not readable.
    """
    error, count, has_averages = None, 0, True
    try:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        found = {name: entry.size for name, entry in _tensors(reader.read_metadata()).items()}
        asked, saved = (any(map(_is_average, names)) for names in (targets, found))
        has_averages = saved or not asked
        if asked != saved:
            found = {name: size for name, size in found.items() if not _is_average(name)}
            targets = {name: t for name, t in targets.items() if not _is_average(name)}
        _check_same_shapes(folder, found, {name: t.shape for name, t in targets.items()})
        count = int(json.loads((folder / UPDATES_FILE).read_text())["num_updates"])
    except CheckpointError as mismatch:
        error = mismatch
    except Exception as cause:  # safetensors raises its own kinds for a file that is cut short
        error = CheckpointError(f"{folder}: the state could not be read: {cause}")
        error.__cause__ = cause
    world.raise_together(error)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")
        dcp.load(dict(targets), storage_reader=reader, no_dist=world.size == 1)
    return SavedState(count, has_averages)


def stored_weights(
    folder: Path, averaged: bool = False
) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Callable[[], Tensor]]]:
    """Name, shape, type and reader of each whole weight, in one process without a group.

    Args:
        averaged: the averaged weights, which must be there (`has_averages`).
    """
    metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
    kind = AVERAGE if averaged else WEIGHTS
    for name, entry in _tensors(metadata).items():
        if name.startswith(f"{kind}."):
            read = functools.partial(_whole, metadata, name, entry)
            yield name.removeprefix(f"{kind}."), tuple(entry.size), entry.properties.dtype, read


def has_averages(folder: Path) -> bool:
    """Whether a state folder holds averaged weights; False if it cannot be read, which whoever
    reads the weights is told."""
    try:
        metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
    except Exception:  # safetensors raises its own kinds for a damaged header
        return False
    return any(map(_is_average, _tensors(metadata)))


def _is_average(name: str) -> bool:
    return name.startswith(f"{AVERAGE}.")


def _whole(metadata: Metadata, name: str, entry: TensorStorageMetadata) -> Tensor:
    whole = torch.empty(entry.size, dtype=entry.properties.dtype)
    for chunk in entry.chunks:
        stored = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
        with safe_open(stored.relative_path, framework="pt") as file:
            part = file.get_tensor(name)
        whole[_slices(chunk)] = part
    return whole


def _tensors(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    found = metadata.state_dict_metadata.items()
    return {name: entry for name, entry in found if isinstance(entry, TensorStorageMetadata)}


def _slices(chunk: ChunkStorageMetadata) -> tuple[slice, ...]:
    return tuple(
        slice(start, start + length)
        for start, length in zip(chunk.offsets, chunk.sizes, strict=True)
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; collective where it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded, as a plain one that shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """This rank's rows of a tensor that may be sharded, and the index of the first of them."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    mesh = tensor.device_mesh
    rank, size = mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
    # torch.chunk's split, which Shard(0) is. The dimension before it, if any, counts copies.
    return tensor.to_local(), min(rank * -(-tensor.shape[0] // size), tensor.shape[0])


def is_first_copy(tensor: Tensor) -> bool:
    """Whether this rank's part is the one to count, where ranks hold copies of each other's."""
    if not isinstance(tensor, DTensor) or tensor.device_mesh.ndim == 1:
        return True
    return tensor.device_mesh.get_local_rank(0) == 0


def weights_checksum(named_tensors: Iterable[tuple[str, Tensor]], world: World) -> str:
    """16 hex digits: the tensors' bits summed as integers, the n-th tensor times n, modulo 2^48.

    A sum does not depend on how it is split, so each rank adds what it holds. It detects any
    drift of values; it does not see two values of one tensor that changed places.
    """
    total = 0
    for factor, (_, tensor) in enumerate(named_tensors, start=1):
        if not is_first_copy(tensor):
            continue
        local = local_part(tensor)
        total += factor * int(local.detach().contiguous().view(torch.int32).sum(dtype=torch.int64))
    parts = world.gather_objects(total)
    return f"{sum(parts) % (1 << 48):016x}"


def _check_same_shapes(
    folder: Path, found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size]
) -> None:
    problems = []
    kinds, of_run = ({name.partition(".")[0] for name in names} for names in (found, wanted))
    if kinds != of_run:
        problems.append(
            f"it holds the optimizer state {_listed(kinds)}, this run's optimizer keeps "
            f"{_listed(of_run)} (give the optim.kind that it was trained with, or start another "
            "run from its weights with init_from)"
        )
        found, wanted = (
            {name: shape for name, shape in shapes.items() if name.startswith(f"{WEIGHTS}.")}
            for shapes in (found, wanted)
        )
    check_shapes(f"{folder} does not fit", found, wanted, problems)


def _listed(kinds: set[str]) -> str:
    return ", ".join(sorted(kinds - {WEIGHTS})) or "none"
