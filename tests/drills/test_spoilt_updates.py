"""Faults of one rank or of some rows, and what is left of them in the end: next to nothing.

Values that are not numbers on one rank, gradients ten times too large, and rows whose loss is ten
times too high, one after another in one training: no such update is made, and the loss ends near
that of a training without faults: within 1 % of what training has brought it down by, 2 % in the
short form. (600 steps learn this corpus of 36 samples by heart; what is left then is so little
that a share of it says nothing.) 100 steps in the short form, 600 in the long one (`-m long`), of
one process and of two ranks.
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


@pytest.mark.parametrize(
    ("backend", "size", "steps", "near"),
    [
        ("single", 1, 100, 0.02),
        pytest.param("single", 1, 600, 0.01, marks=pytest.mark.long),
        pytest.param("fsdp2", 2, 600, 0.01, marks=pytest.mark.long),
    ],
)
def test_no_update_is_polluted(
    tmp_path: Path, backend: str, size: int, steps: int, near: float
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    clean = Run(
        corpus,
        str(tmp_path / "clean"),
        backend,
        steps=steps,
        save_every=20,
        micro_rows=3,
        schedule="cosine",
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
    run_ranks([clean, skips, goes_back], size)

    assert all(row["updated"] for row in metrics_of(clean.folder))
    assert not any(row["spike"] for row in metrics_of(clean.folder)), "no false alarm"
    left_out = [row["step"] - 1 for row in metrics_of(skips.folder) if not row["updated"]]
    assert left_out == sorted({40, 50, 60, steps // 2 + 5, 70, steps - 25})
    rows = metrics_of(goes_back.folder)
    assert rows[-1]["rollbacks"] == 3 and not any(row["spike"] for row in rows)
    assert len(rows) == steps
    losses = {kind: last_loss(tmp_path / kind) for kind in ("clean", "skip", "rollback")}
    print(json.dumps(losses))
    way_down = metrics_of(clean.folder)[0]["loss"] - losses["clean"]
    for loss in losses.values():
        assert loss == pytest.approx(losses["clean"], abs=near * way_down)
