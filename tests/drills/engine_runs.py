"""Attempts at a training run, as real ranks that a drill can kill, stop and signal.

with Attempt(run, size=2) as attempt:
    attempt.wait_for(lambda: any(folder.glob(".step_*")))
    attempt.send(signal.SIGKILL, ranks=[0])
attempt.codes, attempt.logs()
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import Run, metrics_of, train

from mgpt.parallel.dist import World, init_distributed
from mgpt.train.step_folder import newest_complete

# Ranks that start in a moment: forked off a process that has imported all, and run nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "mgpt.train.trainer",
        "mgpt.parallel.fsdp2",
        "mgpt.data.loader",
        "mgpt.tokens.vocab",
        "sentencepiece",
        "torch._dynamo",  # which the first optimiser imports, for seconds
    ]
)
END_S = 240.0  # an attempt that takes longer hangs, on a busy machine too


class Attempt:
    """One start of a run on `size` ranks; those that run at the end of the block are killed."""

    def __init__(self, run: Run, size: int, hook: Callable[[], None] | None = None) -> None:
        """`hook` is called on each rank before it trains; a module's own function."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._run, self._size = run, size
        self._folder = Path(run.folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self._folder.name}-{time.monotonic_ns()}"
        self._logs = [self._folder.parent / f"{stem}-{rank}.log" for rank in range(size)]
        self._ranks = [
            CONTEXT.Process(
                target=_rank, args=(run, rank, size, port, self._logs[rank], hook), daemon=True
            )
            for rank in range(size)
        ]
        for rank in self._ranks:
            rank.start()

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.join()

    @property
    def codes(self) -> list[int | None]:
        """Exit codes by rank, negative for a signal, None of a rank that runs."""
        return [rank.exitcode for rank in self._ranks]

    @property
    def is_running(self) -> bool:
        return None in self.codes

    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in self._logs if log.exists())

    def send(self, number: signal.Signals, ranks: Iterable[int] | None = None) -> None:
        """Sends a signal to some ranks, or all, as far as they run."""
        for rank in range(self._size) if ranks is None else ranks:
            process = self._ranks[rank]
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, number)

    def wait(self, seconds: float = END_S) -> list[int | None]:
        """The exit codes, once all ranks have ended by themselves. Fails where one has not."""
        deadline = time.monotonic() + seconds
        for rank in self._ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        assert not self.is_running, f"{self.codes} after {seconds} s\n{self.logs()}"
        return self.codes

    def wait_for(self, condition: Callable[[], bool], seconds: float = END_S) -> bool:
        """Whether the condition came to hold while the attempt ran."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.is_running:
                return False
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.002)
        return True


def finish(run: Run, size: int) -> None:
    """Runs to the end, undisturbed."""
    with Attempt(run, size) as attempt:
        assert attempt.wait() == [0] * size, attempt.logs()


def outcome(run: Run) -> dict[str, Any]:
    return json.loads((Path(run.folder) / "outcome.json").read_text())


def result(run: Run) -> tuple[Any, ...]:
    """All that must not depend on what happened on the way: record, figures, last checkpoint."""
    folder = Path(run.folder)
    last = folder / f"step_{run.steps:08d}"
    files = json.loads((last / "COMPLETE").read_text())["files"]
    return metrics_of(folder), outcome(run), files


def tree(folder: Path) -> dict[str, str]:
    """Every file of a folder → its hash, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def elsewhere(run: Run, folder: Path, **changes: Any) -> Run:
    return dataclasses.replace(run, folder=str(folder), **changes)


def last_step(run: Run) -> int:
    """The last one in the record, 0 where there is none."""
    record = Path(run.folder) / "metrics.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    return next((json.loads(line)["step"] for line in reversed(lines) if line.endswith("}")), 0)


def saved_step(run: Run) -> int:
    """That of the newest checkpoint, which must be whole; 0 where there is none."""
    newest = newest_complete(Path(run.folder))
    if newest is None:
        return 0
    newest.verify(World())
    return newest.step


def _rank(
    run: Run, rank: int, size: int, port: int, log: Path, hook: Callable[[], None] | None
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    if hook is not None:
        hook()
    world = init_distributed(timeout_s=60.0)
    try:
        train(run, world)
    finally:
        world.shutdown()
