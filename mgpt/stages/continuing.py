"""What a training stage compares before it trains: with its checkpoint, and VQGAN with VQGAN.

checkpoint_inputs(Path("out"))            # {"data.sources.a.path": "shards:0123…"}, or None
changes_since(newest, cfg)                # [Change(6, "optim.lr", 0.0001, 5e-05)]
picture_codes_of(weights, loader, print)  # the VQGAN of weights and shards, by its fingerprint
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from mgpt.cli.settings import MISSING, to_plain
from mgpt.data.forecast import steps_of_data
from mgpt.data.loader import RowLoader
from mgpt.errors import ConfigError, VocabularyError
from mgpt.lifecycle.comparison import Made, differences, is_one_of
from mgpt.lifecycle.weights import NO_PICTURES, Weights
from mgpt.optim.schedule import ScheduleConfig, learning_rate
from mgpt.parallel.dist import World
from mgpt.tracking.tracker import Tracker
from mgpt.train.run_state import Change
from mgpt.train.step_folder import StepFolder, newest_complete, step_name


def checkpoint_inputs(output: Path) -> dict[str, str] | None:
    """The identities of the sources as the newest checkpoint of a run has them; None where there is
    no checkpoint."""
    newest = newest_complete(output)
    if newest is None:
        return None
    sources = newest.loader_state()["order"]["sources"]
    return {f"data.sources.{name}.path": f"shards:{one['shards']}" for name, one in sources.items()}


def newest_for_all(output: Path, world: World) -> StepFolder | None:
    """The newest checkpoint of a run as rank 0 finds it; collective."""
    newest = newest_complete(output) if world.is_main else None
    step = world.broadcast_object(newest.step if newest is not None else None)
    return None if step is None else StepFolder(output / step_name(step), step)


def changes_since(saved: StepFolder, cfg: Any) -> list[Change]:
    """The settings that differ from those that a checkpoint was made with."""
    config = yaml.safe_load((saved.path / "config.yaml").read_text())["config"]
    found = differences(Made(config, {}), Made(to_plain(cfg), {}), type(cfg))
    return [
        Change(saved.step, one.path, _plain(one.then), _plain(one.now))
        for one in found
        if not is_one_of(one.path, type(cfg).CHANGEABLE.starts)
    ]


def changed_rate(saved: StepFolder, cfg: Any) -> str | None:
    """The learning rate right after a checkpoint, where it is no longer what it was to be.

    A schedule spans all steps of the run as it is now: with more steps the rate of each further
    step is that of a run of the new length, so that a cosine that had fallen rises again.
    """
    config = yaml.safe_load((saved.path / "config.yaml").read_text())["config"]
    if not config.get("steps"):
        return None
    known = {one.name for one in fields(ScheduleConfig)}
    schedule = ScheduleConfig(**{k: v for k, v in config["schedule"].items() if k in known})
    then = learning_rate(schedule, saved.step, config["steps"], config["optim"]["lr"])
    now = learning_rate(cfg.schedule, saved.step, cfg.steps, cfg.optim.lr)
    if math.isclose(then, now, rel_tol=1e-3):
        return None
    return f"learning rate of step {saved.step + 1}: {then:.3g} → {now:.3g} ({cfg.steps:,} steps)"


def _plain(value: Any) -> Any:
    return "absent" if value == MISSING else value


def count_steps(cfg: Any, loader: RowLoader, world: World, tracker: Tracker) -> int:
    """The steps of a run: those asked for, or those of `cfg.epochs`; collective.

    Raises ConfigError where fewer are known to be in the data.
    """
    found = world.broadcast_object(steps_of_data(loader) if world.is_main else None)
    in_data, is_exact = found
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


def picture_codes_of(
    weights: Weights | None, loader: RowLoader, report: Callable[[str], None]
) -> str:
    """The VQGAN whose codes this run trains on; VocabularyError where the weights know another."""
    of_data = loader.vq_fingerprint
    if weights is not None:
        of_data = weights.check_vq(of_data, "data.sources", report)
    return of_data or NO_PICTURES


def check_same_vq(ours: str, theirs: str | None, where: str) -> None:
    """Raises VocabularyError where something is used with a run on other picture codes."""
    if NO_PICTURES != ours != theirs is not None:
        raise VocabularyError(
            f"vq_mismatch: data.sources have the codes of VQGAN {ours}, {where} has those of "
            f"{theirs}; give what was made with the same VQGAN"
        )
