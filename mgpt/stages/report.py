"""mgpt report: one page of what a pipeline made, and the same figures as JSON.

    mgpt report evaluation=outputs/a/evaluate training.pretrain=outputs/a/pretrain \
        output=outputs/a/report
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgpt.evals.report import ReportInputs, build_report
from mgpt.lifecycle.identity import input_identities
from mgpt.lifecycle.rehearsal import Estimate, Scale, timed
from mgpt.lifecycle.run import run_stage
from mgpt.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt report` can be given."""

    evaluation: str
    """Output of mgpt evaluate."""
    training: dict[str, str] = field(default_factory=dict)
    """Name of each curve → output of a training stage."""
    photographs: str | None = None
    """Output of mgpt roundtrip."""
    conditions: str | None = None
    """A pipeline's pipeline.json: what ran, how long, with which versions."""
    title: str = "mgpt"
    """Heading of the page."""
    output: str
    """Folder of this stage."""
    page_folder: str | None = None
    """Where report.html and report.json go; null: output."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    return input_identities(cfg.evaluation, *cfg.training.values(), cfg.photographs)


def main(cfg: Config) -> None:
    run_stage("report", cfg, inputs(cfg), _report, min_free_mb=20, record=False)


def _report(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    parts = ReportInputs(
        cfg.title,
        evaluation=Path(cfg.evaluation),
        training={name: Path(path) / "metrics.jsonl" for name, path in cfg.training.items()},
        photographs=Path(cfg.photographs) if cfg.photographs else None,
        conditions=_conditions(cfg.conditions),
    )
    page = build_report(parts, Path(cfg.page_folder or cfg.output))
    tracker.print(f"report: {page}")
    return {"page": str(page)}


def _conditions(file: str | None) -> dict[str, Any]:
    return json.loads(Path(file).read_text()) if file else {}


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """The whole page, of what the stand-ins left: as many tasks and curves as in the real one."""
    own = replace(cfg, page_folder=None, conditions=None)  # nothing of the real run is touched
    return Estimate(timed(lambda: main(own)))
