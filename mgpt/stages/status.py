"""mgpt status: what was submitted, job by job: state, step, rate, loss, last checkpoint, time left.

Asks Slurm's controller (scontrol, no accounting) and reads the output folders, so it also tells
what became of jobs that Slurm has forgotten. `watch_s=10` shows it again until nothing is left that
could move.

    mgpt status output=out
    mgpt status output=outputs/quickstart watch_s=10
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mgpt.errors import ConfigError, MachineError
from mgpt.files.local_copies import record_folder
from mgpt.files.storage import locate
from mgpt.launching import slurm
from mgpt.launching.launch_folder import NAME, LaunchFolder
from mgpt.launching.slurm import Job
from mgpt.launching.standing import Standing, standing
from mgpt.tracking.progress import clock
from mgpt.tracking.tracker import Tracker, console_tracker

CHAIN = "chain.json"  # in launch/ of a pipeline's output
_SILENCE_S = 60.0
COLUMNS = ("stage", "job", "state", "step", "tokens/s", "loss", "checkpoint", "time left")


@dataclass(frozen=True)
class Config:
    """What `mgpt status` can be given."""

    output: str
    """Output folder of what was submitted."""
    watch_s: float | None = None
    """Seconds between looks; null: one look."""

    def __post_init__(self) -> None:
        if self.watch_s is not None and self.watch_s <= 0:
            raise ValueError(f"watch_s={self.watch_s} must be above 0")


@dataclass(frozen=True)
class Submitted:
    """A stage that was submitted."""

    name: str
    launch: LaunchFolder
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """One stage's line of the table, and what stands below it."""

    name: str
    job: str
    state: str
    is_live: bool
    is_good: bool
    reason: str
    standing: Standing
    log: Path | None

    @property
    def cells(self) -> list[str]:
        """The line of the table."""
        now = self.standing
        step = "" if now.step is None else f"{now.step:,}/{now.steps:,}"
        rate = "" if now.tokens_per_s is None else f"{now.tokens_per_s:,.0f}"
        loss = "" if now.loss is None else f"{now.loss:.4g}"
        saved = ""
        if now.checkpoint is not None and now.checkpoint_age_s is not None:
            saved = f"{now.checkpoint:,}, {clock(now.checkpoint_age_s)} ago"
        left = clock(now.left_s) if self.is_live and now.left_s is not None else ""
        return [self.name, self.job, self.state, step, rate, loss, saved, left]


def main(cfg: Config) -> None:
    submitted = read_submission(cfg.output)
    with console_tracker("status") as tracker:
        while True:
            reports = look(submitted)
            show(tracker, cfg.output, reports)
            if cfg.watch_s is None or not any(report.is_live for report in reports):
                return
            time.sleep(cfg.watch_s)


def read_submission(output: str) -> list[Submitted]:
    """What was submitted into an output folder. Raises ConfigError where nothing was."""
    launch = LaunchFolder(record_folder(locate(output)).absolute() / NAME)
    try:
        works = json.loads((launch.path / CHAIN).read_text())
    except FileNotFoundError:
        works = None
    if works is not None:
        return [
            Submitted(work["name"], LaunchFolder(Path(work["launch"])), tuple(work["needs"]))
            for work in works
        ]
    try:
        by = json.loads((launch.path / "submission.json").read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{output}: nothing was submitted here; give the output of mgpt submit"
        ) from error
    return [Submitted(by["stage"], launch)]


def look(submitted: list[Submitted]) -> list[Report]:
    """How each stage stands now, in order."""
    reports: dict[str, Report] = {}
    for one in submitted:
        before = [reports[name] for name in one.needs if name in reports]
        reports[one.name] = _report(one, before)
    return list(reports.values())


def _report(one: Submitted, before: list[Report]) -> Report:
    launch = one.launch
    try:
        jobs = [job for job_id in launch.slurm_jobs for job in slurm.look(job_id)]
        is_known = True
    except MachineError:  # no controller answers: the folders still speak
        jobs, is_known = [], False
    now = standing(launch.path.parent, _steps(launch))
    live = [job for job in jobs if job.is_live]
    is_local = launch.local_pid is not None and launch.live_job() is not None
    words = [state.word for state in launch.states]
    reason = next((state.reason for state in launch.states if state.word == "failed"), "")
    is_good = False
    if live or is_local:
        state, reason = _live_words(live) + _silence(now), ""
    elif now.is_done or (words and set(words) == {"complete"}):
        state, is_good = "complete", True
    elif "failed" in words or "cancelled" in words:
        state = "failed" if "failed" in words else "cancelled"
    elif launch.job is None:
        state = "not submitted"
    elif not is_known:
        state, reason = "unknown", "Slurm does not answer"
    elif any(not report.is_good and not report.is_live for report in before):
        stopped = [report.name for report in before if not report.is_good]
        state, reason = "not started", f"{', '.join(stopped)} did not succeed"
    else:
        ended = Counter(job.state for job in jobs)
        said = ", ".join(f"{count} {name}" for name, count in ended.items())
        state, reason = "ended", f"without a word of its own ({said or 'Slurm has forgotten it'})"
    return Report(
        name=one.name,
        job=", ".join(launch.jobs),
        state=state,
        is_live=bool(live) or is_local,
        is_good=is_good,
        reason=reason,
        standing=now,
        log=launch.newest_log,
    )


def _live_words(live: list[Job]) -> str:
    """`RUNNING on vn[1-2], restart 2`, `PENDING (Dependency)`, `3 RUNNING, 1 PENDING`."""
    if not live:
        return "RUNNING"
    if len(live) > 1:
        return ", ".join(f"{n} {state}" for state, n in Counter(job.state for job in live).items())
    (job,) = live
    words = job.state
    if job.state == "PENDING" and job.reason:
        words += f" ({job.reason})"
    elif job.nodes:
        words += f" on {job.nodes}"
    return words + (f", restart {job.restarts}" if job.restarts else "")


def _silence(now: Standing) -> str:
    """How long ago the last step was, where that is worth a look."""
    if now.step_age_s is None or now.step_age_s < _SILENCE_S:
        return ""
    return f", last step {clock(now.step_age_s)} ago"


def _steps(launch: LaunchFolder) -> int | None:
    """The steps that a training stage was submitted for."""
    try:
        config: Any = yaml.safe_load((launch.path / "config.yaml").read_text())
    except OSError:
        return None
    steps = config.get("steps") if isinstance(config, dict) else None
    return steps if isinstance(steps, int) and steps > 0 else None


def show(tracker: Tracker, output: str, reports: list[Report]) -> None:
    """The table, and below it what failed, and where running stages write."""
    tracker.table(
        f"{output}, {time.strftime('%H:%M:%S')}", COLUMNS, [report.cells for report in reports]
    )
    for report in reports:
        if report.reason:
            tracker.print(f"  {report.name}: {report.state}: {report.reason}")
        if report.log is not None and (report.is_live or report.reason):
            tracker.print(f"  {report.name}: {report.log}")
