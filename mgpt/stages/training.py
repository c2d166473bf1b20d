"""What the three training stages share: their configuration, and the run from there to a model.

pretrain, fp_sft and omni_sft differ in what they are given, not in what they do: rows from the
mix, one model on the ranks of a backend, the trainer, and at the end `<output>/model`, a folder
that `init_from=` and `ckpt=` take.

    train("pretrain", cfg)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from torch import Tensor

from mgpt.cli.settings import to_plain
from mgpt.data.dataset import open_dataset
from mgpt.data.forecast import foretell
from mgpt.data.loader import RowLoader, held_out_rows
from mgpt.data.source import (
    DataConfig,
    SourceConfig,
    capped,
    max_documents_tokens,
    task_names,
)
from mgpt.dtypes import DtypeChoice
from mgpt.errors import DataError, VocabularyError
from mgpt.files.storage import locate
from mgpt.launching.processes import RESUME, is_worker, num_processes, run_workers
from mgpt.launching.srun import join_step
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.folder import CONFIG, StageFolder
from mgpt.lifecycle.identity import (
    dataset_identity,
    vocabulary_identity,
    vq_input,
    weights_identity,
)
from mgpt.lifecycle.ranks import open_on_ranks
from mgpt.lifecycle.run import open_tracker
from mgpt.lifecycle.weights import MODEL, Weights, load_vocabulary
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.parallel.backend import Backend, ParallelConfig, build_backend, optimizer_problem
from mgpt.parallel.dist import World, init_distributed
from mgpt.stages.build import ModelConfig, remove_model
from mgpt.stages.continuing import (
    changed_rate,
    changes_since,
    check_same_vq,
    checkpoint_inputs,
    count_steps,
    newest_for_all,
    picture_codes_of,
)
from mgpt.stages.sample_pictures import SamplePictures, SamplesConfig
from mgpt.stages.training_weights import image_rows, initial_weights, start_weights, write_model
from mgpt.stop_signals import Interrupted
from mgpt.tokens.vocab import Vocabulary, check_same
from mgpt.tracking.tracker import Tracker, TrackingConfig
from mgpt.train import trainer
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.metrics import LossTally
from mgpt.train.step_folder import StepFolder, newest_complete, step_name
from mgpt.train.trainer import TrainConfig, Trainer
from mgpt.train.validate import HeldOut


@dataclass(frozen=True)
class HeldOutConfig:
    """Rows that are never trained, for the loss on them."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name, as data.sources; their rows have the length of those of training."""
    rows: int = 16
    """Rows measured, always the same."""

    def __post_init__(self) -> None:
        weights = [weight for one in self.sources.values() for weight in one.tasks.values()]
        if weights and not sum(weights):
            raise ValueError("the weights of all sources add up to 0; give a task one above 0")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainConfig):
    """What a training stage can be given."""

    CHANGEABLE: ClassVar[Changeable] = Changeable(
        free=(
            *("log_every", "save_every", "keep", "keep_every", "async_save", "validate_every"),
            *("pictures_every", "samples", "guard.hang_s", "guard.straggler_ratio"),
            *("data.workers", "data.allow_changed", "parallel.[!d]*"),  # all of it but its dtype
        ),
        resumed=(
            *("steps", "epochs", "schedule", "guard", "z_loss", "dropout", "held_out", "parallel"),
            "averaged",
            *("optim.lr", "optim.adamw_lr", "optim.betas", "optim.eps", "optim.momentum"),
            *("optim.nesterov", "optim.newton_schulz_steps", "optim.update_scale"),
            *("optim.weight_decay", "optim.max_norm"),
            # The loader compares these with the rows that were read.
            *("data.sources", "data.changes"),
        ),
        extends=(
            *("steps", "epochs"),
            *("data.sources.*.max_epochs", "data.sources.*.max_task_epochs"),
        ),
        starts=("init_from", "image_rows"),
        checkpoint=checkpoint_inputs,
    )
    output: str
    """Folder for checkpoints, the record and, at the end, model/."""
    init_from: str | None = None
    """Weights to start from: a model folder, a step folder, the output of a training stage, or a
    released folder as mgpt import takes it, which is imported into init_from/ of the output."""
    averaged: bool = True
    """Take averaged weights (optim.ema_decay) where there are some, from init_from and for model/;
    false: the raw ones."""
    image_rows: Literal["keep", "zero"] = "keep"
    """zero: the head's rows of image codes start at 0, Lumina-mGPT's start from Chameleon, whose
    released head was never trained to draw."""
    train: Literal["all", "image_head"] = "all"
    """image_head: the head's rows of image codes alone; every other weight stays as it is."""
    vocabulary: str | None = None
    """Output of mgpt train_text, or a tokenizer.json of Chameleon, for a start from nothing or from
    weights without one; others bring their own."""
    resolution_px: int | None = None
    """Picks this resolution's folder in each source; null: each path is one already."""
    data: DataConfig = field(default_factory=DataConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    seed: int = 0
    """Key of the initial weights, the order of rows and dropout."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is None and self.vocabulary is None:
            raise ValueError(
                "init_from and vocabulary are both null; give the weights to start from, or the "
                "output of mgpt train_text to start from nothing"
            )
        if self.image_rows == "zero" and self.init_from is None:
            raise ValueError("image_rows=zero is a start from weights; give init_from")
        problem = optimizer_problem(self.parallel, self.optim)
        if problem:
            raise ValueError(problem)
        if not self.data.sources:
            raise ValueError("data.sources is empty; give data.sources.<name>.path and .tasks")
        if self.validate_every and not self.held_out.sources:
            raise ValueError(
                f"validate_every={self.validate_every} measures held-out rows and there are none; "
                "give held_out.sources.<name>.path and .tasks, or leave validate_every out"
            )
        if self.pictures_every and self.samples.vq is None:
            raise ValueError("pictures_every needs samples.vq, the VQGAN that draws the pictures")


def warnings_of(cfg: TrainingConfig) -> list[str]:
    """What is allowed and hardly meant; told before the first step, and by mgpt plan."""
    warmup, steps = cfg.schedule.warmup_steps, cfg.steps
    if warmup < steps:
        return []
    return [
        f"schedule.warmup_steps={warmup} is not below steps={steps}: the learning rate ends at "
        f"{(steps - 1) / warmup:.1%} of optim.lr={cfg.optim.lr:g}; set schedule.warmup_steps="
        f"{steps // 20}, say, or raise steps"
    ]


def inputs(cfg: TrainingConfig) -> dict[str, str]:
    """What a training stage is made from, for its fingerprint."""
    sources = [*cfg.data.sources.values(), *cfg.held_out.sources.values()]
    found = {source.path: dataset_identity(source.path, cfg.resolution_px) for source in sources}
    if cfg.vocabulary is not None:
        found[cfg.vocabulary] = vocabulary_identity(cfg.vocabulary)
    if cfg.init_from is not None:
        found[cfg.init_from] = weights_identity(cfg.init_from, cfg.averaged)
    return found | vq_input(cfg.samples.vq)


def train(stage: str, cfg: TrainingConfig) -> None:
    """The stage, on as many processes as `parallel.procs` says, or as the ranks that torchrun or
    srun started."""
    join_step(cfg.parallel.name, cfg.parallel.procs)
    folder = None if is_worker() else StageFolder.open(stage, cfg, inputs(cfg))
    if folder is not None:
        if folder.is_complete:
            return
        parallel = cfg.parallel
        procs = num_processes(parallel.name, parallel.procs, parallel.threads)
        if procs > 1:
            run_workers([stage, "--config", str(folder.path / CONFIG)], procs, parallel.threads)
            return
    world = init_distributed(timeout_s=cfg.parallel.timeout_s)
    try:
        if folder is None:
            folder = open_on_ranks(world, cfg, lambda: StageFolder.open(stage, cfg, inputs(cfg)))
        if folder.is_complete:
            return
        figures = _train_here(stage, cfg, folder.path, world)
        if world.is_main:
            folder.finish(figures)
        world.barrier()
    finally:
        world.shutdown()


def _train_here(stage: str, cfg: TrainingConfig, folder: Path, world: World) -> dict[str, Any]:
    with open_tracker(cfg, stage, world.is_main, record=False) as tracker:
        resumed = newest_for_all(folder, world)
        if resumed is None:
            weights = start_weights(cfg, folder, world, tracker)
        else:
            weights = Weights(resumed.path, is_checkpoint=True)
        vocabulary = _vocabulary(cfg, weights, resumed is not None)
        if weights:
            where = f"init_from={cfg.init_from}" if resumed is None else str(resumed.path)
            cfg.model.check_same(weights.config(), where)
        shape = weights.config() if weights else cfg.model.transformer(vocabulary)
        shape = replace(shape, dropout=cfg.dropout)
        data, held_out_data = _data(cfg)
        loader = _open_rows(data, vocabulary, cfg.seed, world, tracker)
        if resumed is not None:
            loader.load_state(resumed.loader_state())
        given, cfg = cfg, replace(cfg, steps=count_steps(cfg, loader, world, tracker), epochs=None)
        if resumed is not None:
            note = changed_rate(resumed, cfg)
            if note is not None:
                tracker.print(note)
        vq_fingerprint = picture_codes_of(weights, loader, tracker.print)
        backend = build_backend(
            cfg.parallel,
            lambda: _model(cfg, shape, vocabulary),
            cfg.optim,
            world,
            z_loss=cfg.z_loss,
            seed=cfg.seed,
            sharding_plan=sharding_plan,
        )
        _print_plan(tracker, cfg, backend, loader)
        _announce_dtype(tracker, folder, backend.dtype)
        record = {
            "stage": stage,
            "config": to_plain(given),
            "transformer": to_plain(shape),
            "dtype": to_plain(backend.dtype),
        }
        if world.is_main and resumed is not None and resumed.step < cfg.steps:
            remove_model(folder / MODEL)  # of the run as it was finished before
        outcome = Trainer(
            cfg,
            backend=backend,
            loader=loader,
            store=CheckpointStore(folder, world, cfg.keep, cfg.keep_every, cfg.async_save),
            world=world,
            tracker=tracker,
            vocab=vocabulary,
            micro_rows=cfg.parallel.micro_rows,
            seed=cfg.seed,
            config_yaml=yaml.safe_dump(record, sort_keys=False),
            init_from=None if resumed else initial_weights(cfg, weights, vocabulary),
            held_out=_held_out(cfg, held_out_data, vocabulary, backend, vq_fingerprint),
            pictures=_pictures(cfg, shape, vocabulary, tracker, vq_fingerprint),
            changes_since=lambda saved: changes_since(saved, given),
            vq_fingerprint=vq_fingerprint,
        ).run()
        loader.close()
        if isinstance(outcome, trainer.Interrupted):
            raise Interrupted(
                f"{stage}: stopped by {outcome.signal}; step {outcome.step:,} of {cfg.steps:,} is "
                f"saved, {RESUME}"
            )
        last = StepFolder(folder / step_name(outcome.step), outcome.step)
        write_model(last, shape, vocabulary, vq_fingerprint, cfg.averaged, world, tracker.print)
        figures = _figures(outcome.metrics)
        tracker.finish({**figures, "dtype": backend.dtype.name})
    return {**outcome.metrics, "dtype": str(backend.dtype)}


def _model(cfg: TrainingConfig, shape: TransformerConfig, vocabulary: Vocabulary) -> Transformer:
    model = Transformer(shape)
    if cfg.train == "all":
        return model
    return model.train_head_rows(*image_rows(vocabulary))


def _vocabulary(cfg: TrainingConfig, weights: Weights | None, resumed: bool = False) -> Vocabulary:
    # A checkpoint has its own, and what it started from may be gone.
    is_given = cfg.vocabulary and not (resumed and not Path(cfg.vocabulary).exists())
    given = load_vocabulary(str(cfg.vocabulary)) if is_given else None
    if weights is None:
        assert given is not None, "the configuration's own check"
        return given
    own = weights.own_vocabulary()
    if own is None and given is None:
        raise VocabularyError(
            f"init_from={cfg.init_from} has no vocabulary; give vocabulary= with the "
            "tokenizer.json that came with these weights"
        )
    if own is not None and given is not None:
        check_same(own, given, f"init_from={cfg.init_from}", f"vocabulary={cfg.vocabulary}")
    chosen = own or given
    assert chosen is not None
    if chosen.size != weights.config().vocab_size:
        raise VocabularyError(
            f"the vocabulary has {chosen.size} ids, the weights of init_from={cfg.init_from} "
            f"{weights.config().vocab_size}; give the tokenizer that came with these weights"
        )
    return chosen


def _data(cfg: TrainingConfig) -> tuple[DataConfig, DataConfig]:
    """The mixes of training and of held-out rows, with each source's resolution folder."""
    held_out = at_resolution(cfg.held_out.sources, cfg.resolution_px)
    data = replace(cfg.data, sources=at_resolution(cfg.data.sources, cfg.resolution_px))
    if cfg.epochs is not None:
        data = capped(data, cfg.epochs)
    return data, replace(data, sources=held_out, changes={}, temperature=None)


def at_resolution(
    sources: dict[str, SourceConfig], resolution_px: int | None
) -> dict[str, SourceConfig]:
    """The sources with each path at that resolution's folder; as they are where it is null.

    Raises DataError where a source was not tokenised at it.
    """
    if resolution_px is None:
        return sources
    found = {}
    for name, source in sources.items():
        folder = locate(source.path) / str(resolution_px)
        if not folder.is_dir():
            raise DataError(
                f"source {name}: path={source.path} holds no {resolution_px}/; tokenize it "
                f"with resolution=[…,{resolution_px}], or set another resolution"
            )
        found[name] = replace(source, path=str(folder))
    return found


def _open_rows(
    data: DataConfig, vocabulary: Vocabulary, seed: int, world: World, tracker: Tracker
) -> RowLoader:
    """The loader; rank 0 first, so that missing lengths are counted and written once."""
    if not world.is_main:
        world.barrier()
        return RowLoader(data, vocabulary, seed)
    counted = [0]

    def count(done: int, total: int) -> None:
        if done == total or done - counted[0] >= 20_000:
            tracker.print(f"counting tokens: {done:,}/{total:,} samples")
            counted[0] = done

    loader = RowLoader(data, vocabulary, seed, on_progress=count)
    world.barrier()
    return loader


def _held_out(
    cfg: TrainingConfig,
    data: DataConfig,
    vocabulary: Vocabulary,
    backend: Backend,
    vq_fingerprint: str,
) -> HeldOut | None:
    if not data.sources:
        return None
    for name, source in data.sources.items():
        dataset = open_dataset(source.path)
        if dataset.has_pictures:
            check_same_vq(vq_fingerprint, dataset.vq_fingerprint, f"held_out.sources.{name}")
    rows = held_out_rows(data, vocabulary, cfg.seed, cfg.held_out.rows)
    tally = LossTally(list(data.sources), task_names(data), vocabulary, backend.device)
    return HeldOut(rows, cfg.parallel.micro_rows, tally)


def _pictures(
    cfg: TrainingConfig,
    shape: TransformerConfig,
    vocabulary: Vocabulary,
    tracker: Tracker,
    vq_fingerprint: str,
) -> trainer.Pictures | None:
    if not cfg.pictures_every or cfg.samples.vq is None:
        return None
    samples = SamplePictures(cfg.samples, shape, vocabulary)
    check_same_vq(vq_fingerprint, samples.vq_fingerprint, f"samples.vq={cfg.samples.vq}")

    def show(step: int, weights: dict[str, Tensor]) -> None:
        tracker.images(step, "samples", samples.draw(weights))

    return show


def _announce_dtype(tracker: Tracker, folder: Path, dtype: DtypeChoice) -> None:
    """Says what the run computes in, and whether its checkpoint was computed in something else."""
    if not tracker.is_main:
        return
    dtype.announce(tracker.print)
    newest = newest_complete(folder)
    if newest is None:
        return
    saved = yaml.safe_load((newest.path / "config.yaml").read_text()) or {}
    chosen = saved.get("dtype") or saved.get("config", {}).get("parallel", {})
    before = chosen.get("name", chosen.get("dtype", dtype.name))
    if before != dtype.name:
        tracker.print(
            f"dtype: {newest.path} was trained in {before}, this start continues in {dtype.name}; "
            f"its weights and moments are float32 either way (parallel.dtype={before} keeps it)"
        )


def _print_plan(tracker: Tracker, cfg: TrainingConfig, backend: Backend, loader: RowLoader) -> None:
    """What the run is, before it starts: model, batch, and what it will draw of each part."""
    if not tracker.is_main:
        return
    tokens = cfg.data.step_rows * cfg.data.row_tokens
    tracker.print(
        f"{backend.num_parameters:,} parameters, {cfg.parallel.name} on {backend.dp_size} "
        f"processes ({backend.device.type}); {cfg.steps:,} steps of {cfg.data.step_rows} rows x "
        f"{cfg.data.row_tokens:,} tokens, {tokens * cfg.steps:,} in all"
    )
    longest = max_documents_tokens(loader.mixer.components)
    drawn, is_exact = foretell(loader, cfg.steps)
    rows = [
        [
            part.name,
            len(part),
            f"{part.weight:g}",
            longest[part.name],
            drawn[part.name],
            f"{drawn[part.name] / len(part):.2f}",
        ]
        for part in loader.mixer.components
    ]
    documents = "documents drawn" if is_exact else "documents drawn, about"
    columns = ["source/task", "samples", "weight", "longest, tokens", documents, "epochs"]
    tracker.table("mix", columns, rows)
    for warning in warnings_of(cfg):
        tracker.print(f"warning: {warning}")


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("steps", "loss", "val/loss") if name in metrics}
