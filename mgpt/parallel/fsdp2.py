"""PyTorch's fully sharded data parallelism: `single` over parameters split across the ranks.

`fully_shard` turns each parameter into a DTensor, split along its first dimension; the model's
plan says which submodules gather and free their parameters together. Checkpoints then work on
DTensors as they do on plain tensors, and optimizer and clipping on this rank's rows, which is why
this class adds only the placing, the timing of gathers and reductions, and what leaves the GPU.
Matrices that an optimizer must see whole are dealt out over the ranks of a copy of the model, each
to one of them (`sharded_matrices`).

The model comes on the meta device, is split there, and each rank makes memory for its own rows and
draws them: nothing is ever whole but the tensors at work. With `shard_ranks` below the number of
ranks these form groups that hold a copy each (HSDP): ranks 0 to n - 1 share the first. Gathers stay
inside a group, gradients are reduced inside it and then summed over the groups.

Every rank must run the same number of micro-batches: one that is short of one leaves the others
waiting in their all-gather.

    >>> backend = Fsdp2Backend(ParallelConfig(name="fsdp2", dtype="float32"),
    ...                        TrainingModule(model, 1e-5), OptimConfig(),
    ...                        init_distributed(), sharding_plan(model), seed=0)
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from mgpt.dtypes import DTYPES
from mgpt.errors import ConfigError
from mgpt.optim.rule import WholeMatrices
from mgpt.parallel.backend import (
    LossSums,
    MicroBatch,
    MicroSums,
    ParallelConfig,
    TrainingModule,
)
from mgpt.parallel.dist import World
from mgpt.parallel.footprint import FP32_BYTES, Part, RankShare
from mgpt.parallel.sharded_matrices import ShardedMatrices
from mgpt.parallel.single import SingleBackend

__all__ = ["Fsdp2Backend", "shard_ranks"]


def shard_ranks(cfg: ParallelConfig, ranks: int, of_a_node: int) -> int:
    """Ranks that share one copy of the model.

    Raises ConfigError where the ranks cannot be divided into such groups.
    """
    if cfg.shard_ranks == "all":
        return ranks
    number = min(of_a_node, ranks) if cfg.shard_ranks == "node" else cfg.shard_ranks
    if ranks % number:
        raise ConfigError(
            f"parallel.shard_ranks={cfg.shard_ranks}: {ranks} ranks cannot be divided into groups "
            f"of {number}; take a divisor of {ranks}, or all"
        )
    return number


class Fsdp2Backend(SingleBackend):
    """One model sharded over all ranks; see `mgpt.parallel.backend.Backend` for the contract."""

    on_many: ClassVar[bool] = True

    @classmethod
    def problem(cls, cfg: ParallelConfig) -> str | None:
        is_able = cfg.offload in ("none", "all") and cfg.offload_folder is None
        if is_able:
            return None
        return (
            f"offload={cfg.offload} offload_folder={cfg.offload_folder}: fsdp2 takes "
            "offload=all and main memory alone; or take zero3"
        )

    @classmethod
    def sharing(cls, cfg: ParallelConfig, ranks: int, of_a_node: int) -> int:
        return shard_ranks(cfg, ranks, of_a_node)

    @classmethod
    def held(cls, share: RankShare, left: int) -> list[Part]:
        cfg, groups, size, trained = share.cfg, share.groups, share.itemsize, share.trained
        shard = groups.head_shard if share.head_only else groups.shard
        if cfg.gather == "block":
            loss, backward = _gathered(share, left)
            gathered = size * loss, size * backward
            sent = _sent_bytes(share, left)
        else:
            gathered = 2 * size * groups.whole, size * groups.whole
            sent = (size + FP32_BYTES) * trained
        adds_whole = share.accumulates and not cfg.reduce_each_micro_batch
        gone = share.back_numel(left) if left <= share.layers else 0
        made = groups.head_shard + share.blocks_back(left) * groups.block // share.ranks
        return [
            Part.always("weights, float32", FP32_BYTES * groups.shard),
            share.gradients(shard, share.accumulates and not adds_whole, made if left else shard),
            Part.always("optimizer state", FP32_BYTES * groups.state),
            *share.update(),
            Part("gathered weights", *gathered),
            Part("gradients on their way", 0, sent),
            Part(
                "whole gradient, accumulating",
                FP32_BYTES * trained if adds_whole else 0,
                FP32_BYTES * max(0, trained - gone) if adds_whole and left else 0,
            ),
        ]

    @classmethod
    def savings(cls, cfg: ParallelConfig, accumulates: bool) -> Iterator[dict[str, Any]]:
        if cfg.gather == "model":
            yield {"gather": "block"}
        if cfg.reshard != "always":
            yield {"reshard": "always"}
        if cfg.shard_ranks != "all":
            yield {"shard_ranks": "all"}
        if accumulates and not cfg.reduce_each_micro_batch:
            yield {"reduce_each_micro_batch": True}

    def _place(
        self, cfg: ParallelConfig, module: TrainingModule, plan: Sequence[str]
    ) -> TrainingModule:
        self._world.require_process_group()
        self._reduce_each = cfg.reduce_each_micro_batch
        # Nothing is freed in between where nothing is freed after the forward pass.
        self._keeps_gathered = cfg.reshard == "never" or cfg.gather == "model"
        mesh = _mesh(cfg, self._world)
        of_a_group = mesh.size(mesh.ndim - 1)
        self._shard_group = mesh.get_group(mesh.ndim - 1)
        on_cpu = cfg.offload == "all"
        settings: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=DTYPES[cfg.dtype], reduce_dtype=torch.float32, cast_forward_inputs=False
            ),
            "offload_policy": CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
            if on_cpu
            else OffloadPolicy(),
        }
        groups: list[FSDPModule] = []
        for name in plan if cfg.gather == "block" else ():
            submodule = module.model.get_submodule(name)
            # The last group's backward pass comes at once; its weights may as well stay.
            stays = name == plan[-1]
            reshard = False if stays else _reshard(cfg, of_a_group)
            groups.append(fully_shard(submodule, reshard_after_forward=reshard, **settings))
        root = fully_shard(module, **settings)
        _prefetch([root, *groups], cfg.prefetch)
        self._groups = [root, *groups]
        for group in self._groups:
            # The loss is scaled by the global count already, so gradients are summed. A plain sum,
            # since gloo has no pre-multiplied one.
            group.set_gradient_divide_factor(1.0)
            group.set_force_sum_reduction_for_comms(True)
        return module.to_empty(device="cpu" if on_cpu else self.device)

    def _matrices(self) -> WholeMatrices:
        return ShardedMatrices(self._shard_group, self.device, self._dtype)

    def _run(self, batch: MicroBatch, loss_scale: float | None) -> LossSums:
        return self._pass(batch.to(self.device), loss_scale)

    def forward_backward(self, batch: MicroBatch, loss_scale: float, last: bool) -> MicroSums:
        root = self._groups[0]
        root.set_requires_gradient_sync(last or self._reduce_each)
        if self._reduce_each:
            # Between copies of the model one sum a step is enough.
            root.set_requires_all_reduce(last)
        if self._keeps_gathered:
            root.set_reshard_after_backward(last)
        return super().forward_backward(batch, loss_scale, last)

    def _total_norm(self, grads: list[Tensor]) -> Tensor:
        # Of this rank's rows as plain tensors: the bits are those of DTensors, without a look
        # through hundreds of them, in every call, for how they are split.
        squares = torch.stack(torch._foreach_norm(grads)).square()
        dist.all_reduce(squares, group=self._shard_group)
        return torch.linalg.vector_norm(squares.sqrt())

    def evaluate(self, batch: MicroBatch) -> MicroSums:
        sums = super().evaluate(batch)
        # Without a backward pass some groups would stay gathered, and go stale when the weights
        # are set.
        for group in self._groups:
            group.reshard()
        return sums


def _gathered(share: RankShare, left: int) -> tuple[int, int]:
    """Elements gathered block by block, at the loss and in the backward pass: the block at work
    and those that are prefetched. With `reshard=never` all blocks from their forward pass on, with
    a number its part of each."""
    cfg, groups, layers = share.cfg, share.groups, share.layers
    loss = groups.root + 2 * groups.head
    if cfg.reshard == "never":
        # Between micro-batches all of it stays, the head too.
        kept = (
            groups.head + groups.blocks if share.accumulates else min(left, layers) * groups.block
        )
        return loss + groups.blocks, groups.root + kept
    parts = 0 if cfg.reshard == "always" else groups.blocks // cfg.reshard
    if not left:
        return loss + parts, 0
    at_work = 1 if left <= layers else 0
    coming = min(max(1, cfg.prefetch), left - 1)
    back = groups.root + (at_work + coming) * groups.block + parts * min(left, layers) // layers
    return loss + parts, back


def _sent_bytes(share: RankShare, left: int) -> int:
    """Bytes of gradients that are being made and reduced."""
    groups, size = share.groups, share.itemsize
    if 0 < left <= share.layers:
        # Those of the group before, which stay until the next are sent.
        return FP32_BYTES * (groups.block if share.blocks_back(left) else groups.head)
    # gloo makes a copy; on a GPU what they are made from is still there.
    numel = groups.head if left else groups.root
    at_head = size * numel if left else 0
    return FP32_BYTES * numel + (at_head + FP32_BYTES * numel if share.on_cpu else size * numel)


def _mesh(cfg: ParallelConfig, world: World) -> DeviceMesh:
    of_a_group = shard_ranks(cfg, world.size, world.local_size)
    if of_a_group == world.size:
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    return init_device_mesh(
        world.device.type,
        (world.size // of_a_group, of_a_group),
        mesh_dim_names=("replicate", "shard"),
    )


def _reshard(cfg: ParallelConfig, of_a_group: int) -> bool | int:
    """fully_shard's `reshard_after_forward` of a block. Raises ConfigError."""
    if isinstance(cfg.reshard, str):
        return cfg.reshard == "always"
    if of_a_group % cfg.reshard:
        raise ConfigError(
            f"parallel.reshard={cfg.reshard} does not divide the {of_a_group} ranks that share a "
            "copy of the model; take a divisor, always or never"
        )
    # To all of them, or to one: fully_shard knows these two as always and never.
    if cfg.reshard in (1, of_a_group):
        return cfg.reshard == of_a_group
    return cfg.reshard


def _prefetch(groups: Sequence[FSDPModule], number: int) -> None:
    """While a group is at work, the next `number` of them are gathered, in either pass.

    With 0 the library does what it does by itself: forward nothing ahead of the CPU, backward one.
    """
    if number == 0:
        return
    for index, group in enumerate(groups):
        group.set_modules_to_forward_prefetch(list(groups[index + 1 : index + 1 + number]))
    for index, group in enumerate(groups[1:], start=1):
        before = list(groups[max(1, index - number) : index])
        group.set_modules_to_backward_prefetch(before[::-1])
