"""A signal to stop, whenever it comes, ends a run in order, with all that was done saved."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from engine_runs import Attempt, elsewhere, finish, last_step, outcome, result, saved_step
from rank_runs import Run, make_corpus, run_ranks

from mgpt.data.loader import RowLoader
from mgpt.parallel.single import SingleBackend
from mgpt.parallel.snapshot import Snapshot
from mgpt.train.run_folder import RunFolder
from mgpt.train.validate import HeldOut

STEPS, RANKS = 24, 2
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Where a run spends its time: a method, and the call of it in which the signal comes.
PLACES: dict[str, tuple[type, str, int]] = {
    "rows": (RowLoader, "read_step", 4),
    "pass": (SingleBackend, "forward_backward", 7),
    "update": (SingleBackend, "step", 4),
    "validation": (HeldOut, "validate", 1),
    "snapshot": (SingleBackend, "snapshot", 1),
    "write": (Snapshot, "write", 1),
    "publication": (RunFolder, "publish", 1),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def short(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = str(tmp_path_factory.mktemp("short"))
    run = Run(corpus, folder, steps=6, save_every=3, validate_every=2, dropout=0.1)
    run_ranks([run])
    return run


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_comes(
    short: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    owner, name, call = PLACES[place]
    real, calls = getattr(owner, name), 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), SIGNALS[len(place) % 2])
        return real(*args, **options)

    run = elsewhere(short, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        run_ranks([run])
    assert outcome(run)["kind"] == "Interrupted"
    assert saved_step(run) == outcome(run)["step"] == last_step(run) < run.steps
    run_ranks([run])
    assert result(run) == result(short)


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two ranks that nobody disturbs."""
    folder = str(tmp_path_factory.mktemp("whole") / "run")
    run = Run(
        corpus, folder, backend="fsdp2", steps=STEPS, save_every=2, validate_every=3, dropout=0.1
    )
    finish(run, RANKS)
    return run


def stopped_once(run: Run, rng: random.Random) -> bool:
    """One attempt, told to stop somewhere on its way; whether it did."""
    until = saved_step(run) + rng.randrange(0, 6)
    with Attempt(run, RANKS) as attempt:
        begun = attempt.wait_for(lambda: last_step(run) > until)
        time.sleep(rng.uniform(0.0, 0.1))
        # Slurm and torchrun tell all ranks; a person with kill(1) may tell one.
        attempt.send(rng.choice(SIGNALS), None if rng.random() < 0.5 else [rng.randrange(RANKS)])
        codes = attempt.wait()
        if saved_step(run) < run.steps:
            assert begun and codes == [0] * RANKS, f"{codes}\n{attempt.logs()}"
            assert outcome(run)["kind"] == "Interrupted", attempt.logs()
            assert saved_step(run) == outcome(run)["step"] == last_step(run)
            return True
    return False  # it came after the last step, and there was nothing to stop


def drill(whole: Run, wanted: int) -> None:
    rng, began, stops, rounds = random.Random(1), time.monotonic(), 0, 0
    while stops < wanted:
        run = elsewhere(whole, Path(whole.folder).with_name(f"round-{rounds}"))
        while stops < wanted and stopped_once(run, rng):
            stops += 1
        finish(run, RANKS)
        assert result(run) == result(whole)
        rounds += 1
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"drill": "signals", "stops": stops, "runs": rounds, "seconds": seconds}))


def test_two_stops_change_no_byte(whole: Run) -> None:
    drill(whole, 2)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_stops_change_no_byte(whole: Run) -> None:
    drill(whole, 100)
