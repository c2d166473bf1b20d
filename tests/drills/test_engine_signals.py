"""A signal to stop, wherever it comes, ends a run in order, with all that was done saved.

At each kind of work once, in one process; `test_stops.py` has random moments of real ranks.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from engine_runs import elsewhere, last_step, outcome, result, saved_step
from rank_runs import Run, make_corpus, run_ranks

from mgpt.data.loader import RowLoader
from mgpt.parallel.single import SingleBackend
from mgpt.parallel.snapshot import Snapshot
from mgpt.train.run_folder import RunFolder
from mgpt.train.validate import HeldOut

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
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
            os.kill(os.getpid(), SIGNALS[len(place) % 3])
        return real(*args, **options)

    run = elsewhere(short, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        run_ranks([run])
    assert outcome(run)["kind"] == "Interrupted"
    assert saved_step(run) == outcome(run)["step"] == last_step(run) < run.steps
    run_ranks([run])
    assert result(run) == result(short)
