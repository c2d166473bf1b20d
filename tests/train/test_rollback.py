"""Rows that are passed over, and the list of rollbacks on the disk."""

import json
import random
from pathlib import Path

import pytest

from mgpt.errors import TrainingError
from mgpt.parallel.dist import World
from mgpt.train.guard import GuardConfig
from mgpt.train.rollback import PassedRows, Rollbacks
from mgpt.train.run_state import RunState


def test_steps_are_counted_over_what_is_left() -> None:
    rng = random.Random(0)
    for _ in range(50):
        passed, gone = PassedRows(()), set()
        for _ in range(rng.randrange(6)):
            more = set(rng.sample(range(60), rng.randrange(1, 8)))
            gone |= more
            passed = passed.passing(sorted(more, reverse=True))
        left = [step for step in range(200) if step not in gone]
        assert [passed.loader_step(step) for step in range(100)] == left[:100]


def test_the_rows_before_a_leap_are_passed_over(tmp_path: Path) -> None:
    rollbacks = Rollbacks(tmp_path, World())
    rollbacks.add(at_step=20, to_step=10, leapt="loss", value=9.0, steps=3)
    assert rollbacks.rows.stretches == ((17, 19),)
    # Step 18 now reads what was the 21st; it and the one before it go, those before 17 are gone.
    rollbacks.add(at_step=19, to_step=10, leapt="grad_norm", value=5.0, steps=3)
    assert rollbacks.rows.stretches == ((16, 21),)
    rollbacks.add(at_step=31, to_step=30, leapt="loss", value=8.0, steps=3)
    assert rollbacks.rows.stretches == ((16, 21), (36, 36)), "nothing before the checkpoint"


def test_a_rollback_outlives_a_killed_run(tmp_path: Path) -> None:
    first = Rollbacks(tmp_path, World())
    first.add(20, 10, "loss", 9.0, 3)
    again = Rollbacks(tmp_path, World())
    assert again.state() == first.state() and again.rows == first.rows
    elsewhere = Rollbacks(tmp_path / "copy", World(), json.loads(json.dumps(first.state())))
    assert elsewhere.rows == first.rows and len(elsewhere) == 1
    first.add(20, 10, "loss", 9.0, 3)
    assert Rollbacks(tmp_path, World(), elsewhere.state()).rows == first.rows


def test_a_run_goes_back_only_so_often(tmp_path: Path) -> None:
    state = RunState(GuardConfig(max_rollbacks=2, pass_steps=4), tmp_path, World())
    words = state.go_back(at_step=20, to_step=10, leapt="loss", value=9.0)
    assert words.startswith("step 20: loss leapt to 9; back to step 10") and "16 to 19" in words
    assert state.loader_step(15) == 15 and state.loader_step(16) == 20
    state.go_back(at_step=12, to_step=10, leapt="loss", value=9.0)
    assert state.figures()["rollbacks"] == 2
    with pytest.raises(TrainingError, match="after 2 rollbacks"):
        state.go_back(at_step=11, to_step=10, leapt="loss", value=9.0)
    kept = RunState(GuardConfig(), tmp_path / "copy", World())
    kept.load(json.loads(json.dumps(state.state())))
    assert [kept.loader_step(step) for step in range(30)] == [
        state.loader_step(step) for step in range(30)
    ]
