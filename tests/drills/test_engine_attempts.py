"""Attempts at one training run: killed at random moments, two of them at once, one that wakes late.

Whatever happened on the way, the run ends with the record, the figures and the bytes of one that
nobody disturbed.
"""

import functools
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from engine_runs import END_S, Attempt, elsewhere, finish, last_step, result, saved_step, tree
from rank_runs import Run, make_corpus

from mgpt.data.loader import RowLoader, StepRows
from mgpt.parallel.snapshot import FileSum, Snapshot
from mgpt.train import run_folder

pytestmark = pytest.mark.timeout(900)

STEPS, RANKS = 12, 2
SUPERSEDED = "this one ends without saving"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbs."""
    root = tmp_path_factory.mktemp("attempts")
    run = Run(
        make_corpus(root / "corpus"),
        str(root / "whole"),
        backend="fsdp2",
        steps=STEPS,
        save_every=2,
        validate_every=5,
        dropout=0.1,
    )
    finish(run, RANKS)
    return run


# ------------------------------------------------------------------ kills at random moments


def killed_once(run: Run, rng: random.Random) -> dict[str, bool] | None:
    """One attempt, killed somewhere on its way; None where it came to its end."""
    folder, from_step = Path(run.folder), saved_step(run)
    until = from_step + rng.randrange(0, 5)
    with Attempt(run, RANKS) as attempt:
        # Somewhere in the start, or after a random step.
        if until == from_step:
            time.sleep(rng.uniform(0.0, 3.0))
        else:
            attempt.wait_for(lambda: last_step(run) > until)
        time.sleep(rng.uniform(0.0, 0.15))
        in_a_save = any(folder.glob(".step_*"))
        one = rng.random() < 0.5
        attempt.send(signal.SIGKILL, [rng.randrange(RANKS)] if one else None)
        codes = attempt.wait()
    if -signal.SIGKILL not in codes:
        assert codes == [0] * RANKS, attempt.logs()
        return None
    return {"one": one, "in_a_save": in_a_save}


def drill_kills(whole: Run, wanted: int) -> None:
    rng, began, rounds = random.Random(0), time.monotonic(), 0
    kills: list[dict[str, bool]] = []
    while len(kills) < wanted:
        run = elsewhere(whole, Path(whole.folder).with_name(f"round-{rounds}"))
        while len(kills) < wanted:
            killed = killed_once(run, rng)
            if killed is None:
                break
            kills.append(killed)
        finish(run, RANKS)
        assert result(run) == result(whole)
        assert not list(Path(run.folder).glob(".step_*"))
        rounds += 1
    figures = {
        "drill": "kills",
        "kills": len(kills),
        "of_one_rank": sum(kill["one"] for kill in kills),
        "in_a_save": sum(kill["in_a_save"] for kill in kills),
        "runs": rounds,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))


def test_a_kill_changes_no_byte(whole: Run) -> None:
    drill_kills(whole, 1)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_fifty_kills_change_no_byte(whole: Run) -> None:
    drill_kills(whole, 50)


# ------------------------------------------------------------------ two attempts at once


def waiting_for_a_later_start(folder: Path) -> None:
    """After its sixth step, of which a checkpoint is made."""
    read_step = RowLoader.read_step

    def read(self: RowLoader, step: int, *share: int) -> StepRows:
        deadline = time.monotonic() + END_S
        while step >= 6 and not (folder / "attempts" / "2").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return read_step(self, step, *share)

    RowLoader.read_step = read  # type: ignore[method-assign]


def slow_to_write() -> None:
    """A disk that takes its time for the third save."""
    write, saves = Snapshot.write, 0

    def slowly(self: Snapshot, folder: Path) -> dict[str, FileSum]:
        nonlocal saves
        saves += 1
        sums = write(self, folder)
        time.sleep(2.0 if saves == 3 else 0.0)
        return sums

    Snapshot.write = slowly  # type: ignore[method-assign]


def slow_to_complete() -> None:
    """Between the third save's look for a later start and its last file."""
    seal, saves = run_folder.seal, 0

    def slowly(*args: Any) -> bytes:
        nonlocal saves
        saves += 1
        time.sleep(2.0 if saves == 3 else 0.0)
        return seal(*args)

    run_folder.seal = slowly


def test_the_earlier_one_ends(whole: Run) -> None:
    run = elsewhere(whole, Path(whole.folder).with_name("both"))
    hook = functools.partial(waiting_for_a_later_start, Path(run.folder))
    with Attempt(run, RANKS, hook) as earlier:
        assert earlier.wait_for(lambda: saved_step(run) >= 2), earlier.logs()
        finish(run, RANKS)
        codes = earlier.wait()
        assert 0 not in codes and min(codes) > 0, codes  # type: ignore[type-var]
        assert SUPERSEDED in earlier.logs()
    assert result(run) == result(whole)


@pytest.mark.parametrize(
    "slow", [pytest.param(slow_to_write, marks=pytest.mark.long), slow_to_complete]
)
def test_one_that_sleeps_in_a_save_and_wakes(whole: Run, slow: Callable[[], None]) -> None:
    run = elsewhere(whole, Path(whole.folder).with_name(slow.__name__))
    unfinished = Path(run.folder) / ".step_00000006.attempt_1"
    written = unfinished / (".COMPLETE" if slow is slow_to_complete else "state")
    with Attempt(run, RANKS, hook=slow) as earlier:
        assert earlier.wait_for(written.exists), earlier.logs()
        time.sleep(0.2)
        earlier.send(signal.SIGSTOP)
        finish(run, RANKS)
        assert result(run) == result(whole)
        before = tree(Path(run.folder))
        earlier.send(signal.SIGCONT)
        codes = earlier.wait()
        assert 0 not in codes and min(codes) > 0, codes  # type: ignore[type-var]
        assert SUPERSEDED in earlier.logs()
        assert tree(Path(run.folder)) == before
