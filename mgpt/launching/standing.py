"""Where a stage stands, by what is in its output folder: no scheduler, no torch.

>>> standing(Path("out"), steps=2000)
Standing(step=1200, steps=2000, tokens_per_s=51840.0, loss=2.31, checkpoint=1000, ...)
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.train.step_layout import COMPLETE, complete_steps

_TAIL_BYTES = 1 << 18
_RECENT = 20  # steps whose times say what is usual


@dataclass(frozen=True)
class Standing:
    """Figures of a run; None where they are not known. Ages and times in seconds."""

    is_done: bool = False
    step: int | None = None
    steps: int | None = None
    tokens_per_s: float | None = None
    loss: float | None = None
    step_age_s: float | None = None
    checkpoint: int | None = None
    checkpoint_age_s: float | None = None
    left_s: float | None = None


def standing(run: Path, steps: int | None) -> Standing:
    """What the record and the checkpoints of an output folder say of a run of `steps` steps."""
    now = time.time()
    checkpoints = complete_steps(run)
    saved = max(checkpoints, default=None)
    age_s = None if saved is None else now - (checkpoints[saved] / COMPLETE).stat().st_mtime
    rows = _last_rows(run / "metrics.jsonl")
    is_done = (run / "DONE").exists()
    if not rows or steps is None:
        return Standing(is_done, steps=steps, checkpoint=saved, checkpoint_age_s=age_s)
    step = int(rows[-1]["step"])
    times = [float(row["step_s"]) for row in rows if row.get("step_s") is not None]
    rates = [float(row["tokens_per_s"]) for row in rows if row.get("tokens_per_s") is not None]
    left_s = (steps - step) * statistics.median(times) if times else None
    return Standing(
        is_done=is_done,
        step=step,
        steps=steps,
        tokens_per_s=statistics.median(rates) if rates else None,
        loss=rows[-1].get("loss"),
        step_age_s=now - (run / "metrics.jsonl").stat().st_mtime,
        checkpoint=saved,
        checkpoint_age_s=age_s,
        left_s=0.0 if is_done else left_s,
    )


def _last_rows(file: Path) -> list[dict[str, Any]]:
    """The last steps of the record, without lines that are cut."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except OSError:
        return []
    rows = []
    for line in lines[-_RECENT:]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows
