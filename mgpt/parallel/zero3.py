"""DeepSpeed's ZeRO: at stage 3 weights, gradients and state are split flat across the ranks.

DeepSpeed holds each parameter as one flat piece a rank, empty outside the forward and backward of
its module, with float32 masters and optimizer state in flat buffers of their own; at stages 1 and 2
the weights of the passes are whole on every rank. Gradients come out divided by the number of
ranks, which the loss is multiplied by beforehand. Checkpoints have the layout of every other
backend: pieces (`zero_pieces`) are exchanged for rows of the first dimension, one parameter at a
time. DeepSpeed's configuration is made here, from `ParallelConfig` alone.

    >>> backend = Zero3Backend(ParallelConfig(name="zero3", dtype="float32"),
    ...                        TrainingModule(model, 1e-5), OptimConfig(),
    ...                        init_distributed(), sharding_plan(model), seed=0)
"""

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, empty

from mgpt.dtypes import DTYPES, DtypeChoice
from mgpt.errors import MachineError
from mgpt.optim.config import OptimConfig
from mgpt.optim.optimizer import AVERAGE
from mgpt.parallel.backend import (
    MicroBatch,
    MicroSums,
    ParallelConfig,
    TrainingModule,
    check_weights,
    detached_sums,
)
from mgpt.parallel.dist import World
from mgpt.parallel.footprint import FP32_BYTES, Part, RankShare
from mgpt.parallel.own_time import OwnTime
from mgpt.parallel.recompute import recompute_blocks
from mgpt.parallel.snapshot import Snapshot
from mgpt.parallel.state import (
    WEIGHTS,
    checkpoint_bytes,
    read_state,
    weights_checksum,
)
from mgpt.parallel.zero_optimizer import ZeroOptimizer
from mgpt.parallel.zero_pieces import stage_pieces

__all__ = ["REDUCE_BUCKET_NUMEL", "Zero3Backend", "engine_config"]

REDUCE_BUCKET_NUMEL = 5 * 10**8
"""Elements of gradients that go to the other ranks together, as DeepSpeed has it."""
_LIVE_NUMEL, _PREFETCH_NUMEL = 10**9, 5 * 10**7  # DeepSpeed's defaults of gathered elements


class Zero3Backend:
    """One model under ZeRO; see `mgpt.parallel.backend.Backend` for the contract."""

    on_many: ClassVar[bool] = True
    splits_flat: ClassVar[bool] = True
    gathers_in_blocks: ClassVar[bool] = True
    own_time: OwnTime
    dtype: DtypeChoice

    @classmethod
    def problem(cls, cfg: ParallelConfig) -> str | None:
        if cfg.offload == "all" and cfg.zero_stage != 3:
            return (
                f"offload=all zero_stage={cfg.zero_stage}: weights that are whole on every rank "
                "cannot be offloaded; take offload=optimizer or zero_stage=3"
            )
        if cfg.recompute == "selective":
            return "recompute=selective: zero3 takes none or full; or take fsdp2"
        if cfg.compile:
            return "compile=true: zero3 does not compile blocks; take fsdp2"
        return None

    @classmethod
    def sharing(cls, cfg: ParallelConfig, ranks: int, of_a_node: int) -> int:
        return ranks

    @classmethod
    def held(cls, share: RankShare, left: int) -> list[Part]:
        groups, stage, size = share.groups, share.cfg.zero_stage, share.itemsize
        live = size * min(groups.whole, _LIVE_NUMEL + _PREFETCH_NUMEL) if stage == 3 else 0
        bucket = min(groups.whole, REDUCE_BUCKET_NUMEL)
        made = share.back_numel(left) // share.ranks if left else groups.shard
        gradients = {
            1: Part.always("gradients, float32", FP32_BYTES * groups.whole),
            2: share.gradients(groups.shard, share.accumulates, made),
            3: Part.always("gradients, float32", FP32_BYTES * groups.shard),
        }[stage]
        # Gradients, and in float32 as they are sent. Stage 2 joins them first; stage 3 does so
        # too, in float32 from the start, in a bucket that is always there, and gloo makes a copy.
        sent = {
            1: (0, (size + FP32_BYTES) * bucket),
            2: (0, (2 * size + FP32_BYTES) * bucket),
            3: (FP32_BYTES * bucket, (3 if share.on_cpu else 2) * FP32_BYTES * bucket),
        }[stage]
        weights = size * (groups.shard if stage == 3 else groups.whole)
        return [
            Part.always("weights in the pass's type", weights),
            Part.always("master weights, float32", FP32_BYTES * groups.shard),
            gradients,
            Part.always("optimizer state", FP32_BYTES * groups.state),
            Part("gathered weights", live, live),
            Part("gradients on their way", *sent, sent[0]),
        ]

    @classmethod
    def savings(cls, cfg: ParallelConfig, accumulates: bool) -> Iterator[dict[str, Any]]:
        if cfg.zero_stage < 3:
            yield {"zero_stage": cfg.zero_stage + 1}

    def __init__(
        self,
        cfg: ParallelConfig,
        module: TrainingModule,
        optim_cfg: OptimConfig,
        world: World,
        plan: Sequence[str],
        seed: int,
    ) -> None:
        """`module` comes on the meta device. Raises MachineError where DeepSpeed, or what its
        offloading to disk needs, is not installed."""
        self.dp_rank, self.dp_size, self.device = world.rank, world.size, world.device
        self._world = world
        world.require_process_group()
        deepspeed = _import_deepspeed(self.device, needs_disk=cfg.offload_folder is not None)
        self._mesh = init_device_mesh(self.device.type, (self.dp_size,))
        recompute_blocks(module.model, plan, cfg.recompute, reentrant=cfg.zero_stage == 3)
        self._shapes = {name: p.shape for name, p in module.named_weights()}
        self.num_parameters = sum(shape.numel() for shape in self._shapes.values())
        self._trained_rows = module.model.trained_rows
        self.checkpoint_bytes = checkpoint_bytes(module.named_weights(), optim_cfg)
        self._optim_cfg, self._decay_lr = optim_cfg, 0.0
        self.has_averages = optim_cfg.ema_decay > 0
        optimizer = ZeroOptimizer(
            optim_cfg, module.named_weights(), decays=self._trained_rows is None
        )
        config = engine_config(cfg, self.num_parameters)
        _place(deepspeed, module, optimizer, config, self.device, DTYPES[cfg.dtype])
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )
        self._pieces = stage_pieces(self._engine, dict(module.named_weights()), self._shapes)
        self._spans = world.gather_objects([self._pieces.span(name) for name in self._shapes])
        self._optimizer: ZeroOptimizer = self._engine.optimizer.optimizer
        self._pieces.prepare(self._optimizer)
        self._norm, self._limit = math.nan, math.inf
        self._pieces.judge_norms(self._within_limit)
        if self._trained_rows is not None:
            # DeepSpeed looks for values that are not finite first, and then calls the optimiser.
            self._optimizer.register_step_pre_hook(lambda *_: self._decay_trained_rows())
        for name, shape in self._shapes.items():
            rows = self._rows_here(name)
            self._write(name, module.model.initial_rows(name, tuple(shape), rows, seed))
        self._pieces.refresh()

    def forward_backward(self, batch: MicroBatch, loss_scale: float, last: bool) -> MicroSums:
        self.own_time.enter()
        self._engine.train()
        self._engine.set_gradient_accumulation_boundary(last)
        sums = self._engine(batch.to(self.device))
        # The engine averages over the ranks and, unless told not to, over the micro-batches.
        loss = sums.loss_sum * (loss_scale * self.dp_size)
        self._engine.backward(loss, scale_wrt_gas=False)
        self.own_time.leave()
        return detached_sums(sums)

    def step(self, lr: float, max_norm: float, limit: float = math.inf) -> tuple[float, bool]:
        self._engine.optimizer.clip_grad, self._limit, self._norm = max_norm, limit, math.nan
        self._optimizer.set_lr(lr)
        self._decay_lr = lr
        self._engine.step()
        return self._norm, not self._engine.optimizer.overflow

    def _within_limit(self, norm: float) -> bool:
        self._norm = norm
        return norm <= self._limit

    def _decay_trained_rows(self) -> None:
        """Weight decay if only some rows train, once a step: the optimizer is called for each
        group."""
        assert self._trained_rows is not None
        if self._decay_lr == 0.0:
            return
        name, start, stop = self._trained_rows
        piece, width = self._pieces.read(name), self._shapes[name][1]
        first, _ = self._pieces.span(name)
        own = piece[max(0, start * width - first) : max(0, stop * width - first)]
        lr = self._decay_lr * self._optim_cfg.lr_ratio(
            self._optim_cfg.rule_of(name, self._shapes[name])
        )
        own.mul_(1.0 - lr * self._optim_cfg.weight_decay)
        self._pieces.write(name, piece)
        self._decay_lr = 0.0

    def evaluate(self, batch: MicroBatch) -> MicroSums:
        self._engine.eval()
        with torch.no_grad():
            return detached_sums(self._engine(batch.to(self.device)))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    def _swap_average(self) -> None:
        if not self.has_averages:
            return
        for name in self._shapes:
            weights, averages = self._pieces.read(name), self._pieces.read(name, AVERAGE)
            self._pieces.write(name, averages)
            self._pieces.write(name, weights, AVERAGE)
        self._pieces.refresh()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, value in check_weights(weights, self._shapes):
            self._write(name, value[slice(*self._rows_here(name))])
        self._pieces.refresh()

    def snapshot(self, copy: bool) -> Snapshot:
        # Made parameter by parameter, and copied in any case: whole they would fill the GPU.
        return Snapshot.take(
            self._sharded_state(), self._optimizer.num_updates, self._world, copy=True
        )

    def load(self, folder: Path) -> None:
        tensors = {
            f"{kind}.{name}": self._empty(shape)
            for name, shape in self._shapes.items()
            for kind in (WEIGHTS, *self._state_names(name))
        }
        saved = read_state(folder, tensors, self._world)
        self._optimizer.num_updates = saved.num_updates
        for name in self._shapes:
            for kind in (WEIGHTS, *self._state_names(name)):
                starts_average = kind == AVERAGE and not saved.has_averages
                whole = tensors[f"{WEIGHTS if starts_average else kind}.{name}"].full_tensor()
                rows = whole[slice(*self._rows_here(name))]
                self._write(name, rows, None if kind == WEIGHTS else kind)
            for kind in (WEIGHTS, *self._state_names(name)):
                del tensors[f"{kind}.{name}"]
        self._pieces.refresh()

    def full_weights(self) -> dict[str, Tensor]:
        weights = {}
        for name in self._shapes:
            value = self._join(name, self._pieces.read(name))
            if self._world.is_main:
                weights[name] = value.to("cpu", copy=True)
        return weights

    def weights_checksum(self) -> str:
        pieces = ((name, self._pieces.read(name)) for name in self._shapes)
        return weights_checksum(pieces, self._world)

    def _sharded_state(self) -> Iterator[tuple[str, DTensor]]:
        for name in self._shapes:
            yield f"{WEIGHTS}.{name}", self._rows(name, self._pieces.read(name))
            for key in self._state_names(name):
                yield f"{key}.{name}", self._rows(name, self._pieces.read(name, key))

    def _state_names(self, name: str) -> tuple[str, ...]:
        return self._optim_cfg.state_names(name, self._shapes[name])

    def _join(self, name: str, piece: Tensor) -> Tensor:
        """The whole parameter from the elements that each rank holds."""
        shape = self._shapes[name]
        spans = [spans[list(self._shapes).index(name)] for spans in self._spans]
        longest = max(numel for _, numel in spans)
        padded = piece.new_zeros(longest)
        padded[: piece.numel()] = piece
        parts = [torch.empty_like(padded) for _ in spans]
        dist.all_gather(parts, padded)
        whole = piece.new_empty(shape.numel())
        for (start, numel), part in zip(spans, parts, strict=True):
            whole[start : start + numel] = part[:numel]
        return whole.view(shape)

    def _rows(self, name: str, piece: Tensor) -> DTensor:
        """This rank's share of the first dimension, as `fsdp2` has it."""
        whole = self._join(name, piece)
        return distribute_tensor(whole, self._mesh, [Shard(0)], src_data_rank=None)

    def _empty(self, shape: torch.Size) -> DTensor:
        return empty(shape, dtype=torch.float32, device_mesh=self._mesh, placements=[Shard(0)])

    def _rows_here(self, name: str) -> tuple[int, int]:
        """Rows, start to stop - 1, that this rank's elements lie in."""
        (first, numel), width = self._pieces.span(name), self._shapes[name][1:].numel()
        return first // width, -(-(first + numel) // width)

    def _write(self, name: str, rows: Tensor, state: str | None = None) -> None:
        """Sets this rank's elements from the rows that they lie in."""
        first, numel = self._pieces.span(name)
        skipped = first % self._shapes[name][1:].numel()
        values = rows.detach().flatten()[skipped : skipped + numel]
        self._pieces.write(name, values.to(self.device, torch.float32), state)


def engine_config(cfg: ParallelConfig, num_parameters: int) -> dict[str, object]:
    """DeepSpeed's configuration from ours."""
    bucket = min(REDUCE_BUCKET_NUMEL, num_parameters)  # it is made whole, however small the model
    # The batch is never named: with rows that do not divide evenly it has no fixed size, and
    # `set_gradient_accumulation_boundary` says where a step ends.
    return {
        "train_micro_batch_size_per_gpu": cfg.micro_rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        # Our rules update offloaded tensors on the CPU as well, with the same bits.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": DTYPES[cfg.dtype] is torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": cfg.zero_stage,
            "reduce_bucket_size": bucket,
            **_offload(cfg),
        },
        "steps_per_print": None,
    }


def _offload(cfg: ParallelConfig) -> dict[str, object]:
    if cfg.offload == "none":
        return {}
    place: dict[str, object] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if cfg.offload_folder is not None:
        place = {**place, "device": "nvme", "nvme_path": cfg.offload_folder}
    parts = (
        ("offload_optimizer", "offload_param") if cfg.offload == "all" else ("offload_optimizer",)
    )
    return {part: dict(place) for part in parts}


def _place(
    deepspeed: ModuleType,
    module: TrainingModule,
    optimizer: torch.optim.Optimizer,
    config: dict[str, object],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Gives a module on the meta device memory, at stage 3 for this rank's part alone.

    Stage 3 takes it leaf by leaf: a leaf is made whole without values, split and let go, in the
    passes' own type, since DeepSpeed casts nothing that is split. The optimiser, which was made
    over shapes, gets the parameters that come of it.
    """
    names = {id(parameter): name for name, parameter in module.named_weights()}
    if config["zero_optimization"]["stage"] == 3:  # type: ignore[index]
        swapper = None  # of weights on a disk: one, since it has buffers
        for leaf in module.modules():
            if next(leaf.parameters(recurse=False), None) is not None:
                assert next(leaf.children(), None) is None, "weights belong to leaves"
                leaf.to(dtype).to_empty(device=device)
                swapper = deepspeed.zero.Init(
                    module=leaf, config_dict_or_path=config, param_swapper=swapper
                ).param_swapper
    else:
        module.to_empty(device=device)
    parameters = dict(module.named_weights())
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[id(one)]] for one in group["params"]]


def _import_deepspeed(device: torch.device, needs_disk: bool) -> ModuleType:
    """DeepSpeed, quiet, on this device; it compiles nothing but what it needs for disks."""
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
    if needs_disk and not deepspeed.ops.__compatible_ops__.get("async_io", False):
        raise MachineError(
            "parallel.offload_folder needs DeepSpeed's async_io, which cannot be built here; "
            "install libaio's headers (apt-get install libaio-dev), or leave offload_folder out"
        )
    return deepspeed
