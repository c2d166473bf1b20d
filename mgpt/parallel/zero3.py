"""DeepSpeed's ZeRO stage 3: weights, gradients and moments split flat across the ranks.

DeepSpeed holds each parameter as one flat piece a rank, empty outside the forward and backward of
its module, with float32 masters and moments in flat buffers of their own. Gradients come out
divided by the number of ranks, which the loss is multiplied by beforehand. Checkpoints have the
layout of every other backend: pieces are exchanged for rows of the first dimension, one parameter
at a time.

    >>> backend = Zero3Backend(ParallelConfig(name="zero3"), TrainingModule(model, 1e-5),
    ...                        OptimConfig(), init_distributed(), sharding_plan(model))
"""

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, empty

from mgpt.errors import MachineError
from mgpt.parallel.backend import (
    DTYPES,
    MicroBatch,
    MicroSums,
    OptimizerRecipe,
    ParallelConfig,
    TrainingModule,
    check_weights,
    detached_sums,
)
from mgpt.parallel.dist import World
from mgpt.parallel.recompute import recompute_blocks
from mgpt.parallel.snapshot import Snapshot
from mgpt.parallel.state import (
    MOMENTS,
    WEIGHTS,
    num_updates,
    prepare_adam,
    read_state,
    set_num_updates,
    weights_checksum,
)

__all__ = ["Zero3Backend"]


class Zero3Backend:
    """One model under ZeRO-3; see `mgpt.parallel.backend.Backend` for the contract."""

    def __init__(
        self,
        cfg: ParallelConfig,
        module: TrainingModule,
        optim_cfg: OptimizerRecipe,
        world: World,
        plan: Sequence[str],
    ) -> None:
        """Raises MachineError where DeepSpeed is not installed."""
        self.dp_rank, self.dp_size, self.device = world.rank, world.size, world.device
        self._world = world
        world.require_process_group()
        deepspeed = _import_deepspeed(self.device)
        self._mesh = init_device_mesh(self.device.type, (self.dp_size,))
        if cfg.recompute == "full":
            recompute_blocks(module.model, plan, reentrant=True)
        module = module.to(self.device)
        self._shapes = {name: p.shape for name, p in module.named_weights()}
        self.num_parameters = sum(shape.numel() for shape in self._shapes.values())
        self._trained_rows = module.model.trained_rows
        self._weight_decay, self._decay_lr = optim_cfg.weight_decay, 0.0
        optimizer = optim_cfg.build(module.named_weights(), decays=self._trained_rows is None)
        full_precision = [(name, p.detach()) for name, p in module.named_weights()]
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_engine_config(cfg),
            dist_init_required=False,
        )
        self._named = module.named_weights()
        self._adam: torch.optim.AdamW = self._engine.optimizer.optimizer
        prepare_adam(self._adam, self._engine.optimizer.fp32_partitioned_groups_flat)
        self._norm, self._limit = math.nan, math.inf
        self._limit_norm()
        if self._trained_rows is not None:
            # DeepSpeed looks for values that are not finite first, and then calls the optimiser.
            self._adam.register_step_pre_hook(lambda *_: self._decay_trained_rows())
        if cfg.dtype != "float32":
            # DeepSpeed makes the float32 masters from weights that it has cast before.
            self.load_weights(full_precision)

    def forward_backward(self, batch: MicroBatch, loss_scale: float, last: bool) -> MicroSums:
        self._engine.train()
        self._engine.set_gradient_accumulation_boundary(last)
        sums = self._engine(batch.to(self.device))
        # The engine averages over the ranks and, unless told not to, over the micro-batches.
        loss = sums.loss_sum * (loss_scale * self.dp_size)
        self._engine.backward(loss, scale_wrt_gas=False)
        return detached_sums(sums)

    def step(self, lr: float, max_norm: float, limit: float = math.inf) -> tuple[float, bool]:
        self._engine.optimizer.clip_grad, self._limit = max_norm, limit
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._decay_lr = lr
        self._engine.step()
        return self._norm, not self._engine.optimizer.overflow

    def _limit_norm(self) -> None:
        """Has DeepSpeed discard an update above the limit, as it does one that is not finite."""
        optimizer = self._engine.optimizer
        measure = optimizer._get_norm_groups

        def within_limit() -> list[Tensor]:
            norms = measure()  # of each group of parameters; -1 stands for one that is not finite
            finite = all(float(norm) >= 0 for norm in norms)
            self._norm = float(torch.linalg.vector_norm(torch.stack(norms))) if finite else math.nan
            return norms if self._norm <= self._limit else [torch.full_like(norms[0], math.nan)]

        optimizer._get_norm_groups = within_limit

    def _decay_trained_rows(self) -> None:
        """Weight decay where only some rows train, once a step: Adam is called for each group."""
        from deepspeed.utils import safe_get_local_fp32_param

        assert self._trained_rows is not None
        name, start, stop = self._trained_rows
        piece = safe_get_local_fp32_param(dict(self._named)[name]).detach()
        width, first = self._shapes[name][1], piece.numel() * self.dp_rank
        own = piece[max(0, start * width - first) : max(0, stop * width - first)]
        own.mul_(1.0 - self._decay_lr * self._weight_decay)
        self._decay_lr = 0.0

    def evaluate(self, batch: MicroBatch) -> MicroSums:
        self._engine.eval()
        with torch.no_grad():
            return detached_sums(self._engine(batch.to(self.device)))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        parameters = dict(self._named)
        for name, value in check_weights(weights, self._shapes):
            safe_set_local_fp32_param(parameters[name], self._piece(value))
        self._refresh()

    def snapshot(self, copy: bool) -> Snapshot:
        # Made parameter by parameter, and copied in any case: whole they would fill the GPU.
        return Snapshot.take(self._sharded_state(), num_updates(self._adam), self._world, copy=True)

    def load(self, folder: Path) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        tensors = {
            f"{kind}.{name}": self._empty(shape)
            for name, shape in self._shapes.items()
            for kind in (WEIGHTS, *MOMENTS)
        }
        set_num_updates(self._adam, read_state(folder, tensors, self._world))
        for name, parameter in self._named:
            piece = self._piece(tensors.pop(f"{WEIGHTS}.{name}").full_tensor())
            safe_set_local_fp32_param(parameter, piece)
            for key in MOMENTS:
                piece = self._piece(tensors.pop(f"{key}.{name}").full_tensor())
                safe_set_local_optimizer_state(parameter, piece, key)
        self._refresh()

    def full_weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, _, piece in self._local_weights():
            value = self._join(piece, self._shapes[name])
            if self._world.is_main:
                weights[name] = value.to("cpu", copy=True)
        return weights

    def weights_checksum(self) -> str:
        pieces = ((name, piece) for name, _, piece in self._local_weights())
        return weights_checksum(pieces, self._world)

    def _local_weights(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        from deepspeed.utils import safe_get_local_fp32_param

        for name, parameter in self._named:
            yield name, parameter, safe_get_local_fp32_param(parameter)

    def _sharded_state(self) -> Iterator[tuple[str, DTensor]]:
        from deepspeed.utils import safe_get_local_optimizer_state

        for name, parameter, piece in self._local_weights():
            yield f"{WEIGHTS}.{name}", self._rows(piece, self._shapes[name])
            for key in MOMENTS:
                piece = safe_get_local_optimizer_state(parameter, key)
                yield f"{key}.{name}", self._rows(piece, self._shapes[name])

    def _join(self, piece: Tensor, shape: torch.Size) -> Tensor:
        """The whole parameter from the flat pieces of all ranks; the last may end in padding."""
        pieces = [torch.empty_like(piece) for _ in range(self.dp_size)]
        dist.all_gather(pieces, piece.contiguous())
        return torch.cat(pieces)[: shape.numel()].view(shape)

    def _rows(self, piece: Tensor, shape: torch.Size) -> DTensor:
        """This rank's share of the first dimension, as `fsdp2` has it."""
        whole = self._join(piece, shape)
        return distribute_tensor(whole, self._mesh, [Shard(0)], src_data_rank=None)

    def _empty(self, shape: torch.Size) -> DTensor:
        return empty(shape, dtype=torch.float32, device_mesh=self._mesh, placements=[Shard(0)])

    def _piece(self, whole: Tensor) -> Tensor:
        """This rank's flat piece of a whole tensor, padded with zeros at the end."""
        numel = -(-whole.numel() // self.dp_size)
        flat = whole.detach().to(self.device, torch.float32).flatten()
        start = min(numel * self.dp_rank, flat.numel())
        piece = torch.zeros(numel, dtype=torch.float32, device=self.device)
        own = flat[start : start + numel]
        piece[: own.numel()] = own
        return piece

    def _refresh(self) -> None:
        """Copies the masters into the parameters that the next forward gathers. Without it the
        first forward would see the old ones; DeepSpeed does this itself only after an update."""
        optimizer = self._engine.optimizer
        for index in range(len(optimizer.fp16_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _engine_config(cfg: ParallelConfig) -> dict[str, object]:
    # The batch is never named: with rows that do not divide evenly it has no fixed size, and
    # `set_gradient_accumulation_boundary` says where a step ends.
    return {
        "train_micro_batch_size_per_gpu": cfg.micro_rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": DTYPES[cfg.dtype] is torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": 3},
        "steps_per_print": None,
    }


def _import_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed, quiet, on this device, without compiling anything."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # a launcher sets it; DeepSpeed insists on it
    try:
        import deepspeed
    except ImportError as error:
        raise MachineError(
            f"parallel=zero3 needs DeepSpeed, which does not import here ({error}); "
            "run: pip install deepspeed==0.19.8, or take parallel=fsdp2"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It still calls collectives by the names that torch 2.13 renamed, once a collective.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+` is deprecated")
    if device.type == "cpu":
        # Its shared-memory collectives are compiled at first use, for half a minute; gloo's serve.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
