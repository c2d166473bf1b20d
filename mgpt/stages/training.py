"""What the three training stages share: their configuration, and the run from there to a model.

pretrain, fp_sft and omni_sft differ in what they are given, not in what they do: rows from the
mix, one model on the ranks of a backend, the trainer, and at the end `<output>/model`, a folder
that `init_from=` and `ckpt=` take.

    train("pretrain", cfg)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mgpt.data.loader import RowLoader, held_out_rows
from mgpt.data.source import DataConfig, SourceConfig, max_documents_tokens
from mgpt.errors import ConfigError
from mgpt.launching.processes import Interrupted, is_worker, num_processes, run_workers
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.parallel.backend import Backend, ParallelConfig, build_backend
from mgpt.parallel.dist import World, init_distributed
from mgpt.settings import to_plain
from mgpt.stages.build import (
    MODEL,
    ModelConfig,
    Weights,
    load_vocabulary,
    open_tracker,
    vq_input,
    write_model_folder,
)
from mgpt.stages.folder import CONFIG, StageFolder, input_fingerprints
from mgpt.stages.sample_pictures import SamplePictures, SamplesConfig
from mgpt.tokens.vocab import Vocabulary, check_same
from mgpt.tracking.tracker import Tracker, TrackingConfig
from mgpt.train import trainer
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.trainer import TrainConfig, Trainer
from mgpt.train.validate import HeldOut


@dataclass(frozen=True)
class HeldOutConfig:
    """Rows that are never trained, for the loss on them."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name, as data.sources; their rows have the length of those of training."""
    rows: int = 16
    """Rows measured, always the same."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainConfig):
    """What a training stage can be given."""

    output: str
    """Folder for checkpoints, the record and, at the end, model/."""
    init_from: str | None = None
    """Weights to start from: a model folder, a step folder, or the output of a training stage."""
    vocabulary: str | None = None
    """Output of mgpt train_text, for a start from nothing; weights bring their own."""
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
        if not self.data.sources:
            raise ValueError("data.sources is empty; give data.sources.<name>.path and .tasks")
        if self.pictures_every and self.samples.vq is None:
            raise ValueError("pictures_every needs samples.vq, the VQGAN that draws the pictures")


def inputs(cfg: TrainingConfig) -> dict[str, str]:
    """What a training stage is made from, for its fingerprint."""
    sources = [*cfg.data.sources.values(), *cfg.held_out.sources.values()]
    paths = [cfg.init_from, cfg.vocabulary, *(source.path for source in sources)]
    return {**input_fingerprints(*paths), **vq_input(cfg.samples.vq)}


def train(stage: str, cfg: TrainingConfig) -> None:
    """The stage, on as many processes as `parallel.procs` says."""
    folder = StageFolder.open(stage, cfg, inputs(cfg))
    if folder.is_complete:
        return
    procs = num_processes(cfg.parallel.name, cfg.parallel.procs)
    if procs > 1 and not is_worker():
        run_workers([stage, "--config", str(folder.path / CONFIG)], procs, cfg.parallel.threads)
        return
    world = init_distributed(timeout_s=cfg.parallel.timeout_s)
    try:
        figures = _train_here(stage, cfg, folder.path, world)
        if world.is_main:
            folder.finish(figures)
        world.barrier()
    finally:
        world.shutdown()


def _train_here(stage: str, cfg: TrainingConfig, folder: Path, world: World) -> dict[str, Any]:
    weights = Weights.find(cfg.init_from) if cfg.init_from else None
    vocabulary = _vocabulary(cfg, weights)
    shape = weights.config() if weights else cfg.model.transformer(vocabulary)
    shape = replace(shape, dropout=cfg.dropout)
    with open_tracker(cfg, stage, world.is_main, record=False) as tracker:
        data, held_out_data = _data(cfg)
        loader = _open_rows(data, vocabulary, cfg.seed, world, tracker)
        backend = build_backend(
            cfg.parallel,
            lambda: Transformer(shape),
            cfg.optim,
            world,
            z_loss=cfg.z_loss,
            seed=cfg.seed,
            sharding_plan=sharding_plan,
        )
        _print_plan(tracker, cfg, backend, loader)
        record = {"stage": stage, "config": to_plain(cfg), "transformer": to_plain(shape)}
        outcome = Trainer(
            cfg,
            backend=backend,
            loader=loader,
            store=CheckpointStore(folder, world, cfg.keep),
            world=world,
            tracker=tracker,
            vocab=vocabulary,
            micro_rows=cfg.parallel.micro_rows,
            seed=cfg.seed,
            config_yaml=yaml.safe_dump(record, sort_keys=False),
            init_from=(weights.tensors(), str(weights.folder)) if weights else None,
            held_out=_held_out(cfg, held_out_data, vocabulary),
            pictures=_pictures(cfg, shape, vocabulary, tracker),
        ).run()
        loader.close()
        if isinstance(outcome, trainer.Interrupted):
            raise Interrupted(
                f"{stage}: stopped by {outcome.signal} at step {outcome.step} of {cfg.steps}, "
                "which is saved; the same command goes on from there"
            )
        full = backend.full_weights()
        if world.is_main:
            write_model_folder(folder / MODEL, shape, full, vocabulary)
        tracker.finish(_figures(outcome.metrics))
    return outcome.metrics


def _vocabulary(cfg: TrainingConfig, weights: Weights | None) -> Vocabulary:
    given = load_vocabulary(cfg.vocabulary) if cfg.vocabulary else None
    if weights is None:
        assert given is not None, "the configuration's own check"
        return given
    own = weights.vocabulary()
    if given is not None:
        check_same(own, given, f"init_from={cfg.init_from}", f"vocabulary={cfg.vocabulary}")
    return own


def _data(cfg: TrainingConfig) -> tuple[DataConfig, DataConfig]:
    """The mixes of training and of held-out rows, with each source's resolution folder."""
    held_out = _at_resolution(cfg.held_out.sources, cfg.resolution_px)
    data = replace(cfg.data, sources=_at_resolution(cfg.data.sources, cfg.resolution_px))
    return data, replace(data, sources=held_out)


def _at_resolution(
    sources: dict[str, SourceConfig], resolution_px: int | None
) -> dict[str, SourceConfig]:
    if resolution_px is None:
        return sources
    found = {}
    for name, source in sources.items():
        folder = Path(source.path) / str(resolution_px)
        if not folder.is_dir():
            raise ConfigError(
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


def _held_out(cfg: TrainingConfig, data: DataConfig, vocabulary: Vocabulary) -> HeldOut | None:
    if not data.sources:
        return None
    rows = held_out_rows(data, vocabulary, cfg.seed, cfg.held_out.rows)
    return HeldOut(rows, cfg.parallel.micro_rows)


def _pictures(
    cfg: TrainingConfig, shape: TransformerConfig, vocabulary: Vocabulary, tracker: Tracker
) -> trainer.Pictures | None:
    if not cfg.pictures_every or cfg.samples.vq is None:
        return None
    samples = SamplePictures(cfg.samples, shape, vocabulary)

    def show(step: int, weights: dict[str, Tensor]) -> None:
        tracker.images(step, "samples", samples.draw(weights))

    return show


def _print_plan(tracker: Tracker, cfg: TrainingConfig, backend: Backend, loader: RowLoader) -> None:
    """What the run is, before it starts: model, batch, and each part of the mix."""
    tokens = cfg.data.step_rows * cfg.data.row_tokens
    tracker.print(
        f"{backend.num_parameters:,} parameters, {cfg.parallel.name} on {backend.dp_size} "
        f"processes ({backend.device.type}); {cfg.steps:,} steps of {cfg.data.step_rows} rows x "
        f"{cfg.data.row_tokens:,} tokens, {tokens * cfg.steps:,} in all"
    )
    longest, epochs = max_documents_tokens(loader.mixer.components), loader.epochs(cfg.steps)
    rows = [
        [part.name, len(part), f"{part.weight:g}", longest[part.name], f"{epochs[part.name]:.2f}"]
        for part in loader.mixer.components
    ]
    tracker.table("mix", ["source/task", "samples", "weight", "longest, tokens", "epochs"], rows)


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("steps", "loss", "val/loss") if name in metrics}
