"""GPU memory of one rank, by part and by moment, from shapes and settings alone.

Three moments can be the tightest: *loss*, with all activations kept and the head at work;
*backward*, in the first block that goes back, or in the last, where gradients outweigh
activations; *update*, with gradients and moments. A run needs the largest of them. Weights,
gradients and moments are exact; activations and the loss come from the model's own passes on the
meta device (`activations`); what a sharding library gathers and reduces at a time is counted from
what it is known to hold:

- fsdp2: the block at work, those on their way, and the flat buffer they arrive in; the gradients of
  one block and their float32 copy on the way to the other ranks; the root's group all the time.
  With `reshard=never` all blocks from their forward pass on, with a number its part of each.
- zero3: DeepSpeed's defaults, 1e9 gathered elements at stage 3 and a reduction bucket of 5e8. At
  stage 1 every rank has the whole float32 gradient.

What is offloaded is counted apart: `Memory.offloaded_bytes` of a rank, in main memory or on a disk.

    >>> parallel = ParallelConfig("fsdp2", dtype="bfloat16")
    >>> memory = plan_memory(RankWork(SIZES["7b"], parallel, ranks=64, row_tokens=4096))
    >>> round(memory.peak_bytes / 1e9, 1), memory.tightest
    (29.1, 'backward')
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mgpt.models.transformer import TransformerConfig, sharding_plan
from mgpt.parallel.backend import DTYPES, ParallelConfig
from mgpt.parallel.fsdp2 import shard_ranks
from mgpt.plan.activations import meta_model, trace

__all__ = [
    "MOMENTS",
    "Groups",
    "Memory",
    "Part",
    "RankWork",
    "parameter_groups",
    "plan_memory",
    "shard_numel",
]

MOMENTS = ("loss", "backward", "update")
_FP32 = 4
_LIVE_ELEMENTS, _BUCKET_ELEMENTS, _PREFETCH_ELEMENTS = 10**9, 5 * 10**8, 5 * 10**7  # DeepSpeed's


@dataclass(frozen=True)
class RankWork:
    """What one rank of a run does, as far as its memory depends on it.

    ranks: of the whole job.
    micro_batches: of this rank a step; more than one accumulate.
    head_only: only the head's image rows train.
    of_a_node: ranks of one machine.
    on_cpu: the ranks compute on CPUs.
    """

    transformer: TransformerConfig
    parallel: ParallelConfig
    ranks: int
    row_tokens: int
    micro_batches: int = 1
    head_only: bool = False
    of_a_node: int = 8
    on_cpu: bool = False

    @property
    def accumulates(self) -> bool:
        return self.micro_batches > 1

    @property
    def itemsize(self) -> int:
        """Bytes of an element in the passes."""
        return DTYPES[self.parallel.dtype].itemsize

    @property
    def sharing(self) -> int:
        """Ranks that share one copy of the model. Raises ConfigError as `shard_ranks` does."""
        if self.parallel.name != "fsdp2":
            return self.ranks
        return shard_ranks(self.parallel, self.ranks, self.of_a_node)

    def trained(self, groups: "Groups") -> int:
        """Elements of the parameters that have gradients."""
        return groups.head if self.head_only else groups.whole


@dataclass(frozen=True)
class Part:
    """Bytes of one kind on one rank at each of `MOMENTS`."""

    name: str
    loss_bytes: int
    backward_bytes: int
    update_bytes: int = 0

    @classmethod
    def always(cls, name: str, num_bytes: int) -> "Part":
        return cls(name, num_bytes, num_bytes, num_bytes)


@dataclass(frozen=True)
class Memory:
    """The parts of one rank's GPU memory."""

    parts: tuple[Part, ...]
    offloaded_bytes: int = 0
    """Of this rank, in main memory or on a disk."""

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at each moment."""
        return {
            moment: sum(getattr(part, f"{moment}_bytes") for part in self.parts)
            for moment in MOMENTS
        }

    @property
    def peak_bytes(self) -> int:
        return max(self.totals.values())

    @property
    def tightest(self) -> str:
        """The moment of the peak."""
        return max(MOMENTS, key=self.totals.__getitem__)

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)


@dataclass(frozen=True)
class Groups:
    """Elements of the parameters that are gathered together, and of one rank's shards."""

    whole: int
    blocks: int
    """Of all blocks."""
    block: int
    """Of the largest block."""
    head: int
    root: int
    """What no other group holds: the embedding and the last norm."""
    shard: int
    """What one rank holds of every parameter, padding included."""


def shard_numel(shape: Iterable[int], ranks: int) -> int:
    """Elements on each rank of a parameter split along its first dimension, as fully_shard pads."""
    first, *rest = shape
    return -(-first // ranks) * math.prod(rest)


def parameter_groups(cfg: TransformerConfig, ranks: int, flat: bool = False) -> Groups:
    """Sizes of the groups of the model's own sharding plan.

    Args:
        flat: parameters are split flat, DeepSpeed's way, not along their first dimension.
    """
    model = meta_model(cfg)
    sizes = {
        name: sum(p.numel() for p in model.get_submodule(name).parameters())
        for name in sharding_plan(model)
    }
    head = sizes.pop("lm_head")
    whole = model.num_parameters
    shard = sum(
        -(-p.numel() // ranks) if flat else shard_numel(p.shape, ranks) for p in model.parameters()
    )
    block = max(sizes.values())
    blocks = sum(sizes.values())
    return Groups(whole, blocks, block, head, whole - head - blocks, shard)


def plan_memory(work: RankWork) -> Memory:
    """One rank's memory in training."""
    parallel = work.parallel
    passes = trace(
        work.transformer,
        parallel.micro_rows,
        work.row_tokens,
        DTYPES[parallel.dtype],
        parallel.recompute,
        work.head_only,
        "cpu" if work.on_cpu else "cuda",
    )
    kept = passes.kept_bytes
    plan = {"single": _single, "fsdp2": _fsdp2, "zero3": _zero3}[parallel.name]
    ends = []
    # Between the first block that goes back and the last, activations give way to gradients.
    for is_last in (False, True):
        of_run = (
            Part("activations", kept, 0 if is_last else kept),
            Part("logits and loss", passes.loss_bytes, 0),
            Part("at work in a block", 0, passes.backward_bytes),
        )
        ends.append(_offloaded(parallel, plan(work, is_last), of_run))
    return max(ends, key=lambda memory: memory.totals["backward"])


def _offloaded(
    parallel: ParallelConfig, of_backend: Iterable[Part], of_run: Iterable[Part]
) -> Memory:
    """The memory of a rank without what it keeps elsewhere."""
    names: frozenset[str] = frozenset()
    if parallel.offload != "none":
        names = frozenset({"master weights, float32", "gradients, float32", "Adam's moments"})
    if parallel.offload == "all":
        names |= {"weights, float32", "weights in the pass's type"}
    here = tuple(part for part in (*of_backend, *of_run) if part.name not in names)
    return Memory(here, sum(part.update_bytes for part in of_backend if part.name in names))


def _single(work: RankWork, is_last: bool) -> list[Part]:
    groups = parameter_groups(work.transformer, 1)
    copies = 0 if work.parallel.dtype == "float32" else work.itemsize * groups.whole
    return [
        Part.always("weights, float32", _FP32 * groups.whole),
        _gradients(work.trained(groups), groups.head, work.accumulates, is_last),
        Part.always("Adam's moments", 2 * _FP32 * groups.whole),
        Part("weights in the pass's type", copies, copies),
    ]


def _fsdp2(work: RankWork, is_last: bool) -> list[Part]:
    parallel, size, ranks = work.parallel, work.itemsize, work.sharing
    groups = parameter_groups(work.transformer, ranks)
    trained = work.trained(groups)
    head = shard_numel((work.transformer.vocab_size, work.transformer.hidden), ranks)
    shard = head if work.head_only else groups.shard
    if parallel.gather == "block":
        loss, backward = _gathered(groups, work, is_last)
        gathered = size * loss, size * backward
        reduced = groups.head if work.head_only else groups.block
    else:
        gathered = 2 * size * groups.whole, size * groups.whole
        reduced = trained
    adds_whole = work.accumulates and not parallel.reduce_each_micro_batch
    whole = _FP32 * trained if adds_whole else 0
    return [
        Part.always("weights, float32", _FP32 * groups.shard),
        _gradients(shard, head, work.accumulates and not adds_whole, is_last),
        Part.always("Adam's moments", 2 * _FP32 * groups.shard),
        Part("gathered weights", *gathered),
        Part("gradients on their way", 0, (size + _FP32) * reduced),
        Part("whole gradient, accumulating", whole, 0 if is_last else whole),
    ]


def _gathered(groups: Groups, work: RankWork, is_last: bool) -> tuple[int, int]:
    """Elements that fsdp2 has gathered, block by block, at the loss and in the backward pass."""
    parallel = work.parallel
    loss = groups.root + 2 * groups.head
    if parallel.reshard == "never":
        # Between micro-batches all of it stays, the head too.
        still = groups.head + groups.blocks if work.accumulates else groups.blocks
        freed = is_last and not work.accumulates
        return loss + groups.blocks, groups.root + (groups.block if freed else still)
    parts = 0 if parallel.reshard == "always" else groups.blocks // parallel.reshard
    # The last block has no next one to wait for.
    at_work = groups.block if is_last else (2 + max(1, parallel.prefetch)) * groups.block
    return loss + parts, groups.root + at_work + (0 if is_last else parts)


def _zero3(work: RankWork, is_last: bool) -> list[Part]:
    groups = parameter_groups(work.transformer, work.ranks, flat=True)
    stage, size = work.parallel.zero_stage, work.itemsize
    live = size * min(groups.whole, _LIVE_ELEMENTS + _PREFETCH_ELEMENTS) if stage == 3 else 0
    bucket = (size + _FP32) * min(groups.whole, _BUCKET_ELEMENTS)
    head = groups.head // work.ranks
    gradients = _gradients(groups.shard, head, work.accumulates, is_last)
    if stage == 1:
        gradients = Part.always(gradients.name, _FP32 * groups.whole)
    return [
        Part.always(
            "weights in the pass's type", size * (groups.shard if stage == 3 else groups.whole)
        ),
        Part.always("master weights, float32", _FP32 * groups.shard),
        gradients,
        Part.always("Adam's moments", 2 * _FP32 * groups.shard),
        Part("gathered weights", live, live),
        Part("gradients on their way", 0, bucket),
    ]


def _gradients(elements: int, of_head: int, accumulates: bool, is_last: bool) -> Part:
    """Float32 gradients of `elements`; before the blocks go back there are those of the head."""
    whole = _FP32 * elements
    before = whole if accumulates else 0
    backward = whole if accumulates or is_last else _FP32 * of_head
    return Part("gradients, float32", before, backward, whole)
