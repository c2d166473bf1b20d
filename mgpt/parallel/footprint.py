"""GPU memory of one rank, part by part, as each backend accounts for it (`Backend.held`).

Three moments can be the tightest: *loss*, with all activations kept and the head at work;
*backward*, while blocks run their backward passes; *update*, with gradients, optimizer state and
scratch memory. Weights, gradients and optimizer state are exact. What a sharding library gathers
and reduces at a time is computed from what it is known to hold.

    >>> share = RankShare(ParallelConfig(), groups, layers=32, ranks=1, itemsize=4)
    >>> [part.name for part in SingleBackend.held(share, left=32)]
    ['weights, float32', 'gradients, float32', 'optimizer state', ...]
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["FP32_BYTES", "Groups", "Part", "RankShare", "shard_numel"]

FP32_BYTES = 4


@dataclass(frozen=True)
class Part:
    """Bytes of one kind on one rank at each moment."""

    name: str
    loss_bytes: int
    backward_bytes: int
    update_bytes: int = 0

    @classmethod
    def always(cls, name: str, num_bytes: int) -> "Part":
        """A part that has one size at all moments."""
        return cls(name, num_bytes, num_bytes, num_bytes)


@dataclass(frozen=True)
class Groups:
    """Elements of the parameters that are gathered together, and of one rank's shards."""

    whole: int
    blocks: int
    """Elements of all blocks."""
    block: int
    """Elements of the largest block."""
    head: int
    root: int
    """Elements in no other group: the embedding and the last norm."""
    shard: int
    """Elements that one rank holds, padding included."""
    head_shard: int
    """Elements of the head that one rank holds."""
    state: int
    """Elements of the optimizer's state that one rank holds, padding included."""
    scratch: int
    """Elements that an update needs beside it on one rank."""


def shard_numel(shape: Iterable[int], ranks: int) -> int:
    """Elements on each rank of a parameter split along its first dimension, as fully_shard pads."""
    first, *rest = shape
    return -(-first // ranks) * math.prod(rest)


@dataclass(frozen=True)
class RankShare:
    """What one rank holds and does, as far as its memory depends on it."""

    cfg: Any
    """The ParallelConfig."""
    groups: Groups
    layers: int
    ranks: int
    """Ranks that share one copy of the model."""
    itemsize: int
    """Bytes of an element in the forward and backward pass."""
    accumulates: bool = False
    """Whether a step has several micro-batches."""
    head_only: bool = False
    """Whether only the head's image rows train."""
    on_cpu: bool = False

    @property
    def trained(self) -> int:
        """Elements of the parameters that have gradients."""
        return self.groups.head if self.head_only else self.groups.whole

    def back_numel(self, left: int) -> int:
        """Elements of the head and the blocks whose backward pass is done if `left` blocks wait."""
        return self.groups.head + self.blocks_back(left) * self.groups.block

    def blocks_back(self, left: int) -> int:
        """Number of blocks whose backward pass is done if `left` blocks wait."""
        return max(0, self.layers - left)

    def gradients(self, elements: int, accumulates: bool, made: int) -> Part:
        """Float32 gradients of `elements`, of which the backward pass has made `made`."""
        whole = FP32_BYTES * elements
        before, back = (whole, whole) if accumulates else (0, FP32_BYTES * min(made, elements))
        return Part("gradients, float32", before, back, whole)

    def update(self) -> list[Part]:
        """Scratch memory of rules that need whole matrices, in the type of the passes."""
        if self.head_only or not self.groups.scratch:
            return []
        return [Part("at work in the update", 0, 0, self.itemsize * self.groups.scratch)]
