"""What a backend is: one model trained by many ranks, behind six verbs.

A backend owns the model, its optimiser and their sharding. Whoever trains gives it micro-batches
and a scale, and gets sums back; the loss that is minimised is

    (nll_sum + z_loss * z_sum) * loss_scale,   summed over micro-batches and ranks,

with loss_scale = 1 / (trained tokens of the step on all ranks). Each backend undoes whatever
averaging its library does, so accumulation and world size cannot change the gradient. `single` is
the reference; the others must agree with it.

    >>> backend = build_backend(ParallelConfig(), lambda: Transformer(cfg), OptimConfig(),
    ...                         World(), z_loss=1e-5, seed=0, sharding_plan=sharding_plan)
    >>> sums = backend.forward_backward(batch, loss_scale=1 / 900, last=True)
    >>> grad_norm, updated = backend.step(lr=1e-4, max_norm=1.0)

Shape suffixes: B rows of the micro-batch, T tokens of a row.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mgpt.dtypes import Dtype, DtypeChoice, choose_dtype
from mgpt.errors import ConfigError
from mgpt.optim.config import OptimConfig
from mgpt.optim.table import OPTIMIZERS
from mgpt.parallel.dist import World
from mgpt.parallel.footprint import Part, RankShare
from mgpt.parallel.meta import on_meta
from mgpt.parallel.own_time import OwnTime
from mgpt.parallel.shapes import check_shapes
from mgpt.parallel.snapshot import Snapshot

__all__ = [
    "BACKENDS",
    "Backend",
    "MicroBatch",
    "MicroSums",
    "ParallelConfig",
    "TrainableModel",
    "TrainingModule",
    "backend_class",
    "backends_on_many",
    "build_backend",
    "check_weights",
    "detached_sums",
    "optimizer_problem",
]


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is spread over processes."""

    name: str = "single"
    """single: one process; fsdp2: PyTorch's fully_shard; zero3: DeepSpeed's ZeRO."""
    procs: int | Literal["auto"] = "auto"
    """Processes on this machine; auto: 1 for single, else one a GPU; on a CPU as many as its cores
    hold at `threads` each, at most 2."""
    micro_rows: int = 1
    """Rows that one rank takes through forward and backward at once."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What a block makes again in the backward pass. full: all of it, from its input; selective:
    all but matrix products and attention, for half the memory at little time (not under zero3)."""
    compile: bool = False
    """torch.compile for the blocks: faster on a GPU, a minute or more slower to start; single and
    fsdp2 only."""
    dtype: Dtype = "auto"
    """Of forward and backward; weights, moments and reductions are float32 in either case. auto:
    bfloat16 where every rank's device multiplies it natively, else float32."""
    gather: Literal["block", "model"] = "block"
    """fsdp2 only: what a rank holds whole at once. block: least memory; model: fewest messages, for
    models so small that a step's collectives cost more than its sums."""
    shard_ranks: int | Literal["all", "node"] = "all"
    """fsdp2 only: ranks that share one copy of the model, and a divisor of their number; the others
    hold copies of what these hold. node: those of one machine, so that no weight is gathered across
    machines, for more memory."""
    reshard: int | Literal["always", "never"] = "always"
    """fsdp2 only: what becomes of a block's gathered weights after its forward pass. always: freed,
    and gathered again for the backward pass; never: kept until the step's last one, as in ZeRO
    stage 2; a number: split over so many neighbouring ranks, a divisor of those that share."""
    prefetch: int = 1
    """fsdp2 only: blocks whose weights are on their way while one is at work."""
    zero_stage: Literal[1, 2, 3] = 3
    """zero3 only: what is split over the ranks. 1: optimizer state and master weights; 2: and
    gradients; 3: and the weights themselves."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What stays in main memory instead of the GPU's. optimizer: its state and master weights,
    updated on the CPU (zero3 only); all: the split weights, too (fsdp2, zero3 at stage 3)."""
    offload_folder: str | None = None
    """zero3 only: a folder on a local NVMe disk that takes what is offloaded."""
    reduce_each_micro_batch: bool = False
    """fsdp2 only. True: gradients stay sharded between micro-batches, for one reduction each;
    False: one reduction a step, for a whole float32 gradient on every rank while accumulating."""
    threads: int = 1
    """torch's threads a process on a CPU. A setting, not a guess: sums depend on it."""
    timeout_s: float = 1800.0
    """Longest wait in one collective, in seconds."""

    def __post_init__(self) -> None:
        for field in ("micro_rows", "threads", "timeout_s"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}={getattr(self, field)} must be above 0")
        if self.procs != "auto" and self.procs < 1:
            raise ValueError(f"procs={self.procs} must be at least 1, or auto")
        if self.name not in BACKENDS:
            raise ValueError(f"name={self.name!r} is none of {', '.join(BACKENDS)}")
        if not self.on_many and self.procs not in ("auto", 1):
            raise ValueError(
                f"procs={self.procs}: {self.name} runs in 1 process; take "
                f"{' or '.join(backends_on_many())}"
            )
        for field in ("shard_ranks", "reshard"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{field}={value} must be at least 1")
        if self.prefetch < 0:
            raise ValueError(f"prefetch={self.prefetch} must not be negative")
        if self.offload == "none" and self.offload_folder is not None:
            raise ValueError(
                f"offload_folder={self.offload_folder} needs offload=optimizer or offload=all"
            )
        problem = backend_class(self.name).problem(self)
        if problem:
            raise ValueError(problem)

    @property
    def on_many(self) -> bool:
        """Whether the backend runs on several processes."""
        return backend_class(self.name).on_many

    @property
    def asked_procs(self) -> int | Literal["auto"]:
        """`procs`; 1 instead of auto for a backend of one process."""
        return 1 if self.procs == "auto" and not self.on_many else self.procs


class MicroBatch(NamedTuple):
    """Rows that go through the model together; int64 each."""

    ids_BT: Tensor
    labels_BT: Tensor
    """The target of each position, -100 where none is trained."""
    positions_BT: Tensor
    """Position within its document; 0 starts a document."""

    @classmethod
    def from_rows(cls, rows: Any, device: torch.device) -> "MicroBatch":
        """Packed rows (`mgpt.data.rows.Rows`) on a device."""
        arrays = (rows.ids, rows.labels, rows.positions)
        return cls(
            *(torch.from_numpy(a).to(device, torch.int64, non_blocking=True) for a in arrays)
        )

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class MicroSums(NamedTuple):
    """What one micro-batch cost on this rank; detached."""

    nll_sum: Tensor
    """Sum of the negative log-likelihoods in nats over the trained tokens; a scalar."""
    z_sum: Tensor
    """Sum of logsumexp² over the same tokens, without its coefficient; a scalar."""
    token_nll_BT: Tensor
    """The same by token, float32; 0 where nothing is trained."""


class LossSums(Protocol):
    """What the model's `training_sums` must return: a NamedTuple, so that the hooks of fully_shard
    and DeepSpeed find the tensors in it."""

    nll_sum: Tensor
    z_sum: Tensor
    token_nll: Tensor
    loss_sum: Tensor


class TrainableModel(Protocol):
    """What a backend asks of a model, which is an nn.Module (mgpt.models.transformer)."""

    def initial_rows(
        self, name: str, shape: tuple[int, ...], rows: tuple[int, int], seed: int
    ) -> Tensor:
        """Rows start to stop - 1 of a parameter's first value, float32 on the CPU."""
        ...

    def training_sums(
        self, ids_BT: Tensor, positions_BT: Tensor, labels_BT: Tensor, z_loss: float
    ) -> LossSums: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    @property
    def trained_rows(self) -> tuple[str, int, int] | None:
        """The one parameter that trains and its rows, start to stop; None where all train."""


class TrainingModule(nn.Module):
    """A model with its loss as `forward`, which is where every sharding library puts its hooks."""

    def __init__(self, model: TrainableModel, z_loss: float) -> None:
        super().__init__()
        self.model = model
        self.z_loss = z_loss

    def forward(self, batch: MicroBatch) -> LossSums:
        return self.model.training_sums(
            batch.ids_BT, batch.positions_BT, batch.labels_BT, self.z_loss
        )

    def named_weights(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters under the names they have in the model."""
        return list(self.model.named_parameters())


class Backend(Protocol):
    """One model on the ranks of a world, and what a backend's class declares about itself.

    All methods of an instance are collective: every rank calls them, in the same order and as
    often. A backend's own settings are fields of ParallelConfig.
    """

    on_many: ClassVar[bool]
    """Whether it runs on several processes."""
    splits_flat: ClassVar[bool]
    """Whether parameters are split by elements over the ranks, not by rows, so that no rank has a
    whole matrix to update."""
    gathers_in_blocks: ClassVar[bool]
    """Whether weights are gathered inside the blocks, whose time is then not a rank's own."""

    @classmethod
    def problem(cls, cfg: ParallelConfig) -> str | None:
        """Why this backend cannot run with these settings; None if it can."""
        ...

    @classmethod
    def sharing(cls, cfg: ParallelConfig, ranks: int, of_a_node: int) -> int:
        """Ranks that share one copy of the model; ConfigError if they cannot be divided so."""
        ...

    @classmethod
    def held(cls, share: RankShare, left: int) -> list[Part]:
        """Memory of one rank beside activations and loss.

        `left` counts the blocks whose backward pass is not done, the one at work among them;
        layers + 1: the head is at work; 0: the embedding.
        """
        ...

    @classmethod
    def savings(cls, cfg: ParallelConfig, accumulates: bool) -> Iterator[dict[str, Any]]:
        """Changes of this backend's own settings that save memory, those that cost least first."""
        ...

    def __init__(
        self,
        cfg: ParallelConfig,
        module: TrainingModule,
        optim_cfg: OptimConfig,
        world: World,
        plan: Sequence[str],
        seed: int,
    ) -> None:
        """`module` comes on the meta device; `plan` names what is sharded each on its own.

        Raises:
            ConfigError: it cannot run on that many processes, or cannot be divided as asked.
            MachineError: a library that it needs is not installed.
        """
        ...

    dp_rank: int
    """Which share of the rows is this rank's."""
    dp_size: int
    device: torch.device
    num_parameters: int
    """Of the whole model."""
    checkpoint_bytes: int
    """Of all weights and optimizer state, float32, on all ranks together."""
    has_averages: bool
    """Whether averaged weights are kept."""
    own_time: OwnTime
    dtype: DtypeChoice

    def forward_backward(self, batch: MicroBatch, loss_scale: float, last: bool) -> MicroSums:
        """Adds this micro-batch's gradients. `last` is set on the last one before `step`."""
        ...

    def step(self, lr: float, max_norm: float, limit: float = math.inf) -> tuple[float, bool]:
        """Clips to `max_norm` (0: never) and updates once; gradients are empty afterwards.

        Returns the norm before clipping, over all ranks, and whether weights and state were
        updated. Where the norm is not finite, or above `limit`, no rank updates anything; below 0
        there is no norm, so that a negative limit throws the gradients away.
        """
        ...

    def evaluate(self, batch: MicroBatch) -> MicroSums:
        """The sums without gradients and without dropout."""
        ...

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within it the weights are the averaged ones, if some are kept."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sets every weight, from full tensors that each rank is given; optimizer state stays.

        Raises CheckpointError that lists all missing, unknown and misshapen names.
        """
        ...

    def snapshot(self, copy: bool) -> Snapshot:
        """This rank's part of weights, optimizer state and update count: a checkpoint's `state/`.

        With `copy` nothing that training does later changes it; without, it is to be written
        before the next step.
        """
        ...

    def load(self, folder: Path) -> None:
        """Reads what any backend saved, on any number of ranks. Raises CheckpointError."""
        ...

    def full_weights(self) -> dict[str, Tensor]:
        """All weights in float32 on the CPU, on rank 0; an empty dict elsewhere."""
        ...

    def weights_checksum(self) -> str:
        """16 hex digits of the weights' bits, the same for any sharding of the same weights."""
        ...


BACKENDS: dict[str, str] = {
    "single": "mgpt.parallel.single:SingleBackend",
    "fsdp2": "mgpt.parallel.fsdp2:Fsdp2Backend",
    "zero3": "mgpt.parallel.zero3:Zero3Backend",
}


def backend_class(name: str) -> type[Backend]:
    """The class of a backend, imported when it is asked for."""
    module_name, class_name = BACKENDS[name].split(":")
    return getattr(importlib.import_module(module_name), class_name)


def backends_on_many() -> list[str]:
    """Names of the backends that run on several processes."""
    return [name for name in BACKENDS if backend_class(name).on_many]


def build_backend(
    cfg: ParallelConfig,
    model_fn: Callable[[], Any],
    optim_cfg: OptimConfig,
    world: World,
    z_loss: float,
    seed: int,
    sharding_plan: Callable[[Any], Sequence[str]],
) -> Backend:
    """A freshly initialized model on this world's ranks, ready to train.

    Args:
        model_fn: makes the model. It is called with the meta device as the default, so that a
            sharded model is never whole; each rank then asks `initial_rows` for its own.
        sharding_plan: names the submodules that are sharded, and recomputed, each on its own.

    Raises:
        ConfigError: a single process asked of several, or an optimizer that cannot be.
        MachineError: DeepSpeed is asked for and is not installed.
    """
    problem = optimizer_problem(cfg, optim_cfg)
    if problem:
        raise ConfigError(problem)
    if world.device.type == "cpu":
        torch.set_num_threads(cfg.threads)
    dtype = choose_dtype(cfg.dtype, world.device, gather=world.gather_objects)
    cfg = replace(cfg, dtype=dtype.name)
    model: TrainableModel = on_meta(model_fn)
    chosen = backend_class(cfg.name)
    plan, own_time = list(sharding_plan(model)), OwnTime(world.device)
    if not chosen.gathers_in_blocks:
        own_time.watch(model.get_submodule(name) for name in plan)
    backend = chosen(cfg, TrainingModule(model, z_loss), optim_cfg, world, plan, seed)
    backend.own_time, backend.dtype = own_time, dtype
    return backend


def optimizer_problem(cfg: ParallelConfig, optim_cfg: OptimConfig) -> str | None:
    """Why the backend cannot update with the optimizer; None if it can."""
    if not backend_class(cfg.name).splits_flat or OPTIMIZERS[optim_cfg.kind].by != "matrix":
        return None
    able = [name for name in backends_on_many() if not backend_class(name).splits_flat]
    return (
        f"optim.kind={optim_cfg.kind} updates whole matrices, which parallel={cfg.name} splits "
        f"flat over the ranks; take parallel={' or '.join(able)} or optim.kind=adamw"
    )


def check_weights(
    weights: Iterable[tuple[str, Tensor]], shapes: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Passes the pairs on; raises CheckpointError at the end of the stream for all that was wrong.

    A misshapen or unknown tensor is held back, so that a consumer may copy what it is given.
    """
    found: dict[str, torch.Size] = {}
    for name, tensor in weights:
        found[name] = tensor.shape
        if shapes.get(name) == tensor.shape:
            yield name, tensor
    check_shapes("the weights do not fit", found, shapes)


def detached_sums(sums: LossSums) -> MicroSums:
    """What is left of the model's sums when their graph is gone."""
    return MicroSums(sums.nll_sum.detach(), sums.z_sum.detach(), sums.token_nll.detach())
