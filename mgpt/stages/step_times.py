"""How long a training stage takes, from a few of its own steps on stand-in shards.

The stage itself runs, on its backend and its processes, with its model, rows and dtype; the time of
a step is that of its record, and what is left of the stand-in's time comes once: starting ranks and
model, the last checkpoint, the model folder.

    rehearse_training(lambda cfg: main(cfg, "pretrain"), shortened, real).seconds      # 74.0
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from mgpt.data.dataset import open_dataset
from mgpt.data.source import SourceConfig, at_resolution
from mgpt.errors import DataError
from mgpt.files.storage import locate
from mgpt.lifecycle.rehearsal import Estimate, timed
from mgpt.tasks.registry import can_serve
from mgpt.train.step_folder import newest_complete

_STEPS = 8
_COLD_STEPS = 3  # the first ones load kernels and count the lengths of documents


def rehearse_training(run: Callable[[Any], None], cfg: Any, real: Any) -> Estimate:
    """The stage's time on this machine, from its newest checkpoint on.

    Args:
        run: the stage's main function.
        cfg, real: its configuration with stand-ins for the paths, and the one that will run.

    Raises DataError if its steps are given as epochs, which only the real data turn into steps.
    """
    if real.epochs is not None:
        raise DataError(f"its steps follow from epochs={real.epochs:g} and data yet to be made")
    newest = newest_complete(Path(real.output)) if Path(real.output).is_dir() else None
    done = newest.step if newest else 0
    if real.steps <= done:
        return Estimate(1.0)
    held_out = replace(cfg.held_out, sources=_servable(cfg.held_out.sources, cfg.resolution_px))
    held_out = replace(held_out, rows=min(held_out.rows, 2))
    short = replace(
        cfg,
        steps=_STEPS,
        save_every=_STEPS,
        validate_every=0,
        pictures_every=0,
        log_every=_STEPS,
        schedule=type(cfg.schedule)(kind="constant", warmup_steps=1),
        data=replace(cfg.data, sources=_servable(cfg.data.sources, cfg.resolution_px), changes={}),
        held_out=held_out,
    )
    seconds = timed(lambda: run(short))
    rows = [json.loads(line) for line in Path(cfg.output, "metrics.jsonl").read_text().splitlines()]
    steps = [float(row["step_s"]) for row in rows]
    step_s = median(steps[_COLD_STEPS:])
    once = max(0.0, seconds - sum(steps))
    return Estimate((real.steps - done) * step_s + once + _validations(real, done) * step_s / 3)


def _validations(cfg: Any, done: int) -> float:
    """How many steps' rows are measured: forward passes alone, which are a third of a step."""
    if not cfg.held_out.sources:
        return 0.0
    times = 1 + ((cfg.steps - done - 1) // cfg.validate_every if cfg.validate_every else 0)
    return times * cfg.held_out.rows / cfg.data.step_rows


def _servable(
    sources: dict[str, SourceConfig], resolution_px: int | None
) -> dict[str, SourceConfig]:
    """The sources with the tasks that their few samples have."""
    found = {}
    for name, source in at_resolution(sources, resolution_px).items():
        dataset = open_dataset(locate(source.path))
        seen = [dataset.locate(index) for index in range(min(len(dataset), 256))]
        tasks = {
            task: weight
            for task, weight in source.tasks.items()
            if any(can_serve(task, shard.meta(n), shard.shapes(n)) for shard, n in seen)
        }
        if tasks:
            found[name] = replace(sources[name], tasks=tasks, max_task_epochs={})
    if sources and not found:
        raise DataError("no stand-in sample serves a task of this stage")
    return found
