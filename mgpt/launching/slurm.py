"""Slurm's own commands: submit, look, cancel. Needs no accounting (`sacct`).

What a job is comes from `scontrol show job`, which a controller answers until some minutes after
the job's end (MinJobAge); for one that it has forgotten there is no answer, and the run folder
says what became of it.

    >>> job_id = submit(Path("run/launch/job.sbatch"), dependency="afterok:17")
    >>> [(job.id, job.state, job.reason) for job in look(job_id)]
    [('18', 'PENDING', 'Dependency')]
    >>> cancel([job_id])
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgpt.errors import MachineError

PATIENCE_S = 60
_ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE",
     "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "SPECIAL_EXIT"}
)  # fmt: skip
_FIELDS = (
    "JobId", "ArrayJobId", "ArrayTaskId", "JobState", "Reason", "Restarts", "RunTime", "TimeLimit",
    "NodeList", "Dependency",
)  # fmt: skip
_FIELD = re.compile(rf"(?:^| )({'|'.join(_FIELDS)})=(\S*)")


@dataclass(frozen=True)
class Job:
    """One job, or one element (or the waiting elements) of an array, as the controller has it."""

    id: str
    state: str
    reason: str
    restarts: int
    run_time: str
    time_limit: str
    nodes: str
    dependency: str

    @property
    def is_live(self) -> bool:
        """Waiting, running, or not yet gone from its nodes."""
        return self.state not in _ENDED


def is_here() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


def version() -> str:
    """Of the commands: `slurm-wlm 22.05.8`."""
    return _run("sbatch", "--version").strip()


def submit(script: Path, dependency: str = "") -> str:
    """Puts a script into the queue; the job's id. Raises MachineError with Slurm's own words."""
    answer = _run(*sbatch_words(script, dependency))
    return answer.strip().split(";")[0]  # `id;cluster` where there are several


def sbatch_words(script: Path, dependency: str = "") -> list[str]:
    """The command line that `submit` runs."""
    words = ["sbatch", "--parsable"]
    if dependency:
        # A job whose dependency cannot come true any more leaves the queue instead of staying.
        words += [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"]
    return [*words, str(script)]


def look(job_id: str) -> list[Job]:
    """The job, or the elements of the array; empty where the controller has forgotten it.

    Raises MachineError where no controller answers.
    """
    try:
        answer = _run("scontrol", "show", "job", "--oneliner", job_id)
    except MachineError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return [_job(line) for line in answer.splitlines() if line.strip()]


def cancel(job_ids: Sequence[str]) -> None:
    """Ends jobs; those that are over already stay so."""
    if job_ids:
        _run("scancel", "--quiet", *job_ids)


def _job(line: str) -> Job:
    found = dict(_FIELD.findall(line))
    element = found.get("ArrayTaskId")
    job_id = f"{found['ArrayJobId']}_{element}" if element else found["JobId"]

    def given(name: str) -> str:
        value = found.get(name, "")
        return "" if value in ("(null)", "None") else value

    return Job(
        id=job_id,
        state=given("JobState"),
        reason=given("Reason"),
        restarts=int(given("Restarts") or 0),
        run_time=given("RunTime"),
        time_limit=given("TimeLimit"),
        nodes=given("NodeList"),
        dependency=given("Dependency"),
    )


def _run(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    except FileNotFoundError as error:
        raise MachineError(
            f"{words[0]} is not on PATH; launcher=slurm needs Slurm's commands, as a login node "
            "has them (launcher=local runs here, dry_run=true shows the script)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{words[0]} did not answer within {PATIENCE_S} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").replace("\n", "; ")
        raise MachineError(f"{words[0]} failed with status {done.returncode}: {said}")
    return done.stdout
