"""How the rows of a step are split into micro-batches changes neither loss nor weights."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import STEP_ROWS, Run, make_corpus, metrics_of, run_ranks

from mgpt.train.step_folder import export_weights

LR = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulation")
    corpus = make_corpus(folder / "corpus")

    def run(name: str, rows: int, recompute: str = "none") -> Run:
        return Run(corpus, str(folder / name), steps=6, micro_rows=rows, lr=LR, recompute=recompute)

    run_ranks([run(str(rows), rows) for rows in (1, 2, STEP_ROWS)])
    run_ranks([run("recomputed", 2, recompute="full")])
    return folder


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_do_not_change_the_loss(folder: Path, rows: int) -> None:
    want, got = ([row["loss"] for row in metrics_of(folder / str(n))] for n in (STEP_ROWS, rows))
    assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_do_not_change_the_weights(folder: Path, rows: int) -> None:
    want, got = (export_weights(folder / str(n) / "step_00000003") for n in (STEP_ROWS, rows))
    for name, weight in want.items():
        torch.testing.assert_close(got[name], weight, atol=0.05 * LR, rtol=0)


def test_recomputation_changes_no_bit(folder: Path) -> None:
    assert metrics_of(folder / "recomputed") == metrics_of(folder / "2")
