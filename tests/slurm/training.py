"""A small training on the test cluster: submitted as a user does, disturbed, compared."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Cluster
from cluster_node import until

PATIENCE_S = 600
STEPS = 20
PAGE = Path(__file__).parents[2] / "launch" / "README.md"
MGPT = (sys.executable, "-m", "mgpt")
ON_TWO_NODES = (
    *("launcher=slurm", "launcher.nodes=2", "launcher.procs_per_node=2"),
    *("launcher.gpus_per_node=0", "launcher.time=20", "launcher.grace_s=30"),
)
MEASURED = ("tokens_per_s", "data_wait_s", "step_s", "memory_mb", "slow_rank", "save_s", "wait_s")


def documented_command(program: str, job: str) -> list[str]:
    """The words of a command that launch/README.md gives for a job that hangs, as it is there."""
    section = PAGE.read_text().split("\n## When a job hangs\n")[1].split("\n## ")[0]
    (command,) = re.findall(rf"`({program} [^`]*<job>)`", section)
    return command.replace("<job>", job).split()


@dataclass(frozen=True)
class Inputs:
    """What every training here reads."""

    tokens: Path
    text: Path


class Run:
    """One run folder, and the command whose work it is.

    Args:
        words: overrides of `mgpt submit pretrain` beside the usual.
    """

    def __init__(self, inputs: Inputs, output: Path, *words: str) -> None:
        self.output = output
        self.command = [
            *(*MGPT, "submit", "pretrain", f"output={output}", f"vocabulary={inputs.text}"),
            *("model=debug", "parallel=fsdp2", f"steps={STEPS}", "save_every=4", "keep=20"),
            *(
                "log_every=1",
                "parallel.dtype=float32",
                "dropout=0.1",
                "schedule.warmup_steps=2",
                "data.row_tokens=256",
                "data.step_rows=4",
            ),
            *(f"data.sources.a.path={inputs.tokens}", "data.sources.a.tasks.image_text=1"),
            *("tracking=disabled", *words),
        ]

    def step(self) -> int:
        rows = self.rows()
        return rows[-1]["step"] if rows else 0

    def rows(self) -> list[dict[str, Any]]:
        """The record so far, without what the clock decides."""
        try:
            lines = (self.output / "metrics.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        parsed = [json.loads(line) for line in lines]
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in parsed]

    def state(self) -> dict[str, bytes]:
        """Weights and moments at the end, file by file."""
        newest = max(self.output.glob("step_*/COMPLETE")).parent / "state"
        return {file.name: file.read_bytes() for file in sorted(newest.iterdir())}


class Training(Run):
    """A run of two ranks on each of two nodes, and the job that works in it."""

    def __init__(self, slurm: Cluster, inputs: Inputs, output: Path, *words: str) -> None:
        super().__init__(inputs, output, *ON_TWO_NODES, *words)
        self.slurm, self.job = slurm, ""

    def submit(self) -> str:
        """Queues it; the job's number."""
        self.slurm.run(*self.command, timeout_s=PATIENCE_S)
        self.job = (self.output / "launch" / "job").read_text().strip()
        return self.job

    def mgpt(self, *words: str) -> str:
        """What `mgpt <words> output=<its own>` says."""
        command = (*MGPT, *words, f"output={self.output}")
        return self.slurm.run(*command, timeout_s=PATIENCE_S).stdout

    def reach(self, step: int, start: int = 1) -> None:
        """Returns once a start has brought the record to a step; AssertionError where the job ends
        before."""

        def there() -> bool:
            return self.step() >= step or self.slurm.states(self.job) != ["RUNNING"]

        until(f"start {start}", lambda: self.starts() >= start, PATIENCE_S)
        self.slurm.wait(self.job, "RUNNING", timeout_s=PATIENCE_S)
        until(f"step {step}", there, PATIENCE_S, every_s=0.02)
        assert self.step() >= step, self.log()

    def finish(self) -> None:
        """Returns once the job is complete; AssertionError with its log where it is not."""
        try:
            self.slurm.wait(self.job, "COMPLETED", timeout_s=PATIENCE_S)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def starts(self) -> int:
        return len(list((self.output / "launch" / "starts").glob("*")))

    def log(self) -> str:
        """What the job said, and rank 0 of each start."""
        logs = sorted((self.output / "launch" / "logs").rglob("*.log"))
        kept = [file for file in logs if file.name[0].isdigit() or "0000" in file.name]
        return "\n".join(f"--- {file}\n{file.read_text()}" for file in kept)


def assert_same(run: Run, other: Run) -> None:
    """Two runs have the same record and, bit for bit, the same weights and moments."""
    assert run.rows() == other.rows()
    states = run.state(), other.state()
    assert states[0].keys() == states[1].keys() and len(states[0]) > 2
    for name in states[0]:
        assert states[0][name] == states[1][name], name
