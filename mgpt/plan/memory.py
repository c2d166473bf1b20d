"""GPU memory of one rank, by part and by moment, from shapes and settings alone.

Three moments can be the tightest: *loss*, with all activations kept and the head at work;
*backward*, where the head or the first block goes back, or one of the last two, by when gradients
may outweigh activations; *update*, with gradients and the optimizer's state and scratch memory. A
run needs the largest of them. Weights, gradients and optimizer state are exact; activations and the
loss come from the model's own passes on the meta device (`activations`); what a sharding library
gathers and reduces at a time is counted from what it is known to hold:

- fsdp2: the block at work and those on their way; the gradients that are being made, and the
  float32 ones of the group before, which stay until the next go out; the root's group all the time.
  With `reshard=never` all blocks from their forward pass on, with a number its part of each.
- zero3: DeepSpeed's defaults, 1e9 gathered elements at stage 3 and a reduction bucket of 5e8, and
  what is made of it to be sent. At stage 1 every rank has the whole float32 gradient.

What is offloaded is counted apart: `Memory.offloaded_bytes` of a rank, in main memory or on a disk.

    >>> parallel = ParallelConfig("fsdp2", dtype="bfloat16")
    >>> memory = plan_memory(RankWork(SIZES["7b"], parallel, ranks=64, row_tokens=4096))
    >>> round(memory.peak_bytes / 1e9, 1), memory.tightest
    (28.6, 'backward')
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from mgpt.dtypes import DTYPES
from mgpt.models.transformer import TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.optim.rule import WHOLE_NUMEL
from mgpt.parallel.backend import ParallelConfig
from mgpt.parallel.fsdp2 import shard_ranks
from mgpt.parallel.zero3 import REDUCE_BUCKET_NUMEL
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
_LIVE_ELEMENTS, _PREFETCH_ELEMENTS = 10**9, 5 * 10**7  # DeepSpeed's


@dataclass(frozen=True)
class RankWork:
    """What one rank of a run does, as far as its memory depends on it.

    ranks: of the whole job.
    micro_batches: of this rank a step; more than one accumulate.
    head_only: only the head's image rows train.
    of_a_node: ranks of one machine.
    on_cpu: the ranks compute on CPUs.
    optim: the optimizer, which declares its state.
    """

    transformer: TransformerConfig
    parallel: ParallelConfig
    ranks: int
    row_tokens: int
    micro_batches: int = 1
    head_only: bool = False
    of_a_node: int = 8
    on_cpu: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)

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

    def gone_back(self, left: int) -> int:
        """Blocks that have gone back where `left` have not."""
        return max(0, self.transformer.layers - left)

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
    state: int
    """What one rank holds of the optimizer's state, padding included."""
    scratch: int
    """What an update takes beside it on one rank."""


def shard_numel(shape: Iterable[int], ranks: int) -> int:
    """Elements on each rank of a parameter split along its first dimension, as fully_shard pads."""
    first, *rest = shape
    return -(-first // ranks) * math.prod(rest)


def parameter_groups(
    cfg: TransformerConfig, ranks: int, flat: bool = False, optim: OptimConfig | None = None
) -> Groups:
    """Sizes of the groups of the model's own sharding plan.

    Args:
        flat: parameters are split flat, DeepSpeed's way, not along their first dimension.
        optim: the optimizer; None: the default one.
    """
    optim = optim or OptimConfig()
    model = meta_model(cfg)
    sizes = {
        name: sum(p.numel() for p in model.get_submodule(name).parameters())
        for name in sharding_plan(model)
    }
    head = sizes.pop("lm_head")
    whole = model.num_parameters
    shards = {
        name: -(-p.numel() // ranks) if flat else shard_numel(p.shape, ranks)
        for name, p in model.named_parameters()
    }
    shapes = {name: p.shape for name, p in model.named_parameters()}
    block = max(sizes.values())
    blocks = sum(sizes.values())
    return Groups(
        whole,
        blocks,
        block,
        head,
        whole - head - blocks,
        sum(shards.values()),
        sum(len(optim.state_names(name, shapes[name])) * shards[name] for name in shards),
        _scratch(optim, shapes, ranks),
    )


def _scratch(optim: OptimConfig, shapes: Mapping[str, torch.Size], ranks: int) -> int:
    """Elements that one rank needs for the matrices that it makes whole at once."""
    numels: dict[int, list[int]] = defaultdict(list)
    for name, shape in shapes.items():
        numels[optim.rule_of(name, shape).scratch].append(shape.numel())
    return max(
        scratch * max(max(found), min(-(-sum(found) // ranks), WHOLE_NUMEL))
        for scratch, found in numels.items()
    )


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
    kept, layers = passes.kept_bytes, work.transformer.layers
    plan = {"single": _single, "fsdp2": _fsdp2, "zero3": _zero3}[parallel.name]
    ends = []
    # While blocks go back, activations give way to gradients. Of the last two the former has a
    # next one on its way.
    for left in sorted({0, 1, min(2, layers), layers, layers + 1}):
        is_block = 0 < left <= layers
        of_run = (
            Part("activations", kept, kept * min(left, layers) // layers),
            Part("logits and loss", passes.loss_bytes, 0),
            Part("at work in a block", 0, passes.backward_bytes if is_block else 0),
        )
        ends.append(_offloaded(parallel, plan(work, left), of_run))
    return max(ends, key=lambda memory: memory.totals["backward"])


def _offloaded(
    parallel: ParallelConfig, of_backend: Iterable[Part], of_run: Iterable[Part]
) -> Memory:
    """The memory of a rank without what it keeps elsewhere."""
    names: frozenset[str] = frozenset()
    if parallel.offload != "none":
        names = frozenset({"master weights, float32", "gradients, float32", "optimizer state"})
    if parallel.offload == "all":
        names |= {"weights, float32", "weights in the pass's type"}
    here = tuple(part for part in (*of_backend, *of_run) if part.name not in names)
    return Memory(here, sum(part.update_bytes for part in of_backend if part.name in names))


# Below, `left` counts the blocks that have not gone back yet, the one at work among them; one more
# than there are: the head is at work; none: the embedding.


def _single(work: RankWork, left: int) -> list[Part]:
    groups = parameter_groups(work.transformer, 1, optim=work.optim)
    copies = 0 if work.parallel.dtype == "float32" else work.itemsize * groups.whole
    made = groups.head + work.gone_back(left) * groups.block if left else groups.whole
    return [
        Part.always("weights, float32", _FP32 * groups.whole),
        _gradients(work.trained(groups), work.accumulates, made),
        Part.always("optimizer state", _FP32 * groups.state),
        Part("weights in the pass's type", copies, copies),
        *_update(work, groups),
    ]


def _fsdp2(work: RankWork, left: int) -> list[Part]:
    parallel, size, ranks = work.parallel, work.itemsize, work.sharing
    groups = parameter_groups(work.transformer, ranks, optim=work.optim)
    trained, layers = work.trained(groups), work.transformer.layers
    head = shard_numel((work.transformer.vocab_size, work.transformer.hidden), ranks)
    shard = head if work.head_only else groups.shard
    if parallel.gather == "block":
        loss, backward = _gathered(groups, work, left)
        gathered = size * loss, size * backward
        sent = _sent(groups, work, left)
    else:
        gathered = 2 * size * groups.whole, size * groups.whole
        sent = (size + _FP32) * trained
    adds_whole = work.accumulates and not parallel.reduce_each_micro_batch
    gone = groups.head + work.gone_back(left) * groups.block if left <= layers else 0
    made = head + work.gone_back(left) * groups.block // ranks if left else shard
    return [
        Part.always("weights, float32", _FP32 * groups.shard),
        _gradients(shard, work.accumulates and not adds_whole, made),
        Part.always("optimizer state", _FP32 * groups.state),
        *_update(work, groups),
        Part("gathered weights", *gathered),
        Part("gradients on their way", 0, sent),
        Part(
            "whole gradient, accumulating",
            _FP32 * trained if adds_whole else 0,
            _FP32 * max(0, trained - gone) if adds_whole and left else 0,
        ),
    ]


def _sent(groups: Groups, work: RankWork, left: int) -> int:
    """Bytes of gradients on their way to the other ranks."""
    if 0 < left <= work.transformer.layers:
        # Those of the group before, which stay until the next are sent.
        return _FP32 * (groups.block if work.gone_back(left) else groups.head)
    # gloo makes a copy; on a GPU what they are made from is still there.
    numel = groups.head if left else groups.root
    at_head = work.itemsize * numel if left else 0
    return _FP32 * numel + (at_head + _FP32 * numel if work.on_cpu else work.itemsize * numel)


def _gathered(groups: Groups, work: RankWork, left: int) -> tuple[int, int]:
    """Elements that fsdp2 has gathered, block by block, at the loss and in the backward pass."""
    parallel, layers = work.parallel, work.transformer.layers
    loss = groups.root + 2 * groups.head
    if parallel.reshard == "never":
        # Between micro-batches all of it stays, the head too.
        still = (
            groups.head + groups.blocks if work.accumulates else min(left, layers) * groups.block
        )
        return loss + groups.blocks, groups.root + still
    parts = 0 if parallel.reshard == "always" else groups.blocks // parallel.reshard
    if not left:
        return loss + parts, 0
    at_work = 1 if left <= layers else 0
    coming = min(max(1, parallel.prefetch), left - 1)
    back = groups.root + (at_work + coming) * groups.block + parts * min(left, layers) // layers
    return loss + parts, back


def _zero3(work: RankWork, left: int) -> list[Part]:
    groups = parameter_groups(work.transformer, work.ranks, flat=True, optim=work.optim)
    stage, size = work.parallel.zero_stage, work.itemsize
    live = size * min(groups.whole, _LIVE_ELEMENTS + _PREFETCH_ELEMENTS) if stage == 3 else 0
    bucket = min(groups.whole, REDUCE_BUCKET_NUMEL)
    made = (
        (groups.head + work.gone_back(left) * groups.block) // work.ranks if left else groups.shard
    )
    gradients = {
        1: Part.always("gradients, float32", _FP32 * groups.whole),
        2: _gradients(groups.shard, work.accumulates, made),
        3: Part.always("gradients, float32", _FP32 * groups.shard),
    }[stage]
    # Gradients, and in float32 as they are sent. Stage 2 joins them first; stage 3 does so too, in
    # float32 from the start, in a bucket that is always there, and gloo makes a copy.
    sent = {
        1: (0, (size + _FP32) * bucket),
        2: (0, (2 * size + _FP32) * bucket),
        3: (_FP32 * bucket, (3 if work.on_cpu else 2) * _FP32 * bucket),
    }[stage]
    return [
        Part.always(
            "weights in the pass's type", size * (groups.shard if stage == 3 else groups.whole)
        ),
        Part.always("master weights, float32", _FP32 * groups.shard),
        gradients,
        Part.always("optimizer state", _FP32 * groups.state),
        Part("gathered weights", live, live),
        Part("gradients on their way", *sent, sent[0]),
    ]


def _update(work: RankWork, groups: Groups) -> list[Part]:
    """What rules that need whole matrices work in, in the type of the passes."""
    if work.head_only or not groups.scratch:
        return []
    return [Part("at work in the update", 0, 0, work.itemsize * groups.scratch)]


def _gradients(elements: int, accumulates: bool, made: int) -> Part:
    """Float32 gradients of `elements`, of which the backward pass has `made` so many."""
    whole = _FP32 * elements
    before, backward = (whole, whole) if accumulates else (0, _FP32 * min(made, elements))
    return Part("gradients, float32", before, backward, whole)
