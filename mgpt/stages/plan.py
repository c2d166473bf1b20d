r"""mgpt plan: memory, time and size of a run before it is queued; refuses what cannot fit.

Takes the command of a training stage, or of a pipeline, as it is, with the machine's own fields
beside it. Needs no GPU, starts nothing and writes no output: a run on 1,024 ranks is planned on a
laptop. Shards, vocabulary and weights are looked at where they are at hand, and else assumed, which
is said; lengths of documents that were never counted are, and are kept beside their shards. A
recipe may name its machine: `nodes` and `device` among its own values.

Reads: the command of a training stage or a pipeline
Writes: tables; refuses what cannot fit

    mgpt plan fp_sft vocabulary=text model=7b resolution=512 parallel.dtype=bfloat16 output=out \
        steps=26000 data.sources.a.path=tokens data.sources.a.tasks.text_to_image=1 nodes=4
    mgpt plan pipeline recipe=pretrain_7b_64gpu device=H100-80
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mgpt.cli.compose import compose as compose_fields
from mgpt.cli.compose import schema_of
from mgpt.cli.config import Composed, validate
from mgpt.cli.settings import DERIVED
from mgpt.cli.stage_table import TRAINING, compose_stage, load_stage
from mgpt.cli.stage_table import configure as configure_stage
from mgpt.data.source import at_resolution, capped
from mgpt.errors import ConfigError, DataError, MgptError
from mgpt.files.storage import locate
from mgpt.images.buckets import bucket_sizes
from mgpt.lifecycle.weights import Weights, load_vocabulary
from mgpt.models.table import sizes
from mgpt.parallel.backend import ParallelConfig
from mgpt.plan.devices import DEVICES
from mgpt.plan.documents import DocumentLengths, assumed_lengths, count_lengths
from mgpt.plan.run import Machine, Plan, RunSize, plan_run
from mgpt.stages.recipe import read_recipe
from mgpt.stages.released import is_released, plan_model
from mgpt.stages.train import Config as TrainingConfig
from mgpt.stages.train import warnings_of
from mgpt.tokens.vocab import Vocabulary
from mgpt.tracking.tracker import Tracker, console_tracker

PLANNED = (*TRAINING, "pipeline")
_SMALLEST_RELEASED_PX = 256  # below it a VQGAN of 16x leaves next to nothing of a picture


@dataclass(frozen=True)
class Config:
    """The machine, beside the fields of what is planned."""

    device: str | None = None
    """The GPU, a name of mgpt.plan.devices: A100-80, H100-80, H200-141; null: as the recipe says,
    else A100-80."""
    device_gb: float | None = None
    """Memory of a GPU in 1e9 bytes, where it is another than the device's."""
    nodes: int | None = None
    """Machines; null: as the recipe says, else 1."""
    procs: int | None = None
    """GPUs of a machine, a process each; null: parallel.procs, else 8, and 1 for single."""
    reserve_gb: float = 4.0
    """Of a GPU, for CUDA's context, NCCL's buffers and the allocator's gaps."""
    host_gb: float | None = None
    """Main memory of a machine in 1e9 bytes; null: it is not checked."""
    mfu: float = 0.4
    """Share of the GPU's peak that is assumed to be reached, by the model's own operations, without
    recomputation, which costs its time on top."""
    stage: str = field(default="", metadata={DERIVED: True})
    """What is planned."""
    runs: list[tuple[str, TrainingConfig]] = field(default_factory=list, metadata={DERIVED: True})
    """Its training stages by name."""

    def __post_init__(self) -> None:
        if self.device not in (None, *DEVICES):
            raise ValueError(f"device={self.device!r} is none of {', '.join(DEVICES)}")
        for name in ("device_gb", "nodes", "procs", "host_gb", "mfu"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be above 0")
        if self.mfu > 1:
            raise ValueError(f"mfu={self.mfu} is a share of the peak, at most 1")


def compose(overrides: Sequence[str]) -> Composed:
    """The planner's own fields, and under `run` those of what is planned."""
    stages = [word for word in overrides if "=" not in word and not word.startswith("~")]
    if len(stages) != 1 or stages[0] not in PLANNED:
        raise ConfigError(
            f"mgpt plan takes one of {', '.join(PLANNED)}, then its overrides; "
            f"given: {' '.join(stages) or 'none'}"
        )
    stage, own = stages[0], {one.name for one in fields(Config) if DERIVED not in one.metadata}
    mine = [word for word in overrides if word.partition("=")[0] in own]
    rest = [word for word in overrides if word not in (stage, *mine)]
    composed = compose_fields("plan", schema_of(Config), mine)
    run = compose_stage(stage, load_stage(stage), rest)
    return Composed({**composed.tree, "stage": stage, "run": run.tree}, run.choices)


def configure(composed: Composed) -> Config:
    """The machine and the runs, each checked as its own stage would."""
    tree = {key: value for key, value in composed.tree.items() if key not in ("stage", "run")}
    stage, run = composed.tree["stage"], Composed(composed.tree["run"], composed.choices)
    if stage == "pipeline":
        entries = [entry for entry in read_recipe(run) if entry.stage in TRAINING]
        runs = [(entry.name, entry.config) for entry in entries]
        for name in ("nodes", "device"):
            if tree[name] is None:
                tree[name] = run.tree.get(name)
    else:
        runs = [(stage, configure_stage(load_stage(stage), run))]
    return replace(validate(Config, tree), stage=stage, runs=runs)


def main(cfg: Config) -> None:
    tracker = console_tracker("plan")
    problems, gpu_hours = [], 0.0
    for name, run in cfg.runs:
        plan, lengths = plan_stage(cfg, run)
        show(tracker, name, plan, lengths)
        for warning in warnings_of(run):
            tracker.print(f"  warning: {warning}")
        problems += [f"{name}: {problem}" for problem in plan.problems]
        gpu_hours += plan.gpu_hours
    if len(cfg.runs) > 1:
        tracker.print(f"{len(cfg.runs)} stages, {gpu_hours:,.0f} GPU-hours")
    if problems:
        raise ConfigError("\n  ".join(["this cannot be queued as it is:", *problems]))


def plan_stage(cfg: Config, run: TrainingConfig) -> tuple[Plan, DocumentLengths]:
    """The plan of one training stage on the machine, and what it knows of the documents."""
    vocabulary = _vocabulary(run)
    lengths = _lengths(run, vocabulary)
    size = RunSize(
        transformer=_transformer(run, vocabulary),
        parallel=_on_gpus(run.parallel),
        steps=run.steps or _steps_of_epochs(run, lengths),
        step_rows=run.data.step_rows,
        row_tokens=run.data.row_tokens,
        document_tokens=min(lengths.mean_tokens, run.data.row_tokens),
        longest_tokens=lengths.longest_tokens,
        head_only=run.train == "image_head",
        keep=run.keep,
        optim=run.optim,
    )
    given = run.parallel.procs
    usual = 8 if run.parallel.on_many else 1
    machine = Machine(
        device=cfg.device or "A100-80",
        device_gb=cfg.device_gb,
        nodes=cfg.nodes or 1,
        procs=cfg.procs or (given if isinstance(given, int) else usual),
        reserve_gb=cfg.reserve_gb,
        host_gb=cfg.host_gb,
        mfu=cfg.mfu,
    )
    return plan_run(size, machine), lengths


def _on_gpus(parallel: ParallelConfig) -> ParallelConfig:
    """The configuration as it resolves there: every device that is planned multiplies bfloat16."""
    return replace(parallel, dtype="bfloat16") if parallel.dtype == "auto" else parallel


def _vocabulary(run: TrainingConfig) -> Vocabulary | None:
    """The run's vocabulary, None where it is not at hand."""
    for path in (run.vocabulary, run.init_from):
        if path is not None and Path(path).exists():
            try:
                return load_vocabulary(path)
            except MgptError:
                continue
    return None


def _transformer(run: TrainingConfig, vocabulary: Vocabulary | None) -> Any:
    """The weights' own shape, else that of `model` with the vocabulary's size where it is known."""
    found = run.init_from
    if found is not None and is_released(found):
        shape = plan_model(Path(found)).cfg
    elif found is not None and Path(found).exists():
        shape = Weights.find(found).config()
    elif vocabulary is not None:
        shape = run.model.decoder(vocabulary)
    else:
        shape = sizes()[run.model.size]
    return replace(shape, dropout=run.dropout)


def _lengths(run: TrainingConfig, vocabulary: Vocabulary | None) -> DocumentLengths:
    at_hand = all(locate(source.path).exists() for source in run.data.sources.values())
    if at_hand and vocabulary is not None:
        data = replace(run.data, sources=at_resolution(run.data.sources, run.resolution_px))
        if run.epochs is not None:
            data = capped(data, run.epochs)
        return count_lengths(data, vocabulary, run.seed)
    if run.resolution_px is None or run.resolution_px < _SMALLEST_RELEASED_PX:
        return DocumentLengths(run.data.row_tokens, 1, "assumed: as long as a row")
    tasks = {task for source in run.data.sources.values() for task in source.tasks}
    return assumed_lengths(bucket_sizes(run.resolution_px), tasks)


def _steps_of_epochs(run: TrainingConfig, lengths: DocumentLengths) -> int:
    if lengths.steps is None:
        raise DataError(
            f"epochs={run.epochs}: the steps follow from the samples, which are not at hand yet; "
            "give steps= to plan without them"
        )
    return lengths.steps


def show(tracker: Tracker, name: str, plan: Plan, lengths: DocumentLengths) -> None:
    """Two tables on the console: memory by part and moment, and the run's figures."""
    machine, memory = plan.machine, plan.memory
    rows = [
        [part.name, *(_gb(n) for n in (part.loss_bytes, part.backward_bytes, part.update_bytes))]
        for part in memory.parts
    ]
    rows.append(["all", *(_gb(total) for total in memory.totals.values())])
    rows.append(["of", *[f"{machine.memory_gb:.1f}"] * 3])
    columns = ["GB on each rank", "at the loss", "in a block's backward", "at the update"]
    tracker.table(f"{name}: {machine.ranks} x {machine.device}", columns, rows)
    for label, value in _figures(plan, lengths):
        tracker.print(f"  {label:<20}  {value}")
    for note in plan.notes:
        tracker.print(f"  note: {note}")


def _figures(plan: Plan, lengths: DocumentLengths) -> list[tuple[str, str]]:
    run, machine = plan.run, plan.machine
    tokens = run.steps * plan.step_tokens / 1e9
    longest = f"longest {lengths.longest_tokens:,}" if lengths.longest_tokens > 1 else "or less"
    figures = [
        ("parameters", f"{plan.num_parameters:,}"),
        ("a step", f"{run.step_rows:,} rows x {run.row_tokens:,} = {plan.step_tokens:,} tokens"),
        ("a rank's step", f"{plan.micro_batches} x {run.parallel.micro_rows} rows"),
        ("steps", f"{run.steps:,}, {tokens:,.2f} billion tokens"),
        ("documents", f"{lengths.mean_tokens:,.0f} tokens, {longest} ({lengths.origin})"),
        ("operations", f"{plan.flops_per_token / 1e9:.1f} GFLOP a token without recomputation"),
        ("a step takes", f"{plan.step_s:,.2f} s at an assumed {machine.mfu:.0%} of the peak, "
                         f"recompute={run.parallel.recompute}"),
        ("time", f"{plan.hours:,.1f} hours, {plan.gpu_hours:,.0f} GPU-hours"),
        ("checkpoint", f"{_gb(plan.checkpoint_bytes)} GB, {run.keep} kept"),
        ("main memory", f"{_gb(max(plan.host_bytes.values()))} GB a machine ("
                        f"{max(plan.host_bytes, key=plan.host_bytes.__getitem__)})"),
    ]  # fmt: skip
    if lengths.fill is not None:
        figures.append(("rows are filled", f"{lengths.fill:.1%}"))
    if lengths.best_row_tokens is not None and lengths.best_fill is not None:
        best = f"{lengths.best_row_tokens:,}, filled {lengths.best_fill:.1%}"
        figures.append(("best row_tokens", best))
    return figures


def _gb(num_bytes: Any) -> str:
    return f"{num_bytes / 1e9:,.2f}"
