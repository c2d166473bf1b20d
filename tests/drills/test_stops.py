"""Ranks under torch's launcher that hang, are signalled, or are slow: real processes and signals.

A rank that is stopped, loops or waits for a lock for ever: the job ends within the limit with the
stacks of every rank, and no process stays. A signal to one rank, or to the launcher alone: all
ranks save and end in order. SIGUSR1 at random moments, also within saves and validations: each time
a complete checkpoint, and in the end the weights of an undisturbed run. A rank that sleeps is named
within 50 steps, and none in 1,000 steps without a reason, on a machine that does nothing else.

The short form signals the launcher once and runs at 4 random moments; the long one (`-m long`) does
the rest, and 100 moments.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import Run, make_corpus, metrics_of, run_ranks

from mgpt.parallel.dist import World
from mgpt.train.step_folder import complete_folders, newest_complete

LAUNCHER = """
import json, sys
from mgpt.launching import processes
from mgpt.errors import MgptError
processes.WORKER_MODULE = "rank_runs"
try:
    processes.run_workers(sys.argv[1:], procs=2, threads=1)
except processes.Interrupted as error:
    print("Interrupted", error)
except MgptError as error:
    print(type(error).__name__, error)
"""
RANK_RUNS = Path(__file__).parents[1] / "parallel"
PATIENCE_S = 200.0
LONG_S = 3000.0
HANG_S = 15.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def launch(run: Run) -> subprocess.Popen[str]:
    """Two ranks under the launcher, which leads a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{RANK_RUNS}:{RANK_RUNS.parents[1]}"}
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, json.dumps([dataclasses.asdict(run)])],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(folder: Path) -> dict[int, int]:
    """Process ids of the ranks that work in a folder, by rank."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [word[5:] for word in variables if word.startswith(b"RANK=")]
        if str(folder).encode() in command and rank:
            found[int(rank[0])] = int(process.name)
    return found


def await_steps(folder: Path, steps: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    record = folder / "metrics.jsonl"
    while not record.exists() or record.read_text().count("\n") < steps:
        assert time.monotonic() < deadline, "no steps are made"
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("how", ["stop", "loop", "lock"])
def test_a_hung_rank_ends_the_job(corpus: str, tmp_path: Path, how: str) -> None:
    run = Run(corpus, str(tmp_path), "fsdp2", steps=50, hang=(5, how), guard={"hang_s": HANG_S})
    job = launch(run)
    out, err = job.communicate(timeout=PATIENCE_S)
    assert "TrainingError rank" in out, out + err
    assert not ranks_of(tmp_path), "orphans"
    assert "rank 0 (process" in err and "has not finished step 5 within 15 s" in err
    assert "rank 1 (process" in err and "in _hang" in err, "the stack of the rank that hung"
    assert [folder.step for folder in complete_folders(tmp_path)] == [3]


@pytest.mark.parametrize("to", [pytest.param("rank 1", marks=pytest.mark.long), "launcher"])
@pytest.mark.parametrize("name", ["SIGUSR1", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_a_signal_to_one_ends_all_in_order(corpus: str, tmp_path: Path, to: str, name: str) -> None:
    job = launch(Run(corpus, str(tmp_path), "fsdp2", steps=100_000, save_every=100_000))
    await_steps(tmp_path, 3)
    target = job.pid if to == "launcher" else ranks_of(tmp_path)[1]
    os.kill(target, signal.Signals[name])
    out, err = job.communicate(timeout=PATIENCE_S)
    assert f"stopped by {'a signal' if to == 'rank 1' else name}; run the same" in out, out + err
    assert not ranks_of(tmp_path), "orphans"
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    newest = newest_complete(tmp_path)
    assert newest is not None and outcome == {
        "kind": "Interrupted",
        "step": newest.step,
        "signal": name,
    }
    newest.verify(World())


@pytest.mark.timeout(LONG_S + 60)
@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.long)])
def test_signals_at_random_moments(corpus: str, tmp_path: Path, times: int) -> None:
    """Saves and validations take most of the time of these runs."""
    rng = random.Random(times)
    steps = 4 * times
    whole = Run(
        corpus, str(tmp_path / "whole"), "fsdp2", steps=steps, save_every=2, validate_every=3
    )
    often = dataclasses.replace(whole, folder=str(tmp_path / "often"))
    starts = [
        dataclasses.replace(often, signal_after=(rng.uniform(0.0, 0.5), rng.randrange(2)))
        for _ in range(times)
    ]
    run_ranks([whole, *starts, often], 2, timeout_s=LONG_S)
    ends = [json.loads(line) for line in (tmp_path / "often" / "ends.jsonl").open()]
    assert len(ends) == times + 1
    assert all(end["step"] == end["newest"] for end in ends)
    assert not list((tmp_path / "often").glob("*.damaged")), "each start verifies the newest"
    assert (tmp_path / "often" / "outcome.json").read_text() == (
        tmp_path / "whole" / "outcome.json"
    ).read_text()
    assert metrics_of(tmp_path / "often") == metrics_of(tmp_path / "whole")
    stopped = sum(end["kind"] == "Interrupted" for end in ends)
    print(json.dumps({"signals": times, "ended in order": len(ends) - 1, "stopped": stopped}))


def slow_ranks(folder: Path) -> list[int | None]:
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row).get("slow_rank") for row in rows]


@pytest.mark.long
def test_a_sleeping_rank_is_named(corpus: str, tmp_path: Path) -> None:
    run = Run(corpus, str(tmp_path), "fsdp2", steps=50, save_every=50, micro_rows=3, sleep_s=0.3)
    run_ranks([run], 2)
    assert set(slow_ranks(tmp_path)[40:]) == {1}


@pytest.mark.long
@pytest.mark.timeout(LONG_S + 60)
def test_no_rank_is_named_without_a_reason(corpus: str, tmp_path: Path) -> None:
    run = Run(corpus, str(tmp_path), "fsdp2", steps=1_000, save_every=1_000)
    run_ranks([run], 2, timeout_s=LONG_S)
    assert set(slow_ranks(tmp_path)) == {None}
