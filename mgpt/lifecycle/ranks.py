"""The same as `run_stage` for a stage that several ranks do: torchrun's, srun's, or its own.

    def main(cfg: Config) -> None:
        # figures = evaluate(cfg, world, tracker), on every rank
        run_on_ranks("evaluate", cfg, inputs, evaluate, "evaluate", cfg.procs, cfg.threads)

A process that no launcher started opens the output folder and, if more than one rank is asked for,
starts torchrun on the same command. Of ranks that a launcher started, rank 0 opens the folder, and
all continue or none does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mgpt.cli.settings import to_plain
from mgpt.errors import ConfigError
from mgpt.launching.processes import is_worker, num_processes, run_workers
from mgpt.launching.srun import join_step
from mgpt.lifecycle.folder import CONFIG, StageFolder
from mgpt.lifecycle.run import open_tracker
from mgpt.parallel.dist import World, init_distributed
from mgpt.tracking.tracker import Tracker

Config = TypeVar("Config")


def run_on_ranks(
    stage: str,
    cfg: Config,
    inputs: Callable[[Config], Mapping[str, str]],
    work: Callable[[Config, World, Tracker], Mapping[str, Any]],
    kind: str,
    procs: int | str,
    threads: int,
    timeout_s: float = 1800.0,
    record: bool = True,
    alone: str = "",
) -> None:
    """Does the work of a stage whose output is not complete yet, on ranks; marks it complete.

    Args:
        inputs: of `cfg`, as for `run_stage`.
        work: called on every rank; returns, on rank 0, the figures that DONE keeps.
        kind: training or evaluate; decides how many processes `auto` is.
        threads: torch's threads of a process on a CPU.
        timeout_s: longest wait in one collective.
        record: whether the tracker writes metrics.jsonl.
        alone: the backend's name if it runs in one process.

    Raises:
        ConfigError, MachineError: see `StageFolder.open`; on every rank.
        TrainingError, Interrupted: how the ranks that this process started ended.
    """
    join_step(procs, alone)

    def open_folder() -> StageFolder:
        return StageFolder.open(stage, cfg, inputs(cfg))

    folder = None if is_worker() else open_folder()
    if folder is not None:
        if folder.is_complete:
            return
        count = num_processes(kind, procs, threads)
        if count > 1:
            run_workers([stage, "--config", str(folder.path / CONFIG)], count, threads)
            return
    world = init_distributed(timeout_s=timeout_s)
    try:
        folder = folder or open_on_ranks(world, cfg, open_folder)
        if folder.is_complete:
            return
        with open_tracker(cfg, stage, world.is_main, record) as tracker:
            figures = work(cfg, world, tracker)
        if world.is_main:
            folder.finish(figures)
        world.barrier()
    finally:
        world.shutdown()


def open_on_ranks(world: World, cfg: Any, open_folder: Callable[[], StageFolder]) -> StageFolder:
    """The stage's folder, of which no rank has opened it yet. Collective.

    Raises, on every rank, what rank 0 meets, or ConfigError where the ranks differ in what they
    were asked: the tasks of one srun step that were meant as runs of their own.
    """
    asked = world.gather_objects([str(cfg.output), _fingerprint(cfg)])
    for rank, other in enumerate(asked):
        if other != asked[0]:
            raise ConfigError(
                f"rank {rank} has another configuration than rank 0 (output={other[0]} and "
                f"{asked[0][0]}); the processes of one torchrun or srun are the ranks of one run: "
                "start another run with a torchrun or srun of its own"
            )
    opened: list[StageFolder] = []
    world.on_main(lambda: opened.append(open_folder()))
    return opened[0] if opened else open_folder()


def _fingerprint(cfg: Any) -> str:
    """16 hex digits over a stage's configuration."""
    text = json.dumps(to_plain(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
