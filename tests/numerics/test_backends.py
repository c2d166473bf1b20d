"""single = fsdp2 = zero3: the same training, whoever shards it.

The steps have five rows, so that two ranks at two rows a micro-batch get an empty row and an uneven
share, two micro-batches each, and guidance drop is on.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import STEP_ROWS, Run, make_corpus, metrics_of, run_ranks

from mgpt.train.step_folder import export_weights

BACKENDS = {"single": 1, "fsdp2": 2, "zero3": 2}
SHARDED = ("fsdp2", "zero3")
LR = 1e-3
# Ways of sharding that change no result: backend, number of ranks, settings of a run.
WAYS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "reduced": ("fsdp2", 2, {"reduce_each_micro_batch": True}),
    "whole": ("fsdp2", 2, {"gather": "model"}),
    "kept": ("fsdp2", 2, {"parallel": {"reshard": "never", "prefetch": 2}}),
    "on_cpu": ("fsdp2", 2, {"parallel": {"offload": "all", "prefetch": 0}}),
    "selective": ("fsdp2", 2, {"recompute": "selective"}),
    "copies": ("fsdp2", 4, {"parallel": {"shard_ranks": 2}}),
    "copies_reduced": (
        "fsdp2",
        4,
        {"parallel": {"shard_ranks": 2}, "reduce_each_micro_batch": True, "recompute": "full"},
    ),
    "halves": ("fsdp2", 4, {"parallel": {"reshard": 2}}),
    "stage_1": ("zero3", 2, {"parallel": {"zero_stage": 1}, "recompute": "full"}),
    "stage_2": ("zero3", 2, {"parallel": {"zero_stage": 2}}),
    "stage_2_on_cpu": ("zero3", 2, {"parallel": {"zero_stage": 2, "offload": "optimizer"}}),
    "stage_3_on_cpu": ("zero3", 2, {"parallel": {"offload": "all"}, "recompute": "full"}),
}
OF_OTHER_LAYOUT = ("copies", "stage_1", "stage_2", "stage_3_on_cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each backend trains; then each goes on from step 3 of the one before it."""
    folder = tmp_path_factory.mktemp("backends")
    corpus = make_corpus(folder / "corpus")

    def run(kind: str, backend: str, **settings: Any) -> Run:
        return Run(corpus, str(folder / kind / backend), backend=backend, lr=LR, **settings)

    def start(backend: str, previous: str) -> None:
        runs = [run("plain", backend, steps=10), run("poisoned", backend, steps=3, poison=(1,))]
        if previous:
            step_3 = folder / "plain" / previous / "step_00000003"
            runs.append(run("continued", backend, steps=10, continue_from=str(step_3)))
        for way, (of, ranks, settings) in WAYS.items():
            if of == backend and ranks == BACKENDS[backend]:
                runs.append(run(way, backend, steps=4, **settings))
        if backend == "zero3":
            step_3 = folder / "plain" / "fsdp2" / "step_00000003"
            flat = {"parallel": {"zero_stage": 2}}
            runs.append(run("flat", backend, steps=6, continue_from=str(step_3), **flat))
            runs.append(run("flat_poisoned", backend, steps=3, poison=(1,), **flat))
        run_ranks(runs, BACKENDS[backend])

    start("single", "")
    start("fsdp2", "single")
    start("zero3", "fsdp2")
    # Rows of one a micro-batch: two micro-batches on each of four ranks, three of the eight empty.
    run_ranks(
        [
            run(way, backend, steps=4, micro_rows=1, **settings)
            for way, (backend, ranks, settings) in WAYS.items()
            if ranks == 4
        ],
        4,
    )
    step_3 = folder / "plain" / "zero3" / "step_00000003"
    last = [run("continued", "single", steps=10, continue_from=str(step_3))]
    for way in OF_OTHER_LAYOUT:
        step_3 = folder / way / WAYS[way][0] / "step_00000003"
        last.append(run(f"after_{way}", "single", steps=5, continue_from=str(step_3)))
    run_ranks(last)
    return folder


def losses(folder: Path, kind: str, backend: str) -> torch.Tensor:
    rows = metrics_of(folder / kind / backend)
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


def weights(folder: Path, kind: str, backend: str, step: int) -> dict[str, torch.Tensor]:
    return export_weights(folder / kind / backend / f"step_{step:08d}")


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_the_steps_are_uneven() -> None:
    assert STEP_ROWS % 2 == 1
    assert 2 * Run("", "").micro_rows < STEP_ROWS


@pytest.mark.parametrize("backend", SHARDED)
def test_weights_after_three_steps(folder: Path, backend: str) -> None:
    single = weights(folder, "plain", "single", 3)
    # Adam's first steps have the size of the rate whatever the gradient's: 5 % of it is the
    # rounding of the smallest gradients (DESIGN's definition of equality).
    assert furthest(single, weights(folder, "plain", backend, 3)) < 0.05 * LR
    assert furthest(single, weights(folder, "plain", "single", 10)) > LR


@pytest.mark.parametrize("backend", SHARDED)
def test_losses_of_ten_steps(folder: Path, backend: str) -> None:
    single = losses(folder, "plain", "single")
    assert len(single) == 10
    assert single[-1] < single[0] - 0.3
    torch.testing.assert_close(losses(folder, "plain", backend), single, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", SHARDED)
def test_loss_by_task_modality_and_validation(folder: Path, backend: str) -> None:
    single, other = (metrics_of(folder / "plain" / name) for name in ("single", backend))
    for one, two in zip(single, other, strict=True):
        assert one == pytest.approx(two, abs=1e-4), "figures that the clock does not decide"
    assert {"loss/task/caption", "loss/modality/text", "loss/modality/image"} <= single[0].keys()


@pytest.mark.parametrize("way", WAYS)
def test_how_it_is_sharded_changes_nothing(folder: Path, way: str) -> None:
    backend = WAYS[way][0]
    want = losses(folder, "plain", "single")[:4]
    torch.testing.assert_close(losses(folder, way, backend), want, atol=1e-6, rtol=0)
    single = weights(folder, "plain", "single", 3)
    assert furthest(single, weights(folder, way, backend, 3)) < 0.05 * LR


@pytest.mark.parametrize("way", OF_OTHER_LAYOUT)
def test_going_on_after_another_layout(folder: Path, way: str) -> None:
    want = losses(folder, "plain", "single")[3:5]
    torch.testing.assert_close(losses(folder, f"after_{way}", "single"), want, atol=1e-6, rtol=0)


def test_stage_2_goes_on_and_skips(folder: Path) -> None:
    want = losses(folder, "plain", "single")[3:6]
    torch.testing.assert_close(losses(folder, "flat", "zero3"), want, atol=1e-6, rtol=0)
    rows = metrics_of(folder / "flat_poisoned" / "zero3")
    assert [row["updated"] for row in rows] == [1, 0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_going_on_on_another_backend(folder: Path, backend: str) -> None:
    want = losses(folder, "plain", "single")[3:]
    torch.testing.assert_close(losses(folder, "continued", backend), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_rank_not_finite_skips_on_all(folder: Path, backend: str) -> None:
    rows = metrics_of(folder / "poisoned" / backend)
    assert [row["updated"] for row in rows] == [1, 0, 1]
    assert [row["skipped"] for row in rows] == [0, 1, 1]
    assert rows[1]["grad_norm"] is None
    poisoned = weights(folder, "poisoned", backend, 3)
    assert furthest(weights(folder, "poisoned", "single", 3), poisoned) < 0.05 * LR
    assert furthest(weights(folder, "plain", "single", 3), poisoned) > 0.5 * LR
