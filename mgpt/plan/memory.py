"""GPU memory of one rank, by part and by moment, from shapes and settings alone.

What a backend holds it says itself (`mgpt.parallel.footprint`); activations and the loss come from
the model's own passes on the meta device (`activations`). A run needs the largest of three moments:
the loss, the backward pass, of which the head, the first block, or one of the last two, as
gradients come to outweigh activations, can be the tightest, and the update. What is offloaded is
counted apart: `Memory.offloaded_bytes` of a rank, in main memory or on a disk.

    >>> parallel = ParallelConfig("fsdp2", dtype="bfloat16")
    >>> memory = plan_memory(RankWork(SIZES["7b"], parallel, ranks=64, row_tokens=4096))
    >>> round(memory.peak_bytes / 1e9, 1), memory.tightest
    (28.6, 'backward')
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from mgpt.dtypes import DTYPES
from mgpt.models.table import DecoderConfig, decoder_of
from mgpt.optim.config import OptimConfig
from mgpt.optim.rule import WHOLE_NUMEL
from mgpt.parallel.backend import ParallelConfig, backend_class
from mgpt.parallel.footprint import Groups, Part, RankShare, shard_numel
from mgpt.plan.activations import meta_model, trace

__all__ = ["MOMENTS", "Memory", "RankWork", "parameter_groups", "plan_memory"]

MOMENTS = ("loss", "backward", "update")


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

    transformer: DecoderConfig
    parallel: ParallelConfig
    ranks: int
    row_tokens: int
    micro_batches: int = 1
    head_only: bool = False
    of_a_node: int = 8
    on_cpu: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def sharing(self) -> int:
        """Ranks that share one copy of the model. Raises ConfigError as `Backend.sharing` does."""
        return backend_class(self.parallel.name).sharing(self.parallel, self.ranks, self.of_a_node)

    def share(self) -> RankShare:
        """What one rank holds and does, for its backend."""
        cfg, ranks = self.transformer, self.sharing
        flat = backend_class(self.parallel.name).splits_flat
        return RankShare(
            self.parallel,
            parameter_groups(cfg, ranks, flat=flat, optim=self.optim),
            cfg.layers,
            ranks,
            DTYPES[self.parallel.dtype].itemsize,
            self.micro_batches > 1,
            self.head_only,
            self.on_cpu,
        )


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


def parameter_groups(
    cfg: DecoderConfig, ranks: int, flat: bool = False, optim: OptimConfig | None = None
) -> Groups:
    """Sizes of the groups of the model's own sharding plan.

    Args:
        flat: parameters are split by elements, not along their first dimension.
        optim: the optimizer; None: the default one.
    """
    optim = optim or OptimConfig()
    model = meta_model(cfg)
    sizes = {
        name: sum(p.numel() for p in model.get_submodule(name).parameters())
        for name in decoder_of(cfg).sharding_plan(model)
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
        shards["lm_head.weight"],
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
        work.transformer,  # type: ignore[arg-type] # frozen, so hashable
        parallel.micro_rows,
        work.row_tokens,
        DTYPES[parallel.dtype],
        parallel.recompute,
        work.head_only,
        "cpu" if work.on_cpu else "cuda",
    )
    kept, layers = passes.kept_bytes, work.transformer.layers
    backend, share = backend_class(parallel.name), work.share()
    ends = []
    # As blocks finish their backward pass, activations give way to gradients. Of the last two the
    # former still prefetches a next one.
    for left in sorted({0, 1, min(2, layers), layers, layers + 1}):
        is_block = 0 < left <= layers
        of_run = (
            Part("activations", kept, kept * min(left, layers) // layers),
            Part("logits and loss", passes.loss_bytes, 0),
            Part("at work in a block", 0, passes.backward_bytes if is_block else 0),
        )
        ends.append(_offloaded(parallel, backend.held(share, left), of_run))
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
