"""Updates that are not made, and rollbacks, in whole runs: bit for bit what they should be.

The long form (`-m long`) adds zero3, and rollbacks of two ranks.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import Run, make_corpus, metrics_of, run_ranks

from mgpt.errors import TrainingError

BACKENDS = {"single": 1, "fsdp2": 2, "zero3": 2}
WATCH = {"spike_window": 4, "pass_steps": 2}
LEAP_STEP = 7  # the loader's step whose rows make the loss leap


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """All pieces of weights and moments of a checkpoint, by file and name."""
    files = sorted((folder / f"step_{step:08d}" / "state").glob("*.safetensors"))
    return {f"{file.name}/{name}": t for file in files for name, t in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys() and one
    return all(torch.equal(one[name], other[name]) for name in one)


def saved(folder: Path, step: int, name: str) -> Any:
    return json.loads((folder / f"step_{step:08d}" / name).read_text())


@pytest.fixture(
    scope="module", params=["single", "fsdp2", pytest.param("zero3", marks=pytest.mark.long)]
)
def left_out(request: pytest.FixtureRequest, corpus: str, tmp_path_factory: Any) -> Path:
    """Runs in which the update of one step, 2 or 6, must not be made."""
    folder = tmp_path_factory.mktemp(request.param)

    def run(kind: str, **settings: Any) -> Run:
        return Run(corpus, str(folder / kind), request.param, save_every=1, dropout=0.1, **settings)

    skips = {**WATCH, "on_spike": "skip"}
    runs = [
        run("gradient", steps=2, poison=(1,)),
        run("loss", steps=2, poison_loss=(1,)),
        run("high_loss", steps=6, leaps=((5, 10.0, 1.0),), guard=skips),
        run("high_norm", steps=6, leaps=((5, 1.0, 10.0),), guard=skips),
        run("only_warned", steps=6, leaps=((5, 10.0, 10.0),), guard=WATCH),
    ]
    run_ranks(runs, BACKENDS[request.param])
    return folder


@pytest.mark.parametrize(
    ("kind", "step"), [("gradient", 2), ("loss", 2), ("high_loss", 6), ("high_norm", 6)]
)
def test_nothing_is_touched(left_out: Path, kind: str, step: int) -> None:
    folder = left_out / kind
    assert same(state(folder, step - 1), state(folder, step)), "weights and moments"
    assert step == 2 or not same(state(folder, step - 2), state(folder, step - 1))
    assert saved(folder, step, "state/updates.json") == saved(
        folder, step - 1, "state/updates.json"
    )
    rows = metrics_of(folder)
    assert [row["updated"] for row in rows] == [1] * (step - 1) + [0]
    assert [row["skipped"] for row in rows] == [0] * (step - 1) + [1]
    assert [row["spike"] for row in rows][-1] == (step == 6)
    assert saved(folder, step, "loader.json")["step"] == step, "its rows count as read"
    assert rows[-1]["documents"] > rows[-2]["documents"]


def test_a_leap_that_is_only_warned_of_is_trained(left_out: Path) -> None:
    folder = left_out / "only_warned"
    assert not same(state(folder, 5), state(folder, 6))
    assert [row["spike"] for row in metrics_of(folder)] == [0] * 5 + [1]


@pytest.fixture(
    scope="module",
    params=["single", *(pytest.param(name, marks=pytest.mark.long) for name in ("fsdp2", "zero3"))],
)
def rolled_back(request: pytest.FixtureRequest, corpus: str, tmp_path_factory: Any) -> Path:
    """One run rolls back undisturbed; one is killed after its rollback, and goes on; one passes
    the same rows over from the start."""
    folder, size = tmp_path_factory.mktemp(request.param), BACKENDS[request.param]
    whole = Run(
        corpus,
        str(folder / "whole"),
        request.param,
        steps=12,
        dropout=0.1,
        leaps=((LEAP_STEP, 10.0, 10.0),),
        guard={**WATCH, "on_spike": "rollback"},
    )
    killed = dataclasses.replace(whole, folder=str(folder / "killed"))
    # Calls of the update: eight, the last of which leaps; then steps 7 and 8 again.
    with pytest.raises(AssertionError, match="-9"):
        run_ranks([dataclasses.replace(killed, die_at=10)], size)
    assert (folder / "killed" / "rollbacks.json").exists()
    warned = dataclasses.replace(whole, folder=str(folder / "warned"), guard=WATCH)
    passing = folder / "warned" / "rollbacks.json"
    passing.parent.mkdir()
    passing.write_text((folder / "killed" / "rollbacks.json").read_text())
    run_ranks([whole, killed, warned], size)
    return folder


def test_a_rollback_passes_over_the_rows_before_the_leap(rolled_back: Path) -> None:
    (entry,) = json.loads((rolled_back / "whole" / "rollbacks.json").read_text())
    assert (entry["at_step"], entry["to_step"], entry["leapt"]) == (8, 6, "loss")
    assert entry["passed"] == [6, 7]
    rows = metrics_of(rolled_back / "whole")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["rollbacks"] for row in rows] == [0] * 6 + [1] * 6
    assert all(row["updated"] and not row["spike"] for row in rows), "none polluted"
    assert saved(rolled_back / "whole", 12, "loader.json")["step"] == 14
    assert saved(rolled_back / "whole", 12, "trainer.json")["rollbacks"] == [entry]


def test_killed_after_a_rollback_is_undisturbed(rolled_back: Path) -> None:
    whole, killed = rolled_back / "whole", rolled_back / "killed"
    assert metrics_of(killed) == metrics_of(whole)
    assert same(state(killed, 12), state(whole, 12))
    assert (killed / "outcome.json").read_text() == (whole / "outcome.json").read_text()


def test_what_leapt_leaves_no_trace(rolled_back: Path) -> None:
    assert same(state(rolled_back / "warned", 12), state(rolled_back / "whole", 12))


def test_a_rollback_on_another_number_of_ranks(
    corpus: str, rolled_back: Path, tmp_path: Path
) -> None:
    step_9 = str(rolled_back / "whole" / "step_00000009")
    run_ranks([Run(corpus, str(tmp_path), steps=12, guard=WATCH, continue_from=step_9)])
    got, want = metrics_of(tmp_path), metrics_of(rolled_back / "whole")[9:]
    for key in ("documents", "trained_tokens", "tokens", "rollbacks"):
        assert [row[key] for row in got] == [row[key] for row in want]


def test_a_leap_before_the_first_checkpoint_is_skipped(corpus: str, tmp_path: Path) -> None:
    guard = {**WATCH, "on_spike": "rollback"}
    leaps = ((5, 10.0, 10.0),)
    run_ranks([Run(corpus, str(tmp_path), steps=7, save_every=7, leaps=leaps, guard=guard)])
    rows = metrics_of(tmp_path)
    assert [row["updated"] for row in rows] == [1] * 5 + [0, 1]
    assert not (tmp_path / "rollbacks.json").exists()


def test_rollbacks_have_an_end(corpus: str, tmp_path: Path) -> None:
    guard = {**WATCH, "on_spike": "rollback", "max_rollbacks": 2}
    leaps = tuple((step, 10.0, 10.0) for step in range(LEAP_STEP, 40))
    with pytest.raises(TrainingError, match=r"step 7: loss spiked to .* after 2 rollbacks"):
        run_ranks([Run(corpus, str(tmp_path), steps=12, leaps=leaps, guard=guard)])
