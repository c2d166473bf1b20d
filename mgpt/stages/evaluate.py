"""mgpt evaluate: measures of every task on held-out samples, beside chance and ceiling.

Samples of the built-in scenes are read back by their own checker; any others, such as captioned
photographs, are measured against their true answers: edit distance for text, PSNR and SSIM for
pictures, IoU for masks and boxes (mgpt/evals/scorers.py; `scorers.<task>=` names another). Neither
looks at the model. Each task has a folder with its measures and a gallery; a task that is finished
is not measured again.

Reads: weights, a VQGAN, held-out shards: tokenised and raw
Writes: measures.json, galleries

    mgpt evaluate ckpt=omni_sft vq=scenes_f8 input=held_out/tokens raw=held_out/raw \
        resolution_px=64 output=evaluate
    mgpt evaluate ckpt=omni_sft vq=scenes_f8 input=photos/tokens raw=photos/raw resolution_px=64 \
        'tasks=[caption,text_to_image]' scorers.text_to_image=lpips output=evaluate_photos
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from data_pipeline.raw.inputs import raw_identities
from data_pipeline.scenes.scorers import SCENE_SCORERS, is_scene
from mgpt.data.dataset import TokenisedDataset, open_dataset
from mgpt.dtypes import Dtype, choose_dtype
from mgpt.errors import ConfigError, DataError
from mgpt.evals.cases import serving
from mgpt.evals.evaluate import EvaluateConfig, evaluate
from mgpt.evals.metrics import ALL_TASKS, MEASURES, Scorer
from mgpt.evals.scorers import find_scorer
from mgpt.launching.processes import num_processes
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.identity import (
    dataset_identity,
    input_identities,
    vq_input,
    weights_identity,
)
from mgpt.lifecycle.ranks import run_on_ranks
from mgpt.lifecycle.rehearsal import Estimate, Scale
from mgpt.parallel.dist import World
from mgpt.stages.build import build_pipeline, pick_device
from mgpt.stages.evaluate_times import rehearse_evaluation
from mgpt.stages.truth import TruthPictures
from mgpt.tasks.registry import is_own, task, task_name
from mgpt.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config(EvaluateConfig):
    """What `mgpt evaluate` can be given."""

    CHANGEABLE: ClassVar[Changeable] = Changeable(free=("procs", "threads"))

    ckpt: str
    """Weights: a model folder, a step folder, or the output of a training stage."""
    averaged: bool = True
    """Take a checkpoint's averaged weights (optim.ema_decay) if it has any; false: the raw ones."""
    vq: str
    """The VQGAN that tokenised the pictures."""
    input: str
    """Tokenised held-out samples: the output of mgpt tokenize."""
    raw: str | list[str]
    """The raw shards they were made of, for the true pictures."""
    resolution_px: int
    """Which of the resolutions in input is measured."""
    output: str
    """Folder for measures and galleries."""
    procs: int | Literal["auto"] = "auto"
    """Processes that share the cases; auto: one a GPU, else one for each `threads` cores, at most
    8. Their number changes no metric."""
    threads: int = 1
    """torch's threads a process on a CPU."""
    dtype: Dtype = "auto"
    """Of the transformer. auto: bfloat16 where every process's device multiplies it natively, else
    float32. The VQGAN computes in float32 always."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    tokens = {cfg.input: dataset_identity(cfg.input, cfg.resolution_px)}
    weights = {cfg.ckpt: weights_identity(cfg.ckpt, cfg.averaged)}
    own = input_identities(*filter(is_own, cfg.tasks))
    return {**raw_identities(cfg.raw), **tokens, **weights, **vq_input(cfg.vq), **own}


def main(cfg: Config) -> None:
    run_on_ranks("evaluate", cfg, inputs, _evaluate, "evaluate", cfg.procs, cfg.threads)


def _evaluate(cfg: Config, world: World, tracker: Tracker) -> dict[str, Any]:
    torch.set_num_threads(cfg.threads)
    dtype = choose_dtype(cfg.dtype, world.device, gather=world.gather_objects)
    dtype.announce(tracker.print)
    folder = Path(cfg.output)
    dataset = open_dataset(Path(cfg.input) / str(cfg.resolution_px))
    scorers = choose_scorers(cfg, dataset)
    if unserved := [name for name in cfg.tasks if name not in scorers]:
        tracker.print(f"not measured, since no sample serves them: {', '.join(unserved)}")
    pipeline = build_pipeline(
        cfg.ckpt, cfg.vq, world.device, dtype.torch, cfg.averaged, tracker.print
    )
    if pipeline.tokenizer.fingerprint() != dataset.vq_fingerprint:
        raise DataError(
            f"vq={cfg.vq} has fingerprint {pipeline.tokenizer.fingerprint()}, {cfg.input} was "
            f"made with {dataset.vq_fingerprint}; give the VQGAN that tokenised it"
        )
    truth = TruthPictures(cfg.input, cfg.raw, dataset)
    done = sum((folder / task_name(name) / MEASURES).exists() for name in scorers)
    with tracker.progress(len(scorers), "tasks", "evaluate", done=done) as bar:

        def on_task(name: str, measured: dict[str, Any]) -> None:
            values = {key: metric["model"] for key, metric in measured["metrics"].items()}
            tracker.log(0, {f"{name}/{key}": value for key, value in values.items()})
            bar.advance(1, task=name, **dict(list(values.items())[:1]))

        served = replace(cfg, tasks=tuple(scorers))
        measures = evaluate(served, scorers, dataset, pipeline, folder, truth, world, on_task)
    rows = [
        [name, key, metric["model"], metric["constant"], metric["ceiling"], metric["cases"]]
        for name, measured in measures.items()
        for key, metric in measured["metrics"].items()
    ]
    columns = ["task", "metric", "model", "best constant", "ceiling", "cases"]
    tracker.table("measures on held-out samples", columns, rows)
    for caveat in dict.fromkeys(one["caveat"] for one in measures.values() if "caveat" in one):
        tracker.print(caveat)
    tracker.finish({"tasks": len(measures), "dtype": dtype.name})
    return {"tasks": len(measures), "dtype": str(dtype)}


def choose_scorers(cfg: EvaluateConfig, dataset: TokenisedDataset) -> dict[str, Scorer]:
    """The scorer of each task to be measured: the one named in `scorers`; else, if the samples are
    scenes of ours, their checker's; else the task's own.

    Of all sixteen tasks, those that no sample serves are left out.

    Raises:
        ConfigError: no such scorer, or a task that names none.
        ConfigError, MachineError: a scorer that lacks a package or weights.
    """
    shards = (dataset.locate(index) for index in range(len(dataset)))
    are_scenes = any(is_scene(shard.meta(number)) for shard, number in shards)
    chosen: dict[str, Scorer] = {}
    for reference in cfg.tasks:
        wanted = task(reference)
        if wanted.name in cfg.scorers:
            named_by = f"scorers.{wanted.name}"
            scorer = find_scorer(cfg.scorers[wanted.name], named_by)
        elif are_scenes and wanted.name in SCENE_SCORERS:
            scorer = SCENE_SCORERS[wanted.name]
        else:
            if not wanted.scorer:
                raise ConfigError(
                    f"task {reference} names no scorer; give its Task one, or name one for "
                    f"{wanted.name} in scorers"
                )
            scorer = find_scorer(wanted.scorer, f"task {reference}")
        if cfg.tasks != ALL_TASKS or serving(dataset, reference, scorer.can_read):
            scorer.check()
            chosen[reference] = scorer
    if not chosen:
        raise DataError(f"{dataset.folder}: its samples serve none of the tasks; pack others")
    return chosen


def is_long(cfg: Config) -> bool:
    return cfg.samples > 16


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """A few cases of each kind of answer, answered by the stand-in's model."""
    dataset = open_dataset(Path(cfg.input) / str(cfg.resolution_px))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(cfg.threads)
    dtype = choose_dtype(cfg.dtype, pick_device())
    pipeline = build_pipeline(
        cfg.ckpt, cfg.vq, pick_device(), dtype.torch, cfg.averaged, lambda line: None
    )
    truth = TruthPictures(cfg.input, cfg.raw, dataset)

    def evaluation(some: EvaluateConfig, folder: Path) -> dict[str, dict]:
        alone = World(device=pick_device())
        return evaluate(some, scorers, dataset, pipeline, folder, truth, alone, lambda *_: None)

    def is_done(name: str) -> bool:
        return (Path(real.output) / task_name(name) / MEASURES).exists()

    scorers = choose_scorers(cfg, dataset)
    left = replace(real, tasks=tuple(name for name in scorers if not is_done(name)))
    scorers = {name: scorers[name] for name in left.tasks}
    procs = num_processes("evaluate", cfg.procs, cfg.threads)
    try:
        return rehearse_evaluation(
            left, scorers, Path(cfg.output), dataset, scale(real.input), procs, evaluation
        )
    finally:
        torch.set_num_threads(threads_before)
