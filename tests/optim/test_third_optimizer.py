"""A third optimizer is one class and one row of the table: it trains, saves, resumes and plans on
every backend, with averaged weights, and nothing else knows it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "drills"))
from engine_runs import Attempt, elsewhere, outcome
from rank_runs import Run, make_corpus, metrics_of

from mgpt.errors import CheckpointError
from mgpt.models.sizes import SIZES
from mgpt.optim import table
from mgpt.optim.config import OptimConfig
from mgpt.optim.rule import Rows, WholeMatrices
from mgpt.parallel.backend import ParallelConfig
from mgpt.plan.memory import RankWork, parameter_groups, plan_memory
from mgpt.tokens.vocab import Vocabulary
from mgpt.train.run_state import resumable_state
from mgpt.train.step_folder import StepFolder, stored_weights


class Sgd:
    """Gradient descent with momentum and decoupled weight decay."""

    state: ClassVar[tuple[str, ...]] = ("velocity",)
    by: ClassVar[Literal["rows", "matrix"]] = "rows"
    scratch: ClassVar[int] = 0

    def __init__(self, cfg: OptimConfig) -> None:
        self._momentum = cfg.momentum

    @classmethod
    def takes(cls, name: str, shape: Sequence[int]) -> bool:
        return True

    def update(self, rows: Rows, matrices: WholeMatrices) -> None:
        velocity = rows.state["velocity"]
        torch._foreach_mul_(velocity, self._momentum)
        torch._foreach_add_(velocity, rows.grads)
        torch._foreach_mul_(rows.weights, 1.0 - rows.lr * rows.weight_decay)
        torch._foreach_add_(rows.weights, velocity, alpha=-rows.lr)


def register() -> None:
    """On each rank, before it trains."""
    table.OPTIMIZERS["sgd"] = Sgd


def finish(run: Run, size: int) -> None:
    with Attempt(run, size, register) as attempt:
        assert attempt.wait() == [0] * size, attempt.logs()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("third")
    run = Run(
        make_corpus(folder / "corpus"),
        str(folder / "single"),
        lr=0.1,
        optim={"kind": "sgd", "ema_decay": 0.9},
    )
    finish(run, 1)
    return run


def losses(run: Run) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in metrics_of(run.folder)], dtype=torch.float64)


def test_it_trains_and_saves_what_it_declares(single: Run) -> None:
    found = losses(single)
    assert found[-1] < found[0] - 0.2
    step = Path(single.folder) / "step_00000006"
    kinds = {
        name.partition(".")[0]
        for file in (step / "state").glob("*.safetensors")
        for name in json.loads(_header(file))
        if name != "__metadata__"
    }
    assert kinds == {"model", "velocity", "ema"}
    assert json.loads((step / "trainer.json").read_text())["optimizer"] == "sgd"
    assert outcome(single)["metrics"]["val/averaged_loss"] > 0


@pytest.mark.parametrize(("backend", "size"), [("single", 1), ("fsdp2", 2), ("zero3", 2)])
def test_it_resumes_on_every_backend(single: Run, backend: str, size: int, tmp_path: Path) -> None:
    whole = elsewhere(single, tmp_path / "whole", backend=backend)
    step_3 = Path(single.folder) / "step_00000003"
    resumed = elsewhere(
        single, tmp_path / "resumed", backend=backend, continue_from=str(step_3), steps=6
    )
    for run in (whole, resumed):
        finish(run, size)
    torch.testing.assert_close(losses(whole), losses(single), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses(resumed), losses(single)[3:], atol=1e-6, rtol=0)
    for averaged in (False, True):
        want, got = (
            stored_weights(Path(run.folder) / "step_00000006", averaged=averaged)
            for run in (single, resumed)
        )
        assert want.keys() == got.keys() and want
        for name in want:
            torch.testing.assert_close(got[name].read(), want[name].read(), atol=5e-5, rtol=0)
    measured = [outcome(run)["metrics"]["val/averaged_loss"] for run in (whole, resumed)]
    assert measured == pytest.approx(
        [outcome(single)["metrics"]["val/averaged_loss"]] * 2, abs=1e-5
    )


def test_it_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.OPTIMIZERS, "sgd", Sgd)
    shard = parameter_groups(SIZES["7b"], 64).shard

    def state_bytes(**optim: object) -> int:
        cfg = OptimConfig(**optim)
        work = RankWork(SIZES["7b"], ParallelConfig("fsdp2", dtype="float32"), 64, 1024, optim=cfg)
        return plan_memory(work).part("optimizer state").update_bytes

    assert state_bytes() == 2 * 4 * shard
    assert state_bytes(kind="sgd") == 4 * shard
    assert state_bytes(kind="sgd", ema_decay=0.9) == 2 * 4 * shard


def test_another_optimizers_checkpoint_is_refused(single: Run) -> None:
    step = StepFolder(Path(single.folder) / "step_00000003", 3)
    vocab = Vocabulary.load(step.path / "vocab")
    resumable_state(step, vocab, "sgd", steps=6)
    with pytest.raises(CheckpointError, match=r"trained with optim.kind=sgd, this run has muon"):
        resumable_state(step, vocab, "muon", steps=6)


def _header(file: Path) -> bytes:
    data = file.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]
