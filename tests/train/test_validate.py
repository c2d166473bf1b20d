"""Validation: the same figure however the rows are shared out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mgpt.data.documents import IGNORED
from mgpt.data.loader import Rows
from mgpt.parallel.backend import MicroBatch, MicroSums
from mgpt.parallel.dist import World
from mgpt.train.metrics import LossTally
from mgpt.train.validate import HeldOut

VOCABULARY = SimpleNamespace(size=10, is_code=lambda ids: ids < 4, is_text=lambda ids: ids > 6)
NUM_ROWS, ROW_TOKENS = 5, 6


def rows() -> Rows:
    rng = np.random.default_rng(0)
    shape = (NUM_ROWS, ROW_TOKENS)
    labels = rng.integers(0, 10, shape)
    labels[rng.random(shape) < 0.3] = IGNORED
    positions = np.tile(np.arange(ROW_TOKENS), (NUM_ROWS, 1))
    groups = rng.integers(0, 2, shape).astype(np.int16)
    sources = rng.integers(0, 3, shape).astype(np.int16)
    return Rows(rng.integers(0, 10, shape), labels, positions, groups, sources)


def tally() -> LossTally:
    return LossTally(["x", "y", "z"], ["a", "b"], VOCABULARY, torch.device("cpu"))


class LabelLoss:
    """A backend whose loss at a position is its label, one rank of several."""

    device = torch.device("cpu")
    has_averages = False

    def __init__(self, rank: int, size: int) -> None:
        self.dp_rank, self.dp_size, self.batches = rank, size, 0

    def evaluate(self, batch: MicroBatch) -> MicroSums:
        self.batches += 1
        nll_BT = batch.labels_BT.clamp(min=0).float()
        return MicroSums(nll_BT.sum(), nll_BT.sum(), nll_BT)


@pytest.mark.parametrize("micro_rows", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_row_counts_once(size: int, micro_rows: int) -> None:
    parts, batches = [], []

    def keep(values: list[float]) -> list[float]:
        parts.append(values)
        return values

    for rank in range(size):
        backend, held_out = LabelLoss(rank, size), HeldOut(rows(), micro_rows, tally())
        held_out.validate(backend, SimpleNamespace(all_reduce_sum=keep))
        batches.append(backend.batches)
    assert len(set(batches)) == 1, "a rank with fewer batches would hang the others"

    figures = tally().figures(np.sum(parts, axis=0).tolist())
    labels = rows().labels
    for kind, names, places in (("task", "ab", rows().groups), ("source", "xyz", rows().sources)):
        for index, name in enumerate(names):
            want = labels[(labels != IGNORED) & (places == index)]
            assert figures[f"loss/{kind}/{name}"] == pytest.approx(want.mean())
            assert figures[f"tokens/{kind}/{name}"] == len(want)


def test_figures() -> None:
    figures = HeldOut(rows(), 2, tally()).validate(LabelLoss(0, 1), World())
    labels = rows().labels
    assert figures["val/loss"] == pytest.approx(labels[labels != IGNORED].mean())
    assert all(name.startswith("val/loss") for name in figures)
    assert {"val/loss/task/a", "val/loss/source/z", "val/loss/modality/text"} <= figures.keys()
