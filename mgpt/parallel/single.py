"""The reference backend: one process, plain PyTorch. The others are right where they agree with it.

Everything here is written for parameters that may be sharded tensors, because `fsdp2` is this
class over such parameters; see there.

    >>> backend = SingleBackend(ParallelConfig(dtype="float32"), TrainingModule(model, 1e-5),
    ...                         OptimConfig(), World(), sharding_plan(model), seed=0)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from mgpt.dtypes import DTYPES, DtypeChoice
from mgpt.errors import ConfigError
from mgpt.optim.config import OptimConfig
from mgpt.optim.rule import LocalMatrices, WholeMatrices
from mgpt.parallel.backend import (
    LossSums,
    MicroBatch,
    MicroSums,
    ParallelConfig,
    TrainableModel,
    TrainingModule,
    check_weights,
    detached_sums,
)
from mgpt.parallel.dist import World
from mgpt.parallel.footprint import FP32_BYTES, Part, RankShare
from mgpt.parallel.own_time import OwnTime
from mgpt.parallel.recompute import compile_blocks, recompute_blocks
from mgpt.parallel.snapshot import Snapshot
from mgpt.parallel.state import (
    checkpoint_bytes,
    full_tensor,
    local_part,
    local_rows,
    read_state,
    training_state,
    weights_checksum,
)

__all__ = ["SingleBackend"]


class _Pass(nn.Module):
    """Forward and backward as one call, so that weights that stand in for others during the call
    are still in place where the backward pass recomputes a block."""

    def __init__(self, module: TrainingModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: MicroBatch, loss_scale: float | None) -> LossSums:
        sums = self.module(batch)
        if loss_scale is not None:
            (sums.loss_sum * loss_scale).backward()
        return sums


class SingleBackend:
    """One model in one process; see `mgpt.parallel.backend.Backend` for the contract."""

    on_many: ClassVar[bool] = False
    splits_flat: ClassVar[bool] = False
    gathers_in_blocks: ClassVar[bool] = False
    own_time: OwnTime
    dtype: DtypeChoice

    @classmethod
    def problem(cls, cfg: ParallelConfig) -> str | None:
        if cfg.offload != "none":
            return f"offload={cfg.offload}: {cfg.name} offloads nothing; take fsdp2"
        return None

    @classmethod
    def sharing(cls, cfg: ParallelConfig, ranks: int, of_a_node: int) -> int:
        return 1

    @classmethod
    def held(cls, share: RankShare, left: int) -> list[Part]:
        groups, is_float32 = share.groups, share.itemsize == FP32_BYTES
        copies = 0 if is_float32 else share.itemsize * groups.whole
        made = share.back_numel(left) if left else groups.whole
        return [
            Part.always("weights, float32", FP32_BYTES * groups.whole),
            share.gradients(share.trained, share.accumulates, made),
            Part.always("optimizer state", FP32_BYTES * groups.state),
            Part("weights in the pass's type", copies, copies),
            *share.update(),
        ]

    @classmethod
    def savings(cls, cfg: ParallelConfig, accumulates: bool) -> Iterator[dict[str, Any]]:
        return iter(())

    def __init__(
        self,
        cfg: ParallelConfig,
        module: TrainingModule,
        optim_cfg: OptimConfig,
        world: World,
        plan: Sequence[str],
        seed: int,
    ) -> None:
        """`module` comes on the meta device. Raises ConfigError where this backend cannot run on
        that many processes, or cannot be divided among them as asked."""
        self.dp_rank, self.dp_size, self.device = world.rank, world.size, world.device
        self._world = world
        self._dtype = DTYPES[cfg.dtype]
        recompute_blocks(module.model, plan, cfg.recompute)
        if cfg.compile:
            compile_blocks(module.model, plan)
        self._module = self._place(cfg, module, plan)
        self._pass = _Pass(self._module)
        self._named = self._module.named_weights()
        self._parameters = [parameter for _, parameter in self._named]
        self.num_parameters = sum(parameter.numel() for parameter in self._parameters)
        self.checkpoint_bytes = checkpoint_bytes(self._named, optim_cfg)
        self._initialise(module.model, seed)
        self._trained_rows = module.model.trained_rows
        self._optim_cfg = optim_cfg
        self.has_averages = optim_cfg.ema_decay > 0
        self._optimizer = optim_cfg.build(
            self._named, decays=self._trained_rows is None, matrices=self._matrices()
        )

    def _place(
        self, cfg: ParallelConfig, module: TrainingModule, plan: Sequence[str]
    ) -> TrainingModule:
        if self.dp_size != 1:
            raise ConfigError(
                f"parallel=single runs in 1 process and was started in {self.dp_size}; "
                "take parallel=fsdp2 or parallel=zero3"
            )
        return module.to_empty(device=self.device)

    def _matrices(self) -> WholeMatrices:
        """What makes matrices whole for optimizers that ask for them."""
        return LocalMatrices(self._dtype)

    @torch.no_grad()
    def _initialise(self, model: TrainableModel, seed: int) -> None:
        """Gives this rank's rows of each parameter their first values."""
        for name, parameter in self._named:
            local, first = local_rows(parameter.detach())
            rows = (first, first + local.shape[0])
            local.copy_(model.initial_rows(name, tuple(parameter.shape), rows, seed))

    def _run(self, batch: MicroBatch, loss_scale: float | None) -> LossSums:
        batch = batch.to(self.device)
        if self._dtype is torch.float32:
            return self._pass(batch, loss_scale)
        # What sharding libraries do for mixed precision: the model sees low-precision copies, and
        # their gradients flow back through the cast into the float32 weights.
        copies = {name: p.to(self._dtype) for name, p in self._pass.named_parameters()}
        return functional_call(self._pass, copies, (batch, loss_scale))

    def forward_backward(self, batch: MicroBatch, loss_scale: float, last: bool) -> MicroSums:
        self.own_time.enter()
        self._module.train()
        sums = detached_sums(self._run(batch, loss_scale))
        self.own_time.leave()
        return sums

    @torch.no_grad()
    def step(self, lr: float, max_norm: float, limit: float = math.inf) -> tuple[float, bool]:
        grads = [local_part(p.grad) for p in self._parameters if p.grad is not None]
        norm = self._total_norm(grads)
        grad_norm = float(norm)
        updates = math.isfinite(grad_norm) and grad_norm <= limit
        if updates:
            if max_norm > 0:
                factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)  # as torch's own clipping
                torch._foreach_mul_(grads, factor.to(grads[0].device))
            self._decay_trained_rows(lr)
            self._optimizer.step(lr)
        for parameter in self._parameters:
            parameter.grad = None
        return grad_norm, updates

    def _total_norm(self, grads: list[Tensor]) -> Tensor:
        return get_total_norm(grads)

    def _decay_trained_rows(self, lr: float) -> None:
        """Weight decay if only some rows train; an optimizer would decay the whole tensor."""
        if self._trained_rows is None:
            return
        name, start, stop = self._trained_rows
        parameter = dict(self._named)[name]
        lr *= self._optim_cfg.lr_ratio(self._optim_cfg.rule_of(name, parameter.shape))
        local, first = local_rows(parameter.detach())
        own = local[max(0, start - first) : max(0, stop - first)]
        own.mul_(1.0 - lr * self._optim_cfg.weight_decay)

    def evaluate(self, batch: MicroBatch) -> MicroSums:
        self._module.eval()
        with torch.no_grad():
            return detached_sums(self._run(batch, None))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        self._optimizer.swap_average()
        try:
            yield
        finally:
            self._optimizer.swap_average()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        targets = dict(self._named)
        with torch.no_grad():
            for name, value in check_weights(weights, {n: p.shape for n, p in self._named}):
                local, first = local_rows(targets[name].detach())
                local.copy_(value[first : first + local.shape[0]])

    def snapshot(self, copy: bool) -> Snapshot:
        tensors = training_state(self._named, self._optimizer)
        return Snapshot.take(tensors.items(), self._optimizer.num_updates, self._world, copy)

    def load(self, folder: Path) -> None:
        tensors = training_state(self._named, self._optimizer)
        saved = read_state(folder, tensors, self._world)
        self._optimizer.num_updates = saved.num_updates
        if not saved.has_averages:
            self._optimizer.restart_average()

    def full_weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, parameter in self._named:
            value = full_tensor(parameter.detach())
            if self._world.is_main:
                weights[name] = value.to("cpu", torch.float32, copy=True)
        return weights

    def weights_checksum(self) -> str:
        return weights_checksum(self._named, self._world)
