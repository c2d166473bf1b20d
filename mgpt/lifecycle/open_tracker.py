"""The tracker of a stage's output folder.

Apart from `build`, which needs torch: a stage that does not, such as `mgpt pack`, starts in a
fraction of the time.

    with open_tracker(cfg, "omni_sft") as tracker: ...
"""

from __future__ import annotations

from typing import Any

from mgpt.cli.settings import to_plain
from mgpt.files.local_copies import record_folder
from mgpt.files.storage import locate
from mgpt.launching.code_version import code_version
from mgpt.tracking.tracker import Tracker


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
