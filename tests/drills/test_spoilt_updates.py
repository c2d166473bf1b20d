"""Faults of one rank or of some rows, and what is left of them in the end: next to nothing.

Values that are not numbers on one rank, gradients ten times too large, and a row whose loss is ten
times too high, one after another in one training of two ranks: no such update is made, and the loss
on held-out rows ends within 1 % of a training without faults. 120 steps in the short form, 600 in
the long one (`-m long`).
"""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import Run, make_corpus, metrics_of, run_ranks

WINDOW = 32


def last_loss(folder: Path) -> float:
    return json.loads((folder / "outcome.json").read_text())["metrics"]["val/loss"]


@pytest.mark.parametrize("steps", [120, pytest.param(600, marks=pytest.mark.long)])
def test_no_update_is_polluted(tmp_path: Path, steps: int) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    clean = Run(
        corpus,
        str(tmp_path / "clean"),
        "fsdp2",
        steps=steps,
        save_every=20,
        micro_rows=3,
        guard={"spike_window": WINDOW},
    )
    faults = {
        "poison": (40, steps // 2 + 5),
        "poison_loss": (50,),
        "leaps": ((60, 1.0, 10.0), (70, 10.0, 10.0), (steps - 25, 1.0, 10.0)),
    }
    skips = dataclasses.replace(
        clean,
        folder=str(tmp_path / "skip"),
        guard={"spike_window": WINDOW, "on_spike": "skip"},
        **faults,
    )
    goes_back = dataclasses.replace(
        skips,
        folder=str(tmp_path / "rollback"),
        guard={"spike_window": WINDOW, "on_spike": "rollback", "pass_steps": 2},
    )
    run_ranks([clean, skips, goes_back], 2)

    assert all(row["updated"] for row in metrics_of(clean.folder))
    assert not any(row["spike"] for row in metrics_of(clean.folder)), "no false alarm"
    left_out = [row["step"] - 1 for row in metrics_of(skips.folder) if not row["updated"]]
    assert left_out == sorted({40, 50, 60, steps // 2 + 5, 70, steps - 25})
    rows = metrics_of(goes_back.folder)
    assert rows[-1]["rollbacks"] == 3 and not any(row["spike"] for row in rows)
    assert len(rows) == steps
    losses = {run: last_loss(Path(run.folder)) for run in (clean, skips, goes_back)}
    print(json.dumps({Path(run.folder).name: round(loss, 5) for run, loss in losses.items()}))
    for loss in losses.values():
        assert loss == pytest.approx(losses[clean], rel=0.01)
