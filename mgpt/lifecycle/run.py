"""What surrounds the work of every stage: its output folder, its tracker, and DONE in the end.

    def main(cfg: Config) -> None:
        run_stage("pack", cfg, inputs(cfg), pack)       # figures = pack(cfg, tracker)

Stages whose work is done by ranks have `mgpt.lifecycle.ranks`. Imports no torch: a stage that does
not need it, such as `mgpt pack`, starts in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mgpt.cli.settings import to_plain
from mgpt.files.local_copies import record_folder
from mgpt.files.storage import locate
from mgpt.launching.code_version import code_version
from mgpt.launching.place import Place
from mgpt.lifecycle.folder import StageFolder
from mgpt.tracking.tracker import Tracker

Config = TypeVar("Config")


def run_stage(
    stage: str,
    cfg: Config,
    inputs: Mapping[str, str],
    work: Callable[[Config, Tracker], Mapping[str, Any]],
    min_free_mb: float = 200.0,
    record: bool = True,
    shared: bool = False,
    more: str = "",
) -> None:
    """Does the work of a stage whose output is not complete yet, and marks it complete.

    Args:
        cfg: the stage's dataclass, with `output`, `redo` and `tracking`.
        inputs: values in `cfg` that name inputs → their identities (`mgpt.lifecycle.identity`).
        work: returns the figures that DONE keeps.
        min_free_mb: free disk space without which the stage does not start.
        record: whether the tracker writes metrics.jsonl.
        shared: processes that were started apart may do the work together, on an object store too.
        more: what a finished stage has left to do although nothing it was given differs, in words.

    Raises:
        ConfigError, MachineError: see `StageFolder.open`.
    """
    folder = StageFolder.open(stage, cfg, inputs, min_free_mb, may_be_remote=shared, more=more)
    if folder.is_complete:
        return
    is_main = not shared or Place.of_environment().number == 0
    with open_tracker(cfg, stage, is_main, record, shared) as tracker:
        figures = work(cfg, tracker)
    folder.finish(figures)


def open_tracker(
    cfg: Any, stage: str, is_main: bool = True, record: bool = True, shared: bool = False
) -> Tracker:
    """The tracker of a stage's output folder; `record=False` where a trainer writes the record,
    `shared` where processes started apart may do the stage together."""
    shown = {**to_plain(cfg), "code": code_version()} if is_main else {}
    output = locate(cfg.output)
    folder = record_folder(output)
    tracker = Tracker(
        cfg.tracking,
        folder,
        stage,
        resolved_config=shown,
        is_main=is_main,
        record=record,
        shared=shared,
    )
    if folder != output:
        tracker.print(f"{stage}: the record of {output} stands in {folder}")
    return tracker
