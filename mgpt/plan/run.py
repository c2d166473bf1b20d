"""A run before it is queued: does it fit, how large is it, how long does it take.

Everything follows from the run's numbers and the machine's; nothing is started. Where a run does
not fit, the changes that would make it fit are tried one by one, and named with what they bring.

    >>> run = RunSize(SIZES["7b"], ParallelConfig("fsdp2", dtype="bfloat16"), steps=1000,
    ...               step_rows=64, row_tokens=8192, document_tokens=4164)
    >>> plan = plan_run(run, Machine("A100-80", nodes=8, procs=8))
    >>> plan.problems
    []
    >>> round(plan.hours, 1)
    0.8
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mgpt.models.table import DecoderConfig, ForwardFlops, decoder_of
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import (
    ParallelConfig,
    backend_class,
    backends_on_many,
    optimizer_problem,
)
from mgpt.parallel.footprint import Groups
from mgpt.plan.activations import meta_model
from mgpt.plan.devices import DEVICES
from mgpt.plan.memory import Memory, RankWork, parameter_groups, plan_memory

__all__ = ["Machine", "Plan", "RunSize", "flops_per_token", "plan_run"]

_FP32 = 4
_MOST_RANKS = 4096
_RECOMPUTE, _OFFLOAD = ("none", "selective", "full"), ("none", "optimizer", "all")
"""Values in the order of the memory that they save."""


@dataclass(frozen=True)
class Machine:
    """Where a run will be.

    device: a name of mgpt.plan.devices; device_gb its memory, where it is another.
    nodes, procs: machines, and GPUs (one process each) on each of them.
    reserve_gb: memory of a GPU that the run cannot have: CUDA's context, NCCL's buffers, and what
        lies between the allocator's pieces.
    host_gb: main memory of a machine; None is not checked.
    mfu: share of the GPU's peak that is reached in a step without recomputation, by the
        operations of the model alone.
    """

    device: str = "A100-80"
    device_gb: float | None = None
    nodes: int = 1
    procs: int = 8
    reserve_gb: float = 4.0
    host_gb: float | None = None
    mfu: float = 0.4

    @property
    def ranks(self) -> int:
        return self.nodes * self.procs

    @property
    def memory_gb(self) -> float:
        """Of one GPU, for the run, in 1e9 bytes."""
        whole = DEVICES[self.device].memory_gb if self.device_gb is None else self.device_gb
        return whole - self.reserve_gb

    def flops(self, dtype: str) -> float:
        """Operations a second of one GPU at `mfu`."""
        device = DEVICES[self.device]
        peak = device.bf16_tflops if dtype == "bfloat16" else device.fp32_tflops
        return self.mfu * peak * 1e12


@dataclass(frozen=True)
class RunSize:
    """What a plan must know of a run.

    document_tokens: mean length of a document, over tokens; attention costs that much.
    longest_tokens: of one document; rows cannot be shorter.
    head_only: only the head's image rows train.
    keep: checkpoints that stay.
    optim: the optimizer, which declares its state.
    """

    transformer: DecoderConfig
    parallel: ParallelConfig
    steps: int
    step_rows: int
    row_tokens: int
    document_tokens: float
    longest_tokens: int = 1
    head_only: bool = False
    keep: int = 2
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class Plan:
    """What a run takes. `problems` is empty where it can be queued; `notes` are worth reading."""

    run: RunSize
    machine: Machine
    num_parameters: int
    memory: Memory
    micro_batches: int
    """Of one rank a step."""
    host_bytes: dict[str, int]
    """Main memory of one machine at its tightest moments."""
    checkpoint_bytes: int
    flops_per_token: float
    step_s: float
    problems: list[str]
    notes: list[str]

    @property
    def step_tokens(self) -> int:
        return self.run.step_rows * self.run.row_tokens

    @property
    def hours(self) -> float:
        return self.run.steps * self.step_s / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.machine.ranks


def flops_per_token(cfg: DecoderConfig, document_tokens: float, head_only: bool) -> float:
    """Operations of training on one token, without recomputation.

    A backward pass takes two forward passes. If only the head trains, the blocks run forward alone.
    """
    flops = _forward_flops(cfg, document_tokens)
    return (1 if head_only else 3) * flops.blocks + 3 * flops.head


def _forward_flops(cfg: DecoderConfig, document_tokens: float) -> ForwardFlops:
    return decoder_of(cfg).forward_flops(meta_model(cfg), document_tokens)


def plan_run(run: RunSize, machine: Machine) -> Plan:
    """The plan of a run on a machine; refuses nothing itself, see `Plan.problems`."""
    cfg, ranks = run.transformer, machine.ranks
    micro_batches = _micro_batches(run, ranks)
    memory = _memory(run, machine)
    groups = parameter_groups(cfg, _rank_work(run, machine).sharing, optim=run.optim)
    whole = parameter_groups(cfg, 1, optim=run.optim)
    per_token = flops_per_token(cfg, run.document_tokens, run.head_only)
    rank_tokens = micro_batches * run.parallel.micro_rows * run.row_tokens
    executed = per_token + _recomputed_flops(run)
    plan = Plan(
        run=run,
        machine=machine,
        num_parameters=groups.whole,
        memory=memory,
        micro_batches=micro_batches,
        host_bytes=_host_bytes(run, machine, groups, memory),
        checkpoint_bytes=_FP32 * (groups.whole + whole.state),
        flops_per_token=per_token,
        step_s=rank_tokens * executed / machine.flops(run.parallel.dtype),
        problems=[],
        notes=_notes(run, ranks, micro_batches),
    )
    plan.problems.extend(_problems(plan))
    return plan


def _micro_batches(run: RunSize, ranks: int) -> int:
    return -(-run.step_rows // (ranks * run.parallel.micro_rows))


def _memory(run: RunSize, machine: Machine) -> Memory:
    return plan_memory(_rank_work(run, machine))


def _rank_work(run: RunSize, machine: Machine) -> RankWork:
    return RankWork(
        run.transformer,
        run.parallel,
        machine.ranks,
        run.row_tokens,
        _micro_batches(run, machine.ranks),
        run.head_only,
        machine.procs,
        optim=run.optim,
    )


def _recomputed_flops(run: RunSize) -> float:
    """Operations a token of the blocks' second forward pass; *selective* repeats no product."""
    if run.parallel.recompute != "full" or run.head_only:
        return 0.0
    return _forward_flops(run.transformer, run.document_tokens).blocks


def _host_bytes(run: RunSize, machine: Machine, groups: Groups, memory: Memory) -> dict[str, int]:
    in_memory = run.parallel.offload_folder is None
    offloaded = memory.offloaded_bytes * machine.procs if in_memory else 0
    saved = _FP32 * (groups.shard + groups.state) * machine.procs
    return {
        "start: the largest tensor, in each rank": offloaded + 4 * groups.head * machine.procs,
        "save: a copy of each rank's part": offloaded + saved,
    }


def _notes(run: RunSize, ranks: int, micro_batches: int) -> list[str]:
    notes = []
    places = micro_batches * run.parallel.micro_rows * ranks
    if places != run.step_rows:
        each = ranks * run.parallel.micro_rows
        lower = max(1, run.step_rows // each) * each
        notes.append(
            f"step_rows={run.step_rows} leaves {places - run.step_rows} of {places} places of "
            f"{ranks} ranks empty, {1 - run.step_rows / places:.0%} of the time; a multiple of "
            f"{each}, such as {lower} or {lower + each}, leaves none"
        )
    if run.parallel.offload != "none":
        notes.append(
            f"offload={run.parallel.offload}: the hours leave out what goes to and from the GPU "
            "and the update on the CPU"
        )
    return notes


def _problems(plan: Plan) -> list[str]:
    run, machine = plan.run, plan.machine
    problems = []
    refused = optimizer_problem(run.parallel, run.optim)
    if refused:
        problems.append(refused)
    if run.longest_tokens > run.row_tokens:
        problems.append(
            f"row_tokens={run.row_tokens} is shorter than the longest document, "
            f"{run.longest_tokens} tokens; raise it to that or more"
        )
    if not run.parallel.on_many and machine.ranks > 1:
        problems.append(
            f"parallel={run.parallel.name} runs in 1 process, and {machine.ranks} are planned; "
            f"take parallel={backends_on_many()[0]}, or nodes=1 procs=1"
        )
    need = plan.memory.peak_bytes / 1e9
    if need > machine.memory_gb:
        problems.append(
            f"a rank needs {need:.1f} GB ({plan.memory.tightest}) and {machine.device} has "
            f"{machine.memory_gb:.1f} for it; {_remedy(run, machine)}"
        )
    host = max(plan.host_bytes.values()) / 1e9
    if machine.host_gb is not None and host > machine.host_gb:
        moment = max(plan.host_bytes, key=plan.host_bytes.__getitem__)
        problems.append(
            f"a machine needs {host:.0f} GB of main memory ({moment}) and has "
            f"{machine.host_gb:.0f}; take fewer procs a machine, or more memory"
        )
    return problems


def _remedy(run: RunSize, machine: Machine) -> str:
    """Single changes that make the run fit; else all of them together, as far as is needed."""
    fitting = []
    together_run, together_machine, together = run, machine, {}
    for name, changed_run, changed_machine in _changes(run, machine):
        need = _memory(changed_run, changed_machine).peak_bytes / 1e9
        if need <= machine.memory_gb:
            fitting.append(f"{name} ({need:.1f} GB)")
    if fitting:
        return "what would fit: " + ", or ".join(fitting)
    while True:
        step = next(_changes(together_run, together_machine), None)
        if step is None:
            return "no change of settings makes it fit: take a smaller model or a larger GPU"
        name, together_run, together_machine = step
        together[name.partition("=")[0]] = name
        need = _memory(together_run, together_machine).peak_bytes / 1e9
        if need <= machine.memory_gb:
            return f"what would fit: {' with '.join(together.values())} ({need:.1f} GB)"


def _changes(run: RunSize, machine: Machine) -> Iterator[tuple[str, RunSize, Machine]]:
    """(words, run, machine) of each single change that saves memory, the cheapest in time first."""
    now, backend = run.parallel, backend_class(run.parallel.name)

    def changed(fields: dict[str, object]) -> Iterator[tuple[str, RunSize, Machine]]:
        parallel = _replaced(now, fields)
        if parallel is not None:
            yield _settings_text(fields), replace(run, parallel=parallel), machine

    if not now.on_many:
        other = backends_on_many()[0]
        sharded = replace(run, parallel=replace(now, name=other, procs=8))
        yield f"parallel={other} procs=8", sharded, replace(machine, procs=8)
    accumulates = _micro_batches(run, machine.ranks) > 1
    if now.dtype == "float32":
        yield from changed({"dtype": "bfloat16"})
    for fields in backend.savings(now, accumulates):
        yield from changed(fields)
    if now.micro_rows > 1:
        yield from changed({"micro_rows": now.micro_rows // 2})
    for value in _RECOMPUTE[_RECOMPUTE.index(now.recompute) + 1 :]:
        yield from changed({"recompute": value})
    shorter = run.row_tokens // 2
    if shorter >= max(run.longest_tokens, 1024):
        words = f"data.row_tokens={shorter} data.step_rows={run.step_rows * 2}"
        halved = replace(run, row_tokens=shorter, step_rows=run.step_rows * 2)
        # Twice the rows accumulate, whether or not these did.
        before = list(backend.savings(now, accumulates=False))
        for fields in backend.savings(now, accumulates=True):
            if fields not in before:
                words += f" {_settings_text(fields)}"
                halved = replace(halved, parallel=replace(halved.parallel, **fields))
        yield words, halved, machine
    for value in _OFFLOAD[_OFFLOAD.index(now.offload) + 1 :]:
        yield from changed({"offload": value})
    if now.on_many and machine.ranks < _MOST_RANKS:
        nodes = machine.nodes * 2
        yield f"nodes={nodes}", run, replace(machine, nodes=nodes)


def _replaced(now: ParallelConfig, fields: dict[str, object]) -> ParallelConfig | None:
    """The settings with some changed; None if the backend does not take them."""
    try:
        return replace(now, **fields)  # type: ignore[arg-type]
    except ValueError:
        return None


def _settings_text(fields: dict[str, object]) -> str:
    return " ".join(f"parallel.{name}={_word(value)}" for name, value in fields.items())


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
