"""A training state at one moment: this rank's pieces of it, and the file that holds them.

The pieces are copied before training goes on, so that a thread can write them while the next steps
change the originals. Each rank writes one safetensors file, in the form of PyTorch's Distributed
Checkpoint (`HuggingFaceStorageWriter(save_distributed=True)`), which `mgpt.parallel.state` reads.
Its own writer serves every rank's file as bytes in memory, twice, and meets the other ranks over
pickles; here memory holds the pieces alone, no rank waits for another, and the file's hash is made
from what memory held, so that it also tells when the disk has not kept it.

    >>> snapshot = Snapshot.take({"model.norm.weight": torch.ones(8)}.items(), num_updates=3,
    ...                          world=World(), copy=True)
    >>> snapshot.write(folder)
    {'shard-00001-model-00001-of-00001.safetensors': FileSum(sha256='…', bytes=240),
     'updates.json': FileSum(sha256='…', bytes=19)}
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from mgpt.files.atomic import disk_errors, sync_folder
from mgpt.parallel.dist import World

__all__ = ["UPDATES_FILE", "FileSum", "Piece", "Snapshot"]

UPDATES_FILE = "updates.json"
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_CHUNK_BYTES = 16 << 20


class FileSum(NamedTuple):
    """What a file must be."""

    sha256: str
    bytes: int


class Piece(NamedTuple):
    """A part of a tensor, cut along its first dimension."""

    offset: int
    """Index of the first row."""
    tensor: Tensor


@dataclass(frozen=True)
class Snapshot:
    """What one rank writes of a training state."""

    pieces: dict[str, Piece]
    """By the names of the layout, without those that another rank writes."""
    num_updates: int
    rank: int

    @classmethod
    def take(
        cls, tensors: Iterable[tuple[str, Tensor]], num_updates: int, world: World, copy: bool
    ) -> "Snapshot":
        """This rank's pieces of some tensors.

        Args:
            tensors: names and tensors, in the same order on every rank: DTensors that are split
                along their first dimension, replicated over others; or plain ones, whole, on one
                rank. Taken one by one, so that they may be made on the way.
            num_updates: of the optimiser.
            copy: True: to the CPU, so that nothing can change them; False: as they are, for a
                write before anything does.
        """
        pieces = {}
        on_gpu = False
        for index, (name, tensor) in enumerate(tensors):
            local, offset, is_ours = _own(tensor.detach(), index)
            if is_ours and (local.numel() or local.shape == tensor.shape):
                pieces[name] = Piece(offset, _copied(local) if copy else local)
                on_gpu = on_gpu or (copy and local.is_cuda)
        if on_gpu:
            torch.cuda.synchronize()
        return cls(pieces, num_updates, world.rank)

    def write(self, folder: Path) -> dict[str, FileSum]:
        """Writes this rank's file, flushed to the disk; rank 0 writes the count of updates too.

        The folder is made where it is missing; its own folder must be there. Returns the sum of
        each file. Raises MachineError where the disk does not take it.
        """
        sums = {}
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            if self.pieces:
                name = f"shard-{self.rank + 1:05d}-model-00001-of-00001.safetensors"
                sums[name] = _write(folder / name, self._contents())
            if self.rank == 0:
                text = json.dumps({"num_updates": self.num_updates}) + "\n"
                sums[UPDATES_FILE] = _write(folder / UPDATES_FILE, [text.encode()])
            sync_folder(folder)
        return sums

    def _contents(self) -> Iterable[bytes | memoryview]:
        """The file's bytes, a chunk at a time."""
        ordered = sorted(self.pieces.items())
        offsets: dict[str, dict[str, list[int]]] = {}
        for name, (offset, tensor) in ordered:
            place = [offset, *(0 for _ in tensor.shape[1:])] if tensor.dim() else []
            offsets[name] = {"saved_offsets": place}
        header: dict[str, object] = {
            "__metadata__": {
                "DCP_SHARDING_INFO": json.dumps(offsets),
                "DCP_VERSION": "1.0",
                "format": "pt",
            }
        }
        end = 0
        for name, piece in ordered:
            start, end = end, end + piece.tensor.numel() * piece.tensor.itemsize
            header[name] = {
                "dtype": _DTYPES[piece.tensor.dtype],
                "shape": list(piece.tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        yield len(text).to_bytes(8, "little") + text
        for _, piece in ordered:
            flat = piece.tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            for start in range(0, len(flat), _CHUNK_BYTES):
                yield flat[start : start + _CHUNK_BYTES]


def _own(tensor: Tensor, index: int) -> tuple[Tensor, int, bool]:
    """This rank's rows, the first one's index, and whether this rank is the one to write them.

    Replicas take turns over the tensors.
    """
    if not isinstance(tensor, DTensor):
        return tensor, 0, True
    mesh, offset, is_ours = tensor.device_mesh, 0, True
    for dim, placement in enumerate(tensor.placements):
        rank, size = mesh.get_local_rank(dim), mesh.size(dim)
        if placement == Shard(0):
            # torch.chunk's split, which Shard(0) is.
            assert offset == 0, "split twice"
            offset = min(rank * -(-tensor.shape[0] // size), tensor.shape[0])
        else:
            assert placement == Replicate(), placement
            is_ours = is_ours and index % size == rank
    return tensor.to_local(), offset, is_ours


def _copied(local: Tensor) -> Tensor:
    if not local.is_cuda:
        return local.to("cpu", copy=True, memory_format=torch.contiguous_format)
    # Pinned memory, which torch keeps for the next save, is copied to at the bus's full speed.
    pinned = torch.empty(local.shape, dtype=local.dtype, pin_memory=True)
    return pinned.copy_(local, non_blocking=True)


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> FileSum:
    """Writes a new file, flushed to the disk, and hashes it on the way."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as stream:
        for chunk in chunks:
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return FileSum(digest.hexdigest(), size)
