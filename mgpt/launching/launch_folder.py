"""What a submission leaves in a stage's output folder, and what its job writes there.

    <output>/launch/job.sbatch        the script (local.sh for launcher=local)
                   /config.yaml       the resolved configuration that runs
                   /code.json         version, commit, versions; code.diff where it was edited
                   /submission.json   what, when, by whom, the command line
                   /job               id of the job that works here now
                   /state             running, waiting, complete or failed; job, time, reason
                   /starts/<n>        one file a start; barren: starts in a row without progress
                   /logs/<n>/rank_0000.log, logs/<job>.log
                   /stages/<entry>.yaml   of a pipeline, the configuration of each stage it starts

An element k of an array keeps its books in `element_<k>/`. A folder belongs to one live job: a
second submission is refused by name.

    >>> launch = LaunchFolder(Path("out/launch"))
    >>> with launch.claim():
    ...     launch.freeze({"job.sbatch": text, "config.yaml": config})
    ...     launch.set_job(slurm.submit(launch.path / "job.sbatch"))
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mgpt.errors import ConfigError
from mgpt.files.atomic import atomic_write, create_exclusive
from mgpt.launching import slurm

NAME = "launch"
SBATCH, LOCAL, CONFIG = "job.sbatch", "local.sh", "config.yaml"
_CLAIM = "submitting"
_LOCAL = "local "


@dataclass(frozen=True)
class State:
    """The last word of a job about itself: running, waiting, complete, failed, cancelled."""

    word: str
    job: str
    time_s: float
    reason: str


@dataclass(frozen=True)
class LaunchFolder:
    """The folder `launch` of a stage's output."""

    path: Path

    @property
    def job(self) -> str | None:
        """Id of the job that works here or did last; `local <host> <pid>` for a local one."""
        return _text(self.path / "job")

    @property
    def jobs(self) -> list[str]:
        """That job, and those that took over from elements of its array."""
        others = [_text(file) for file in sorted(self.path.glob("element_*/job"))]
        return [job for job in (self.job, *others) if job]

    @property
    def slurm_jobs(self) -> list[str]:
        """Those of them that Slurm may know."""
        return [job for job in self.jobs if not job.startswith(_LOCAL)]

    @property
    def local_pid(self) -> int | None:
        """The process of a local job on this host."""
        host, _, pid = (self.job or "").removeprefix(_LOCAL).partition(" ")
        return int(pid) if host == socket.gethostname() and pid else None

    @property
    def states(self) -> list[State]:
        """What the job says of itself; one an element of an array."""
        found = []
        for file in (self.path / "state", *sorted(self.path.glob("element_*/state"))):
            word, job, time_s, reason = ((_text(file) or "").split("\t") + [""] * 4)[:4]
            if word:
                found.append(State(word, job, float(time_s), reason))
        return found

    @property
    def newest_log(self) -> Path | None:
        """The log of rank 0 of the last start, else that of the job."""
        logs = [*self.path.glob("logs/*/rank_0000.log"), *self.path.glob("logs/*.log")]
        by_rank = [log for log in logs if log.name == "rank_0000.log"]
        return max(by_rank or logs, key=lambda log: log.stat().st_mtime, default=None)

    def live_job(self) -> str | None:
        """The job that works here now, in words; None where there is none.

        Raises MachineError where Slurm does not answer.
        """
        pid = self.local_pid
        if pid is not None and _runs_mgpt(pid):
            return f"process {pid} on {socket.gethostname()}"
        for job in self.slurm_jobs if slurm.is_here() else []:
            live = [one for one in slurm.look(job) if one.is_live]
            if live:
                where = f" on {live[0].nodes}" if live[0].nodes else ""
                return f"job {job} ({live[0].state}{where})"
        return None

    def refuse_if_live(self) -> None:
        """Raises ConfigError that names the job that works here."""
        live = self.live_job()
        if live is not None:
            output = self.path.parent
            raise ConfigError(
                f"{output}: {live} works in this folder; wait for it (mgpt status "
                f"output={output}), end it (mgpt cancel output={output}), or give another output="
            )

    @contextmanager
    def claim(self) -> Iterator[None]:
        """This process alone submits here; ConfigError where another does, or a job lives."""
        self.path.mkdir(parents=True, exist_ok=True)
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        file = self.path / _CLAIM
        while not create_exclusive(file, json.dumps(mine).encode()):
            other = _record(file)
            on_this_host = other.get("host") == mine["host"]
            if other and not (on_this_host and not Path(f"/proc/{other.get('pid')}").exists()):
                raise ConfigError(
                    f"{self.path.parent}: process {other.get('pid')} on {other.get('host')} is "
                    f"submitting here; where it is not any more, remove {file}"
                )
            file.unlink(missing_ok=True)
        try:
            self.refuse_if_live()
            yield
        finally:
            file.unlink(missing_ok=True)

    def freeze(self, texts: Mapping[str, str]) -> None:
        """Writes the files of a submission, and forgets what the jobs before it counted."""
        for name in ("barren", "state", "job", "cancelled"):
            (self.path / name).unlink(missing_ok=True)
        for element in self.path.glob("element_*"):
            for name in ("barren", "state", "job"):
                (element / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "doctor", ignore_errors=True)
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            atomic_write(self.path / name, text.encode())
        for name in (SBATCH, LOCAL):
            if name in texts:
                (self.path / name).chmod(0o755)

    def set_job(self, job: str) -> None:
        """Notes the job that works here from now on."""
        atomic_write(self.path / "job", f"{job}\n".encode())

    def set_cancelled(self) -> None:
        """Tells the job's script not to go back into the queue, and mgpt status what happened."""
        words = "\t".join(["cancelled", self.job or "", f"{time.time():.0f}", "by mgpt cancel"])
        atomic_write(self.path / "cancelled", b"")
        atomic_write(self.path / "state", f"{words}\n".encode())


def _runs_mgpt(pid: int) -> bool:
    """Whether a process is there, and no other that got the number since."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"mgpt" in words or words.endswith(f"/{LOCAL}\0".encode())


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def _record(file: Path) -> dict[str, object]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}
