"""mgpt evaluate: measures of every task on held-out samples, beside chance and ceiling.

The checker looks at pixels and words, never at the model. Each task has a folder with its
measures and a gallery; a task that is finished is not measured again.

Reads: weights, a VQGAN, held-out shards: tokenised and raw
Writes: measures.json, galleries

    mgpt evaluate ckpt=omni_sft vq=scenes_f8 input=held_out/tokens raw=held_out/raw \
        resolution_px=64 output=evaluate
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from data_pipeline.raw.inputs import raw_identities
from data_pipeline.scenes.scorers import MEASURES
from mgpt.data.dataset import open_dataset
from mgpt.dtypes import Dtype, choose_dtype
from mgpt.errors import DataError
from mgpt.evals.evaluate import EvaluateConfig, evaluate
from mgpt.launching.processes import num_processes
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.identity import dataset_identity, vq_input, weights_identity
from mgpt.lifecycle.ranks import run_on_ranks
from mgpt.lifecycle.rehearsal import Estimate, Scale
from mgpt.parallel.dist import World
from mgpt.stages.build import build_pipeline, pick_device
from mgpt.stages.evaluate_times import rehearse_evaluation
from mgpt.stages.truth import TruthPictures
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
    8. Their number changes no figure."""
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
    return {**raw_identities(cfg.raw), **tokens, **weights, **vq_input(cfg.vq)}


def main(cfg: Config) -> None:
    run_on_ranks("evaluate", cfg, inputs, _evaluate, "evaluate", cfg.procs, cfg.threads)


def _evaluate(cfg: Config, world: World, tracker: Tracker) -> dict[str, Any]:
    torch.set_num_threads(cfg.threads)
    dtype = choose_dtype(cfg.dtype, world.device, gather=world.gather_objects)
    dtype.announce(tracker.print)
    folder = Path(cfg.output)
    dataset = open_dataset(Path(cfg.input) / str(cfg.resolution_px))
    pipeline = build_pipeline(
        cfg.ckpt, cfg.vq, world.device, dtype.torch, cfg.averaged, tracker.print
    )
    if pipeline.tokenizer.fingerprint() != dataset.vq_fingerprint:
        raise DataError(
            f"vq={cfg.vq} has fingerprint {pipeline.tokenizer.fingerprint()}, {cfg.input} was "
            f"made with {dataset.vq_fingerprint}; give the VQGAN that tokenised it"
        )
    truth = TruthPictures(cfg.input, cfg.raw, dataset)
    done = sum((folder / name / MEASURES).exists() for name in cfg.tasks)
    with tracker.progress(len(cfg.tasks), "tasks", "evaluate", done=done) as bar:

        def on_task(name: str, measured: dict[str, Any]) -> None:
            figures = {key: figure["model"] for key, figure in measured["figures"].items()}
            tracker.log(0, {f"{name}/{key}": value for key, value in figures.items()})
            bar.advance(1, task=name, **dict(list(figures.items())[:1]))

        measures = evaluate(cfg, dataset, pipeline, folder, truth, world, on_task)
    rows = [
        [name, key, figure["model"], figure["constant"], figure["ceiling"], figure["cases"]]
        for name, measured in measures.items()
        for key, figure in measured["figures"].items()
    ]
    columns = ["task", "figure", "model", "best constant", "ceiling", "cases"]
    tracker.table("measures on held-out samples", columns, rows)
    tracker.finish({"tasks": len(measures), "dtype": dtype.name})
    return {"tasks": len(measures), "dtype": str(dtype)}


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
        return evaluate(some, dataset, pipeline, folder, truth, alone, lambda *_: None)

    done = [task for task in real.tasks if (Path(real.output) / task / MEASURES).exists()]
    left = replace(real, tasks=tuple(task for task in real.tasks if task not in done))
    procs = num_processes("evaluate", cfg.procs, cfg.threads)
    try:
        return rehearse_evaluation(
            left, Path(cfg.output), dataset, scale(real.input), procs, evaluation
        )
    finally:
        torch.set_num_threads(threads_before)
