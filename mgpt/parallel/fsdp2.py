"""PyTorch's fully sharded data parallelism: `single` over parameters split across the ranks.

`fully_shard` turns each parameter into a DTensor, split along its first dimension; the model's
plan says which submodules gather and free their parameters together. Optimiser, clipping and
checkpoint then work on DTensors as they do on plain tensors, which is why this class adds only
the placing, the reduction's timing and the split of a full weight.

Every rank must run the same number of micro-batches: one that is short of one leaves the others
waiting in their all-gather.

    >>> backend = Fsdp2Backend(ParallelConfig(name="fsdp2"), TrainingModule(model, 1e-5),
    ...                        OptimConfig(), init_distributed(), sharding_plan(model))
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mgpt.parallel.backend import (
    DTYPES,
    LossSums,
    MicroBatch,
    MicroSums,
    ParallelConfig,
    TrainingModule,
)
from mgpt.parallel.single import SingleBackend

__all__ = ["Fsdp2Backend"]


class Fsdp2Backend(SingleBackend):
    """One model sharded over all ranks; see `mgpt.parallel.backend.Backend` for the contract."""

    def _place(
        self, cfg: ParallelConfig, module: TrainingModule, plan: Sequence[str]
    ) -> TrainingModule:
        self._world.require_process_group()
        self._reduce_each = cfg.reduce_each_micro_batch
        mesh = init_device_mesh(self.device.type, (self.dp_size,))
        policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[cfg.dtype], reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for name in plan if cfg.gather == "block" else ():
            fully_shard(module.model.get_submodule(name), mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        for submodule in module.modules():
            if isinstance(submodule, FSDPModule):
                # The loss is scaled by the global count already, so gradients are summed. A plain
                # sum, since gloo has no pre-multiplied one.
                submodule.set_gradient_divide_factor(1.0)
                submodule.set_force_sum_reduction_for_comms(True)
        return module

    @property
    def _sharded(self) -> FSDPModule:
        assert isinstance(self._module, FSDPModule)
        return self._module

    def _run(self, batch: MicroBatch, loss_scale: float | None) -> LossSums:
        return self._pass(batch.to(self.device), loss_scale)

    def forward_backward(self, batch: MicroBatch, loss_scale: float, last: bool) -> MicroSums:
        self._sharded.set_requires_gradient_sync(last or self._reduce_each)
        return super().forward_backward(batch, loss_scale, last)

    def evaluate(self, batch: MicroBatch) -> MicroSums:
        sums = super().evaluate(batch)
        # Without a backward pass the outermost group would stay gathered, and go stale when the
        # weights are set.
        self._sharded.reshard()
        return sums

    def _set_weight(self, parameter: Tensor, value: Tensor) -> None:
        assert isinstance(parameter, DTensor)
        whole = value.to(self.device, parameter.dtype)
        parameter.copy_(
            distribute_tensor(
                whole, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        )
