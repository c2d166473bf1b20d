"""Submitting tiny trainings to the cluster of these tests, and reading what came of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster
from cluster_node import until

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import make_corpus

ON_CPUS = ("launcher.gpus_per_node=0", "launcher.time=20")
PATIENCE_S = 240


class Submission:
    """A training of 2 ranks on each of 2 nodes, submitted from the current folder."""

    def __init__(self, slurm: Cluster, output: Path, steps: int, save_every: int = 1000) -> None:
        self.slurm, self.output = slurm, output
        self.launch = output / "launch"
        corpus = output.parent / "corpus"
        if not corpus.exists():
            make_corpus(corpus)
        self.training = (
            "pretrain",
            "model=debug",
            f"vocabulary={corpus}/vocab",
            f"data.sources.a.path={corpus}/32",
            "data.sources.a.tasks.image_text=1",
            "data.row_tokens=256",
            "data.step_rows=4",
            f"steps={steps}",
            f"save_every={save_every}",
            "log_every=1",
            "schedule.warmup_steps=1",
            "parallel=fsdp2",
            "tracking=disabled",
        )

    def submit(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`mgpt submit pretrain launcher=slurm …`."""
        nodes = ("launcher=slurm", "launcher.nodes=2", "launcher.procs_per_node=2", *ON_CPUS)
        return self.mgpt("submit", *self.training, f"output={self.output}", *nodes, *words,
                         check=check)  # fmt: skip

    def mgpt(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command where the cluster is reached."""
        return self.slurm.run(
            sys.executable, "-m", "mgpt", *words, check=check, timeout_s=PATIENCE_S
        )

    def undisturbed(self) -> Path:
        """The output of the same training on four local ranks."""
        alone = self.output.with_name("undisturbed")
        words = [sys.executable, "-m", "mgpt", *self.training, "parallel.procs=4"]
        subprocess.run([*words, f"output={alone}"], check=True, timeout=PATIENCE_S)
        return alone

    @property
    def job(self) -> str:
        return (self.launch / "job").read_text().strip()

    @property
    def starts(self) -> int:
        return len(list((self.launch / "starts").iterdir()))

    def rows(self) -> list[dict[str, Any]]:
        return rows(self.output)

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        until(what, lambda: bool(condition()), PATIENCE_S, 0.1)

    def wait_step(self, step: int) -> None:
        """Returns once the record has that step."""
        self.wait(f"step {step}", lambda: any(row["step"] >= step for row in self.rows()))

    def wait_complete(self) -> None:
        """Returns once the job's script has said so; AssertionError where it failed."""

        def there() -> bool:
            state = self.state()
            assert state[0] != "failed", (state, self.logs())
            return state[0] == "complete"

        self.wait("the end", there)

    def state(self) -> list[str]:
        """Word, job, time, reason."""
        file = self.launch / "state"
        return file.read_text().rstrip("\n").split("\t") if file.exists() else [""]

    def logs(self) -> str:
        """The ends of the job's and the ranks' logs."""
        files = [*self.launch.glob("logs/*.log"), *self.launch.glob("logs/*/*.log")]
        return "\n".join(f"--- {file}\n{file.read_text()[-1500:]}" for file in sorted(files))


def rows(output: Path) -> list[dict[str, Any]]:
    """The record of a training, without a line that is being written."""
    file = output / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def same_training(one: Path, other: Path) -> None:
    """The same loss at every step, and the same weights, bit for bit."""
    assert [(r["step"], r["loss"]) for r in rows(one)] == [
        (r["step"], r["loss"]) for r in rows(other)
    ]
    figures = [json.loads((run / "DONE").read_text())["figures"] for run in (one, other)]
    assert figures[0]["weights_checksum"] == figures[1]["weights_checksum"]
