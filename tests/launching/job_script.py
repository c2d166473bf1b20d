"""A job's script run without Slurm: its commands are stand-ins that note what they were asked.

The stand-in of srun does what a test's plan says for each start in turn: a line of shell that may
make a checkpoint, and ends with a status. That of `scontrol requeue` ends the script, as Slurm
does, and `run_to_the_end` starts it again.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from mgpt.launching.launcher import Launcher
from mgpt.launching.script import Origin, Task, sbatch_script

STAND_INS = {
    "srun": """
n=$(($(cat "$T/steps" 2>/dev/null || echo 0) + 1)); echo $n >"$T/steps"
echo "srun $*" >>"$T/calls"
eval "$(sed -n ${n}p "$T/plan")"
""",
    "scontrol": """
case "$1 $2" in
  "show hostnames") echo 127.0.0.1 ;;
  "show job") cat "$T/job" ;;
  requeue*) echo "requeue $2" >>"$T/calls"; [ ! -e "$T/no_requeue" ] || exit 1
     (while sleep 0.1 && kill -TERM $PPID; do :; done) >/dev/null 2>&1 & ;;
  update*) echo "update $*" >>"$T/calls" ;;
esac
""",
    "sbatch": 'echo "sbatch $*" >>"$T/calls"; echo 99',
    "squeue": 'case "$*" in *PENDING*) cat "$T/waiting" ;; *--jobs*) cat "$T/live" ;; esac',
}


@dataclass
class Outcome:
    """The end of a job: its last status, the log, and what Slurm was asked."""

    status: int
    log: str
    calls: list[str]
    starts: int


class JobScript:
    """The script of a training of `ranks` on each of 2 nodes, in a folder with a space."""

    def __init__(
        self, tmp_path: Path, kind: str = "training", ranks: int = 2, **launcher: object
    ) -> None:
        self.run = tmp_path / "a run"
        self.launch = self.run / "launch"
        self.launch.mkdir(parents=True)
        self._stand_ins = tmp_path / "bin"
        self._stand_ins.mkdir()
        self.notes = tmp_path / "notes"
        self.notes.mkdir()
        for name, text in STAND_INS.items():
            file = self._stand_ins / name
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(0o755)
        for name in ("waiting", "live"):
            (self.notes / name).touch()
        task = Task(
            name="a run",
            stage="pretrain",
            run=str(self.run),
            launch=self.launch,
            kind=kind,  # type: ignore[arg-type]
            arguments=("pretrain", "--config", "x"),
            ranks=ranks,
        )
        settings = Launcher(name="slurm", nodes=2, **launcher)  # type: ignore[arg-type]
        origin = Origin(tmp_path, str(self.run), "today", "mgpt 0")
        text = sbatch_script(
            replace(task, final=(1,) if kind == "alone" else ()),
            settings,
            settings.resources("pretrain"),
            origin,
        )
        self.file = self.launch / "job.sbatch"
        self.file.write_text(text)

    def start(self, restart: int = 0, state: str = "RUNNING", **environment: str) -> Outcome:
        """One start of the job; `state` is what scontrol says of it."""
        shown = f"JobId=7 JobState={state} Restarts={restart} Requeue=1"
        (self.notes / "job").write_text(f"{shown}\n")
        given = {
            "PATH": f"{self._stand_ins}:{os.environ['PATH']}",
            "T": str(self.notes),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "vn[1-2]",
            **({"SLURM_RESTART_COUNT": str(restart)} if restart else {}),
            **environment,
        }
        run = subprocess.run(
            ["bash", str(self.file)],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **given},
        )
        calls = self.notes / "calls"
        asked = calls.read_text().splitlines() if calls.exists() else []
        starts = len(list(self.launch.glob("starts/*")))
        return Outcome(run.returncode, run.stdout + run.stderr, asked, starts)

    def plan(self, *steps: str) -> None:
        """What each step does in turn; `save N` makes the checkpoint of step N, and what ends with
        `exit 0` has done its work."""
        made = [self._with_saves(step) for step in steps]
        (self.notes / "plan").write_text("\n".join(made) + "\n")

    def _with_saves(self, step: str) -> str:
        words = step.split("; ")
        for index, word in enumerate(words):
            if word.startswith("save "):
                folder = f"'{self.run}/step_{int(word[5:]):08d}'"
                words[index] = f"mkdir -p {folder}; touch {folder}/COMPLETE"
        if words[-1] == "exit 0":
            words[-1] = f"touch '{self.run}/DONE'; exit 0"
        return "; ".join(words)

    def run_to_the_end(self, limit: int = 20) -> Outcome:
        """Starts, and starts again after each requeue."""
        requeues = 0
        for restart in range(limit):
            outcome = self.start(restart)
            now = sum(call.startswith("requeue") for call in outcome.calls)
            if now == requeues:
                return outcome
            requeues = now
        raise AssertionError(f"still going on after {limit} starts")

    @property
    def state(self) -> list[str]:
        """Word, job and reason of the state file."""
        word, job, _, reason = (self.launch / "state").read_text().rstrip("\n").split("\t")
        return [word, job, reason]
