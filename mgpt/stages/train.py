r"""The training script of every training stage: pretrain, fp_sft, omni_sft.

They differ in their yaml of `conf/`, the data they are given and their part of this text. One run
goes from the configuration to vocabulary, model, rows and backend, through the loop of
`mgpt.train.trainer`, to `<output>/model`, a model folder that `init_from=` and `ckpt=` take.

mgpt pretrain: a transformer from nothing, on documents of text and pictures.

Documents are plain text, image-caption pairs in either order, and interleaved text and pictures.
Every token after the first is trained; there are no questions and no guidance drop.

Reads: tokenized shards, a vocabulary
Writes: checkpoints, a model folder

    mgpt pretrain vocabulary=text model=quickstart output=pretrain steps=200 \
        schedule.warmup_steps=10 data.sources.a.path=tokens/32 data.sources.a.tasks.image_text=1

mgpt fp_sft: flexible progressive fine-tuning, one rung of resolution.

Text to picture at any aspect ratio of one area, with text and picture-to-text samples against
forgetting. Each rung starts from the one below: 512, 768, 1024 in full-size recipes.

Reads: tokenized shards, weights
Writes: checkpoints, a model folder

    mgpt fp_sft init_from=pretrain resolution=64 output=fp_sft_64 steps=200 \
        data.sources.a.path=tokens data.sources.a.tasks.text_to_image=1

mgpt omni_sft: fine-tuning on all sixteen tasks at once.

Reads: tokenized shards, weights
Writes: checkpoints, a model folder

    mgpt omni_sft init_from=fp_sft_64 output=omni_sft steps=200 resolution_px=64 \
        data.sources.a.path=tokens data.sources.a.tasks.caption=1 data.sources.a.tasks.depth=1
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import yaml
from torch import Tensor

from mgpt.cli.settings import to_plain
from mgpt.data.dataset import open_dataset
from mgpt.data.forecast import foretell, steps_of_data
from mgpt.data.loader import RowLoader, held_out_rows
from mgpt.data.source import (
    DataConfig,
    SourceConfig,
    at_resolution,
    capped,
    max_documents_tokens,
    task_names,
)
from mgpt.errors import ConfigError
from mgpt.launching.processes import RESUME
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.identity import (
    dataset_identity,
    vocabulary_identity,
    vq_input,
    weights_identity,
)
from mgpt.lifecycle.ranks import run_on_ranks
from mgpt.lifecycle.weights import MODEL, Weights
from mgpt.models.table import decoder_of, to_record
from mgpt.parallel.backend import Backend, ParallelConfig, build_backend, optimizer_problem
from mgpt.parallel.dist import World
from mgpt.stages.build import ModelConfig, remove_model, write_model_folder
from mgpt.stages.sample_pictures import SamplePictures, SamplesConfig
from mgpt.stages.step_times import rehearse_training
from mgpt.stages.train_start import (
    changed_dtype,
    changed_rate,
    changes_since,
    check_same_vq,
    checkpoint_inputs,
    choose_shape,
    choose_vocabulary,
    code_vectors,
    image_rows,
    initial_weights,
    newest_for_all,
    picture_codes_of,
    start_weights,
)
from mgpt.stop_signals import Interrupted
from mgpt.tokens.vocab import Vocabulary
from mgpt.tracking.tracker import Tracker, TrackingConfig
from mgpt.train import trainer
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.metrics import LossTally
from mgpt.train.step_folder import StepFolder
from mgpt.train.step_layout import step_name
from mgpt.train.trainer import TrainConfig, Trainer
from mgpt.train.validate import HeldOut


@dataclass(frozen=True)
class HeldOutConfig:
    """Rows that are never trained, for validation."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name, as data.sources; their rows have the length of the training rows."""
    rows: int = 16
    """Number of rows, always the same ones."""

    def __post_init__(self) -> None:
        weights = [weight for one in self.sources.values() for weight in one.tasks.values()]
        if weights and not sum(weights):
            raise ValueError("the weights of all sources add up to 0; give a task one above 0")


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
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
        starts=("init_from", "image_rows", "codebook"),
        checkpoint=checkpoint_inputs,
    )
    output: str
    """Folder for checkpoints, the record and, at the end, model/."""
    init_from: str | None = None
    """Weights to start from: a model folder, a step folder, the output of a training stage, or a
    released folder as mgpt import takes it, which is imported into init_from/ of the output."""
    averaged: bool = True
    """Use averaged weights (optim.ema_decay) if there are any, from init_from and for model/;
    false: the raw ones."""
    image_rows: Literal["keep", "zero"] = "keep"
    """zero: the head's rows of image codes start at 0, Lumina-mGPT's start from Chameleon, whose
    released head was never trained to draw."""
    codebook: str | None = None
    """Picture tokenizer from whose codebook the embeddings and head rows of image codes start, for
    a start from nothing: codes of similar patches are then similar tokens at once. null: random."""
    train: Literal["all", "image_head"] = "all"
    """image_head: train only the head's rows of image codes; every other weight is frozen."""
    vocabulary: str | None = None
    """Output of mgpt train_text, or a tokenizer.json of Chameleon, for a start from nothing or from
    weights without a vocabulary."""
    resolution_px: int | None = None
    """Use this resolution's folder of each source; null: each path is such a folder already."""
    data: DataConfig = field(default_factory=DataConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    seed: int = 0
    """Key of the initial weights, the order of rows and dropout."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Replace the output if it holds another configuration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is None and self.vocabulary is None:
            raise ValueError(
                "init_from and vocabulary are both null; give the weights to start from, or the "
                "output of mgpt train_text to start from nothing"
            )
        if self.image_rows == "zero" and self.init_from is None:
            raise ValueError("image_rows=zero is a start from weights; give init_from")
        if self.codebook is not None and self.init_from is not None:
            raise ValueError(
                f"codebook={self.codebook} is for a start from nothing, and "
                f"init_from={self.init_from} has rows of its own; leave one of them out"
            )
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


def warnings_of(cfg: Config) -> list[str]:
    """What is allowed and hardly intended; printed before the first step, and by mgpt plan."""
    warmup, steps = cfg.schedule.warmup_steps, cfg.steps
    if warmup < steps:
        return []
    return [
        f"schedule.warmup_steps={warmup} is not below steps={steps}: the learning rate ends at "
        f"{(steps - 1) / warmup:.1%} of optim.lr={cfg.optim.lr:g}; set schedule.warmup_steps="
        f"{steps // 20}, say, or raise steps"
    ]


def inputs(cfg: Config) -> dict[str, str]:
    """The identity of everything that a training reads, by path."""
    sources = [*cfg.data.sources.values(), *cfg.held_out.sources.values()]
    found = {source.path: dataset_identity(source.path, cfg.resolution_px) for source in sources}
    if cfg.vocabulary is not None:
        found[cfg.vocabulary] = vocabulary_identity(cfg.vocabulary)
    if cfg.init_from is not None:
        found[cfg.init_from] = weights_identity(cfg.init_from, cfg.averaged)
    return found | vq_input(cfg.samples.vq) | vq_input(cfg.codebook)


def as_stage(name: str) -> SimpleNamespace:
    """This module as `mgpt.cli.stage_table.load_stage` returns it for one training stage."""
    return SimpleNamespace(
        Config=Config,
        inputs=inputs,
        main=lambda cfg: main(cfg, name),
        is_long=lambda cfg: cfg.epochs is not None or cfg.steps > 50,
        rehearse=lambda cfg, real, scale: rehearse_training(lambda c: main(c, name), cfg, real),
    )


def main(cfg: Config, stage: str) -> None:
    """Runs a training stage on `parallel.procs` processes, or as a rank of torchrun or srun."""
    parallel = cfg.parallel
    run_on_ranks(
        stage,
        cfg,
        inputs,
        partial(train, stage),
        "training",
        parallel.asked_procs,
        parallel.threads,
        parallel.timeout_s,
        record=False,
        alone="" if parallel.on_many else parallel.name,
    )


def train(stage: str, cfg: Config, world: World, tracker: Tracker) -> dict[str, Any]:
    """The run of one rank, from a checked configuration to the model folder; its metrics."""
    folder = Path(cfg.output)
    asked = cfg

    # Weights and vocabulary: of the newest checkpoint, else of init_from, else fresh.
    saved = newest_for_all(folder, world)
    weights = start_weights(cfg, saved, folder, world, tracker)
    vocabulary = choose_vocabulary(cfg, weights, saved is not None)
    shape = choose_shape(cfg, weights, vocabulary, saved)

    # Rows: a pure function of the data, the seed and the step.
    data, held_out_data = resolved_data(cfg)
    loader = open_loader(data, vocabulary, cfg.seed, world, tracker)
    if saved is not None:
        loader.load_state(saved.loader_state())
    cfg = replace(cfg, steps=count_steps(cfg, loader, world, tracker), epochs=None)
    vq_fingerprint = picture_codes_of(weights, loader, tracker.print)

    # The model, freshly initialized on the ranks of a backend.
    vectors_NC = None if saved else code_vectors(cfg.codebook, vq_fingerprint)
    backend = build_backend(
        cfg.parallel,
        partial(make_model, cfg, shape, vocabulary, vectors_NC),
        cfg.optim,
        world,
        z_loss=cfg.z_loss,
        seed=cfg.seed,
        sharding_plan=decoder_of(shape).sharding_plan,
    )
    held_out = open_held_out(cfg, held_out_data, vocabulary, backend, vq_fingerprint)
    pictures = open_pictures(cfg, shape, vocabulary, tracker, vq_fingerprint)
    announce(tracker, cfg, backend, loader, saved)

    # The loop.
    record = {
        "stage": stage,
        "config": to_plain(asked),
        "transformer": to_record(shape),
        "dtype": to_plain(backend.dtype),
    }
    if world.is_main and saved is not None and saved.step < cfg.steps:
        remove_model(folder / MODEL)  # of the run before it was extended
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
        init_from=None if saved else initial_weights(cfg, weights, vocabulary),
        held_out=held_out,
        pictures=pictures,
        changes_since=lambda saved: changes_since(saved, asked),
        vq_fingerprint=vq_fingerprint,
    ).run()
    loader.close()
    if isinstance(outcome, trainer.Interrupted):
        raise Interrupted(
            f"{stage}: stopped by {outcome.signal}; step {outcome.step:,} of {cfg.steps:,} is "
            f"saved, {RESUME}"
        )

    # The model folder, from the last checkpoint.
    last = StepFolder(folder / step_name(outcome.step), outcome.step)
    last.verify(world)
    world.on_main(lambda: write_model(last, cfg, shape, vocabulary, vq_fingerprint, tracker))
    metrics = outcome.metrics
    shown = [name for name in ("steps", "loss", "val/loss") if name in metrics]
    tracker.finish({**{name: metrics[name] for name in shown}, "dtype": backend.dtype.name})
    return {**metrics, "dtype": str(backend.dtype)}


def make_model(cfg: Config, shape: Any, vocabulary: Vocabulary, vectors_NC: Tensor | None) -> Any:
    """The decoder of a shape, before its weights: which rows train, and what codes start from."""
    model = decoder_of(shape).model(shape)
    if vectors_NC is not None:
        model.start_codes_from(vocabulary.image_start, vectors_NC)
    return model if cfg.train == "all" else model.train_head_rows(*image_rows(vocabulary))


def resolved_data(cfg: Config) -> tuple[DataConfig, DataConfig]:
    """The mixes of training and of held-out rows, with each source's resolution folder."""
    held_out = at_resolution(cfg.held_out.sources, cfg.resolution_px)
    data = replace(cfg.data, sources=at_resolution(cfg.data.sources, cfg.resolution_px))
    if cfg.epochs is not None:
        data = capped(data, cfg.epochs)
    return data, replace(data, sources=held_out, changes={}, temperature=None)


def open_loader(
    data: DataConfig, vocabulary: Vocabulary, seed: int, world: World, tracker: Tracker
) -> RowLoader:
    """The loader; rank 0 first, so that missing lengths are counted and written once."""
    if not world.is_main:
        world.barrier()
        return RowLoader(data, vocabulary, seed)
    printed = [0]

    def count(done: int, total: int) -> None:
        if done == total or done - printed[0] >= 20_000:
            tracker.print(f"counting tokens: {done:,}/{total:,} samples")
            printed[0] = done

    loader = RowLoader(data, vocabulary, seed, on_progress=count)
    world.barrier()
    return loader


def count_steps(cfg: Config, loader: RowLoader, world: World, tracker: Tracker) -> int:
    """`cfg.steps`, or the steps of `cfg.epochs`; collective.

    Raises ConfigError if the data are known to last for fewer.
    """
    in_data, is_exact = world.broadcast_object(steps_of_data(loader) if world.is_main else None)
    if cfg.epochs is not None:
        assert in_data is not None, "epochs caps every source"
        about = "" if is_exact else "about "
        tracker.print(f"epochs={cfg.epochs:g}: {about}{in_data:,} steps")
        return int(in_data)
    if in_data is not None and is_exact and cfg.steps > in_data:
        raise ConfigError(
            f"steps={cfg.steps}: the data last {in_data} steps, then every source has reached its "
            f"max_epochs; give steps={in_data}, or raise max_epochs"
        )
    return int(cfg.steps)


def open_held_out(
    cfg: Config, data: DataConfig, vocabulary: Vocabulary, backend: Backend, vq_fingerprint: str
) -> HeldOut | None:
    """The rows of validation, if there are any; VocabularyError if of another VQGAN."""
    if not data.sources:
        return None
    for name, source in data.sources.items():
        dataset = open_dataset(source.path)
        if dataset.has_pictures:
            check_same_vq(vq_fingerprint, dataset.vq_fingerprint, f"held_out.sources.{name}")
    rows = held_out_rows(data, vocabulary, cfg.seed, cfg.held_out.rows)
    tally = LossTally(list(data.sources), task_names(data), vocabulary, backend.device)
    return HeldOut(rows, cfg.parallel.micro_rows, tally)


def open_pictures(
    cfg: Config, shape: Any, vocabulary: Vocabulary, tracker: Tracker, vq_fingerprint: str
) -> trainer.Pictures | None:
    """The trainer's hook for sample pictures, if they are asked for."""
    if not cfg.pictures_every or cfg.samples.vq is None:
        return None
    samples = SamplePictures(cfg.samples, shape, vocabulary)
    check_same_vq(vq_fingerprint, samples.vq_fingerprint, f"samples.vq={cfg.samples.vq}")

    def show(step: int, weights: dict[str, Tensor]) -> None:
        tracker.images(step, "samples", samples.draw(weights))

    return show


def announce(
    tracker: Tracker, cfg: Config, backend: Backend, loader: RowLoader, saved: StepFolder | None
) -> None:
    """Prints what the run is before its first step: model, batch, mix, dtype, and what changed."""
    if not tracker.is_main:
        return
    rate = None if saved is None else changed_rate(saved, cfg)
    if rate is not None:
        tracker.print(rate)
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
    backend.dtype.announce(tracker.print)
    dtype = None if saved is None else changed_dtype(saved, backend.dtype)
    if dtype is not None:
        tracker.print(dtype)


def write_model(
    last: StepFolder,
    cfg: Config,
    shape: Any,
    vocabulary: Vocabulary,
    vq_fingerprint: str,
    tracker: Tracker,
) -> None:
    """`<output>/model` from a verified checkpoint, one tensor in memory at a time."""
    weights = Weights.of_checkpoint(last.path, cfg.averaged)
    for note in weights.notes():
        tracker.print(f"{MODEL}/ has {note}")
    folder = last.path.parent / MODEL
    write_model_folder(folder, shape, weights.stored(verify=False), vocabulary, vq_fingerprint)
