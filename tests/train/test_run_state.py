"""What a run has accumulated: skipped steps, rollbacks, changes, and what cannot be resumed."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mgpt.errors import CheckpointError, TrainingError, VocabularyError
from mgpt.parallel.dist import World
from mgpt.train.guard import GuardConfig
from mgpt.train.run_state import Change, RunState, SkippedSteps, resumable_state


def state(folder: Path, **guard: Any) -> RunState:
    return RunState(GuardConfig(**guard), folder, World())


def test_steps_are_counted_over_what_is_left() -> None:
    rng = random.Random(0)
    for _ in range(50):
        skipped, gone = SkippedSteps(), set()
        for _ in range(rng.randrange(6)):
            more = set(rng.sample(range(60), rng.randrange(1, 8)))
            gone |= more
            skipped = skipped.plus(sorted(more, reverse=True))
        left = [step for step in range(200) if step not in gone]
        assert [skipped.loader_step(step) for step in range(100)] == left[:100]


def test_the_rows_before_a_spike_are_skipped(tmp_path: Path) -> None:
    run = state(tmp_path, pass_steps=3)
    run.roll_back(at_step=20, to_step=10, spiked="loss", value=9.0)
    assert run.skipped_steps.ranges == ((17, 19),)
    # Step 18 now reads what was the 21st; it and the one before it go, those before 17 are gone.
    run.roll_back(at_step=19, to_step=10, spiked="grad_norm", value=5.0)
    assert run.skipped_steps.ranges == ((16, 21),)
    run.roll_back(at_step=31, to_step=30, spiked="loss", value=8.0)
    assert run.skipped_steps.ranges == ((16, 21), (36, 36)), "nothing before the checkpoint"


def test_a_rollback_outlives_a_killed_run(tmp_path: Path) -> None:
    first = state(tmp_path, pass_steps=3)
    first.roll_back(20, 10, "loss", 9.0)
    again = state(tmp_path)
    assert again.state() == first.state() and again.skipped_steps == first.skipped_steps
    elsewhere = state(tmp_path / "copy")
    elsewhere.load(json.loads(json.dumps(first.state())))
    assert elsewhere.skipped_steps == first.skipped_steps
    first.roll_back(20, 10, "loss", 9.0)
    ahead = state(tmp_path)
    ahead.load(elsewhere.state())
    assert ahead.skipped_steps == first.skipped_steps, "the file is ahead of the checkpoint"


def test_a_run_rolls_back_only_so_often(tmp_path: Path) -> None:
    run = state(tmp_path, max_rollbacks=2, pass_steps=4)
    told = run.roll_back(at_step=20, to_step=10, spiked="loss", value=9.0)
    assert told.startswith("step 20: loss spiked to 9; back to step 10") and "16 to 19" in told
    assert run.loader_step(15) == 15 and run.loader_step(16) == 20
    run.roll_back(at_step=12, to_step=10, spiked="loss", value=9.0)
    assert run.figures()["rollbacks"] == 2
    with pytest.raises(TrainingError, match="after 2 rollbacks"):
        run.roll_back(at_step=11, to_step=10, spiked="loss", value=9.0)
    kept = state(tmp_path / "copy")
    kept.load(json.loads(json.dumps(run.state())))
    assert [kept.loader_step(n) for n in range(30)] == [run.loader_step(n) for n in range(30)]


def test_changes_are_listed_oldest_first(tmp_path: Path) -> None:
    run, fresh = state(tmp_path), {"totals": {"documents": 0, "trained_tokens": 0, "tokens": 0}}
    assert "changes" not in run.state() and not (tmp_path / "changes.json").exists()
    run.load(fresh, [Change(6, "optim.lr", 1e-4, 5e-5)])
    run.load(json.loads(json.dumps(run.state())), [Change(9, "steps", 10, 20)])
    listed = json.loads((tmp_path / "changes.json").read_text())
    assert listed == run.state()["changes"]
    assert [(one["after_step"], one["setting"]) for one in listed] == [
        (6, "optim.lr"),
        (9, "steps"),
    ]


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    vocab: Any = SimpleNamespace(fingerprint="a" * 16)
    stored = {"vocabulary": "a" * 16, "optimizer": "sgd"}
    saved: Any = SimpleNamespace(path=tmp_path, step=5, trainer_state=lambda: stored)
    assert resumable_state(saved, vocab, "sgd", steps=5) == stored
    with pytest.raises(CheckpointError, match=r"trained with optim.kind=sgd, this run has muon"):
        resumable_state(saved, vocab, "muon", steps=5)
    with pytest.raises(TrainingError, match="5 steps behind it and steps=4"):
        resumable_state(saved, vocab, "sgd", steps=4)
    stored["vocabulary"] = "b" * 16
    with pytest.raises(VocabularyError, match=r"vocabulary b{16}, this run has a{16}"):
        resumable_state(saved, vocab, "sgd", steps=5)
    del stored["optimizer"]
    stored["vocabulary"] = "a" * 16
    assert resumable_state(saved, vocab, "adamw", steps=5), "older checkpoints are AdamW's"
