"""What a pipeline will take on this machine: each stage does a few of its units on small stand-ins.

A stage whose module has a function `rehearse` is estimated; the others are named as they are. It is
given its configuration with every path of an earlier stage replaced by that stage's stand-in, so
the stages themselves run, only shorter, and nothing is imitated (`mgpt.lifecycle.rehearsal`).

`python -m mgpt.stages.rehearsal JOB.json` rehearses in a process of its own, whose start-up is
measured too: that much every stage takes before its first unit.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.cli.config import from_hydra
from mgpt.cli.settings import to_plain
from mgpt.cli.stage_table import load_stage
from mgpt.errors import ConfigError, MgptError
from mgpt.files.atomic import atomic_write
from mgpt.files.child_processes import die_with_parent
from mgpt.tracking.tracker import TrackingConfig


@dataclass(frozen=True)
class Job:
    """One stage to rehearse: its name in the pipeline, and its resolved configuration."""

    name: str
    stage: str
    config: Mapping[str, Any]


def replaced(config: Any, stand_ins: Mapping[str, str]) -> Any:
    """Plain data with every path in or below a key's folder led to that key's stand-in."""
    if isinstance(config, Mapping):
        return {key: replaced(value, stand_ins) for key, value in config.items()}
    if isinstance(config, list):
        return [replaced(value, stand_ins) for value in config]
    if isinstance(config, str):
        for real, stand_in in stand_ins.items():
            if config == real or config.startswith(f"{real}/"):
                return stand_in + config[len(real) :]
    return config


class Rehearsal:
    """The stages of one pipeline, rehearsed in order below a folder."""

    def __init__(self, root: Path, start_up_s: Mapping[str, float] | None = None) -> None:
        """`start_up_s`: by stage, seconds until a process of it begins its work."""
        self._root = root
        self._start_up_s = start_up_s or {}
        self._stand_ins: dict[str, str] = {}
        self._times: dict[str, float] = {}
        self._unknown: dict[str, str] = {}  # output without a stand-in → the stage's name

    def run(self, job: Job) -> dict[str, Any]:
        """Name, seconds (null: not estimated, with the reason), and what the rehearsal took."""
        start = time.perf_counter()
        seconds, reason = self._seconds(job)
        took = round(time.perf_counter() - start, 2)
        return {"name": job.name, "seconds": seconds, "reason": reason, "rehearsal_s": took}

    def _seconds(self, job: Job) -> tuple[float | None, str]:
        module, output = load_stage(job.stage), str(job.config["output"])
        if not hasattr(module, "rehearse"):
            self._unknown[output] = job.name
            return None, f"mgpt {job.stage} has no rehearsal"
        own = self._root / job.name.replace("/", "_")
        paths = {**self._stand_ins, output: str(own)}
        config = replaced(dict(job.config), paths)
        quiet = {"tracking": to_plain(TrackingConfig(mode="disabled")), "redo": False}
        config |= {name: value for name, value in quiet.items() if name in config}
        import torch  # not above: stages that need no tensors start without it

        threads = torch.get_num_threads()
        try:
            for folder, name in self._unknown.items():
                if replaced(job.config, {folder: ""}) != job.config:
                    raise ConfigError(f"it reads the output of {name}, which has no estimate")
            estimate = module.rehearse(
                from_hydra(module.Config, config), from_hydra(module.Config, job.config), self.scale
            )
        except Exception as error:  # an estimate must not end a run
            traceback.print_exc()
            self._unknown[output] = job.name
            words = str(error).splitlines() or [type(error).__name__]
            return None, words[0]
        finally:
            torch.set_num_threads(threads)  # what a process of the next stage would begin with
        self._stand_ins[output], self._times[output] = str(own), estimate.times
        start_up_s = estimate.starts * self._start_up_s.get(job.stage, 0.0)
        return round(estimate.seconds + start_up_s, 1), ""

    def scale(self, path: str) -> float:
        """See `Scale`."""
        for real, times in self._times.items():
            if path == real or path.startswith(f"{real}/"):
                return times
        return 1.0


def main(file: Path) -> None:
    """Rehearses a job file's stages; each result is in its `results` file at once."""
    die_with_parent()
    job = json.loads(file.read_text())
    jobs = [Job(**one) for one in job["stages"]]
    rehearsal = Rehearsal(Path(job["folder"]), start_ups(job["spawned"], {j.stage for j in jobs}))
    results: list[dict[str, Any]] = []
    for one in jobs:
        results.append(rehearsal.run(one))
        atomic_write(Path(job["results"]), json.dumps({"stages": results}).encode())


def start_ups(spawned: float, stages: Collection[str]) -> dict[str, float]:
    """Seconds that a process takes to start, by stage, from how long this one has taken.

    Most of it is torch, which some stages do without: those whose modules import where it is out of
    reach.
    """
    light_s = time.time() - spawned
    assert "torch" not in sys.modules, "it is imported by whoever needs it"
    sys.modules["torch"] = None  # type: ignore[assignment]
    light = set()
    for stage in stages:
        with suppress(MgptError):
            load_stage(stage)
            light.add(stage)
    del sys.modules["torch"]
    start = time.perf_counter()
    for stage in stages:
        load_stage(stage)
    loading_s = time.perf_counter() - start
    return {stage: light_s + loading_s * (stage not in light) for stage in stages}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
