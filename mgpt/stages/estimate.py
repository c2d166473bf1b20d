"""The expected time of a pipeline, before its first long stage, beside what it took in the end.

The stages that are left are rehearsed (`mgpt.stages.rehearsal`) in a process of their own, so that
neither memory nor thread counts of the pipeline change, and a rehearsal that fails ends nothing.

    estimate = estimate_pipeline(entries, Path("outputs/quickstart"))
    estimate.total_s, estimate.unknown          # 1180.0, ['report']
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.cli.settings import to_plain
from mgpt.stages.recipe import Entry

_LIMIT_S = 120.0


@dataclass(frozen=True)
class PipelineEstimate:
    """Seconds of each stage that is left, its process's start included; null where unknown."""

    stages: dict[str, float | None]
    reasons: dict[str, str]
    """Why a stage has no estimate."""
    took_s: float

    @property
    def total_s(self) -> float:
        return sum(seconds for seconds in self.stages.values() if seconds is not None)

    @property
    def unknown(self) -> list[str]:
        return [name for name, seconds in self.stages.items() if seconds is None]

    def print(self) -> None:
        """The total, and a table by stage."""
        from rich.console import Console
        from rich.table import Table

        table = Table(
            "stage", "expected, s", title="measured on this machine", title_justify="left"
        )
        for name, seconds in self.stages.items():
            table.add_row(
                name, f"unknown ({self.reasons[name]})" if seconds is None else f"{seconds:,.0f}"
            )
        table.add_row("all", f"{self.total_s:,.0f}{' and more' if self.unknown else ''}")
        Console().print(table)
        print(
            f"expected: {in_minutes(self.total_s)} from here (the estimate took "
            f"{self.took_s:,.0f} s)",
            flush=True,
        )

    def record(self) -> dict[str, Any]:
        """For pipeline.json."""
        return {
            "seconds": round(self.total_s, 1),
            "unknown": self.unknown,
            "took_s": round(self.took_s, 1),
        }


def in_minutes(seconds: float) -> str:
    """`18 min`, `2 h 05 min`, `40 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_long(entries: Sequence[Entry]) -> bool:
    """Whether an estimate is worth its time: some stage that is left is long by its settings."""
    return any(
        entry.module.is_long(entry.config) for entry in entries if hasattr(entry.module, "is_long")
    )


def estimate_pipeline(entries: Sequence[Entry]) -> PipelineEstimate | None:
    """The time of these stages on this machine; None, with a line, where nothing can be said."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mgpt-rehearsal-") as name:
        folder = Path(name)
        job = {
            "spawned": time.time(),
            "folder": str(folder / "stages"),
            "results": str(folder / "results.json"),
            "stages": [
                {"name": e.name, "stage": e.stage, "config": to_plain(e.config)} for e in entries
            ],
        }
        (folder / "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", "mgpt.stages.rehearsal", str(folder / "job.json")]
        log = folder / "log"
        try:
            with log.open("wb") as out:
                subprocess.run(
                    command, stdout=out, stderr=out, timeout=_LIMIT_S, env=dict(os.environ)
                )
        except subprocess.TimeoutExpired:
            pass  # what was rehearsed by then counts
        try:
            found = json.loads((folder / "results.json").read_text())
        except (OSError, ValueError):
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            print(f"no estimate of the time: the rehearsal ended with {last!r}", flush=True)
            return None
        if os.environ.get("MGPT_TRACEBACK"):
            print(log.read_text(errors="replace"))
    rows = {row["name"]: row for row in found["stages"]}
    stages: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for entry in entries:
        row = rows.get(entry.name, {"seconds": None, "reason": "the rehearsal did not reach it"})
        stages[entry.name] = row["seconds"]
        if row["seconds"] is None:
            reasons[entry.name] = row["reason"]
    return PipelineEstimate(stages, reasons, time.monotonic() - start)
