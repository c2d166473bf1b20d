"""The record, losses by part, and the sums of a step over the ranks."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mgpt.data.rows import Rows
from mgpt.errors import DataError
from mgpt.parallel.dist import World
from mgpt.train.metrics import LossTally, MetricsRecord, RankStep, all_reduce_step, memory_mb


class TenIds:
    """Ids 0-3 are codes, 4-6 text, 7-9 layout."""

    size, fingerprint = 10, "f" * 16

    def is_code(self, ids: np.ndarray) -> np.ndarray:
        return ids < 4

    def is_text(self, ids: np.ndarray) -> np.ndarray:
        return (ids >= 4) & (ids < 7)

    def save(self, folder: Path) -> None:
        folder.mkdir()


def record(tmp_path: Path, steps: int) -> MetricsRecord:
    made = MetricsRecord(tmp_path / "metrics.jsonl", is_main=True)
    for step in range(1, steps + 1):
        made.write({"step": step, "loss": 1.0 / step})
    return made


def test_cut_drops_what_came_after(tmp_path: Path) -> None:
    made = record(tmp_path, 5)
    made.cut(3)
    assert [row["step"] for row in made.rows()] == [1, 2, 3]
    made.write({"step": 4, "loss": 9.0})
    made.sync()
    assert made.rows()[-1] == {"step": 4, "loss": 9.0}


def test_a_line_cut_short_is_dropped(tmp_path: Path) -> None:
    made = record(tmp_path, 2)
    with open(made.path, "a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in made.rows()] == [1, 2]
    made.cut(2)
    made.write({"step": 3})
    assert [row["step"] for row in made.rows()] == [1, 2, 3]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    made = record(tmp_path, 1)
    with open(made.path, "a") as file:
        file.write("what?\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        made.rows()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    made = record(tmp_path, 0)
    made.write({"step": 1, "grad_norm": math.nan, "loss": math.inf})
    assert json.loads(made.path.read_text()) == {"step": 1, "grad_norm": None, "loss": None}


def test_what_an_earlier_attempt_still_writes_is_in_nobodys_way(tmp_path: Path) -> None:
    earlier, later = record(tmp_path, 0), MetricsRecord(tmp_path / "metrics.jsonl", is_main=True)
    earlier.cut(0)
    earlier.write({"step": 1, "loss": 1.0})
    later.cut(1)
    earlier.write({"step": 2, "loss": 7.0})
    later.write({"step": 2, "loss": 2.0})
    assert [row["loss"] for row in later.rows()] == [1.0, 2.0]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    made = MetricsRecord(tmp_path / "metrics.jsonl", is_main=False)
    made.write({"step": 1})
    made.cut(0)
    made.sync()
    assert not made.path.exists()


def test_tally_by_source_task_and_modality() -> None:
    tally = LossTally(["x", "y", "z"], ["caption", "edit", "pose"], TenIds(), torch.device("cpu"))
    rows = Rows.empty(2, 4, pad=0)
    rows.labels[:] = [[4, 5, -100, 0], [1, 9, 2, -100]]
    nll_BT = torch.tensor([[1.0, 2.0, 99.0, 4.0], [5.0, 6.0, 7.0, 99.0]])
    rows.groups[:] = [[0, 0, 0, 1], [1, 1, 1, -1]]
    rows.sources[:] = [[0, 0, 0, 2], [0, 2, 2, -1]]
    tally.add(nll_BT, rows)
    tally.add(nll_BT, rows)
    values = tally.take()
    assert LossTally.trained(values) == 12
    assert tally.figures(values) == {
        "loss/source/x": 8 / 3,
        "tokens/source/x": 6,
        "loss/source/z": 17 / 3,
        "tokens/source/z": 6,
        "loss/task/caption": 1.5,
        "tokens/task/caption": 4,
        "loss/task/edit": 5.5,
        "tokens/task/edit": 8,
        "loss/modality/text": 1.5,
        "tokens/modality/text": 4,
        "loss/modality/image": 16 / 3,
        "tokens/modality/image": 6,
        "loss/modality/layout": 6.0,
        "tokens/modality/layout": 2,
    }
    assert set(tally.take()) == {0.0}


def test_memory_is_that_of_a_process_with_torch() -> None:
    assert 50 < memory_mb(torch.device("cpu")) < 100_000


OWN = RankStep(
    nll_sum=5.0,
    z_sum=2.0,
    cells=[1.0, 4.0],
    signal=None,
    must_end=False,
    wait_s=0.25,
    own_s=0.5,
    memory_mb=300.0,
)


def reduced(steps: list[RankStep]) -> list[object]:
    """The totals that each rank gets."""
    sent: list[list[float]] = []

    def world(rank: int, answer: object) -> SimpleNamespace:
        return SimpleNamespace(rank=rank, size=len(steps), all_reduce_sum=answer)

    def send(values: list[float]) -> list[float]:
        sent.append(values)
        return values

    for rank, step in enumerate(steps):
        all_reduce_step(world(rank, send), step)
    total = [sum(values) for values in zip(*sent, strict=True)]
    return [all_reduce_step(world(rank, lambda _: list(total)), s) for rank, s in enumerate(steps)]


def test_the_step_of_one_rank() -> None:
    step = all_reduce_step(World(), OWN)
    assert (step.nll_sum, step.z_sum, step.cells) == (5.0, 2.0, [1.0, 4.0])
    assert (step.wait_s, step.own_s, step.memory_mb) == ([0.25], [0.5], [300.0])
    assert step.signal is None and not step.must_end


def test_three_ranks_get_the_same_totals() -> None:
    steps = [
        OWN,
        dataclasses.replace(OWN, nll_sum=7.0, signal="SIGUSR1", own_s=0.75),
        dataclasses.replace(OWN, cells=[0.0, 1.0], must_end=True, wait_s=1.5),
    ]
    totals = reduced(steps)
    assert totals[0] == totals[1] == totals[2]
    assert totals[0].nll_sum == 17.0 and totals[0].cells == [2.0, 9.0]
    assert totals[0].own_s == [0.5, 0.75, 0.5] and totals[0].wait_s == [0.25, 0.25, 1.5]
    assert totals[0].signal == "SIGUSR1" and totals[0].must_end


def test_a_rank_that_is_not_finite_affects_its_sum_alone() -> None:
    totals = reduced([OWN, dataclasses.replace(OWN, nll_sum=float("nan"))])
    assert totals[0].nll_sum != totals[0].nll_sum
    assert totals[0].z_sum == 4.0 and totals[0].own_s == [0.5, 0.5] and totals[0].signal is None
