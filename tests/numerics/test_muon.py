"""Muon keeps the equalities that AdamW has: accumulation, packing, backends, resuming, ranks.

Averaged weights go along, so that they are compared too.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import STEP_ROWS, Run, make_corpus, metrics_of, run_ranks

from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import MicroBatch, ParallelConfig, build_backend
from mgpt.parallel.dist import World
from mgpt.train.step_folder import stored_weights

LR = 1e-3
MUON = {"kind": "muon", "adamw_lr": 5e-4, "ema_decay": 0.9}
# Ways of sharding that change no result: number of ranks, settings of a run.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp2": (2, {}),
    "whole": (2, {"gather": "model"}),
    "on_cpu": (2, {"parallel": {"offload": "all"}}),
    "three": (3, {}),
    "copies": (4, {"parallel": {"shard_ranks": 2}, "micro_rows": 1}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`single` trains; each way of sharding does the same; then some resume from step 3 of others,
    which saved on another number of ranks."""
    folder = tmp_path_factory.mktemp("muon")
    corpus = make_corpus(folder / "corpus")

    def run(name: str, backend: str = "fsdp2", **settings: Any) -> Run:
        return Run(
            corpus, str(folder / name), backend=backend, lr=LR, optim=MUON, steps=6, **settings
        )

    def resumed(name: str, after: str, backend: str = "fsdp2") -> Run:
        return run(name, backend, continue_from=str(folder / after / "step_00000003"))

    run_ranks([run(f"rows_{rows}", "single", micro_rows=rows) for rows in (1, 2, STEP_ROWS)])
    run_ranks([resumed("single_resumed", "rows_2", "single")])
    two = [run(way, **settings) for way, (ranks, settings) in WAYS.items() if ranks == 2]
    run_ranks([*two, resumed("fsdp2_resumed", "fsdp2"), resumed("two_after_one", "rows_2")], 2)
    run_ranks([run("three"), resumed("three_after_two", "fsdp2")], 3)
    run_ranks([run("copies", **WAYS["copies"][1])], 4)
    run_ranks([resumed("one_after_three", "three", "single")])
    return folder


def state_after(folder: Path, step: int) -> dict[str, Tensor]:
    """Weights and averaged weights."""
    path = folder / f"step_{step:08d}"
    return {
        f"{averaged}.{name}": weight.read()
        for averaged in (False, True)
        for name, weight in stored_weights(path, averaged=averaged).items()
    }


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys() and one
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def losses(folder: Path) -> Tensor:
    return torch.tensor([row["loss"] for row in metrics_of(folder)], dtype=torch.float64)


def test_it_learns(folder: Path) -> None:
    found = losses(folder / "rows_2")
    assert found[-1] < found[0] - 0.2


@pytest.mark.parametrize("rows", [1, 2])
def test_accumulation(folder: Path, rows: int) -> None:
    want, got = (folder / f"rows_{n}" for n in (STEP_ROWS, rows))
    torch.testing.assert_close(losses(got), losses(want), atol=1e-6, rtol=0)
    assert furthest(state_after(want, 3), state_after(got, 3)) < 0.05 * LR


@pytest.mark.parametrize("way", WAYS)
def test_how_it_is_sharded_changes_nothing(folder: Path, way: str) -> None:
    torch.testing.assert_close(losses(folder / way), losses(folder / "rows_2"), atol=1e-6, rtol=0)
    assert furthest(state_after(folder / "rows_2", 3), state_after(folder / way, 3)) < 0.05 * LR


@pytest.mark.parametrize(("whole", "size"), [("rows_2", 1), ("fsdp2", 2)])
def test_resumed_is_uninterrupted_bit_for_bit(folder: Path, whole: str, size: int) -> None:
    resumed = "single_resumed" if size == 1 else "fsdp2_resumed"
    assert metrics_of(folder / resumed) == metrics_of(folder / whole)[3:]
    states = [folder / kind / "step_00000006" / "state" for kind in (whole, resumed)]
    names = sorted(path.name for path in states[0].glob("*.safetensors"))
    assert len(names) == size, "one file a rank"
    for name in names:
        want, got = (load_file(state / name) for state in states)
        assert want.keys() == got.keys()
        assert {key.partition(".")[0] for key in want} == {
            "model",
            "momentum",
            "exp_avg",
            "exp_avg_sq",
            "ema",
        }
        for key in want:
            assert torch.equal(want[key], got[key]), key


@pytest.mark.parametrize("name", ["two_after_one", "three_after_two", "one_after_three"])
def test_resumed_on_another_number_of_ranks(folder: Path, name: str) -> None:
    want, got = losses(folder / "rows_2")[3:], losses(folder / name)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_rows_of_the_head_alone(tmp_path: Path, folder: Path) -> None:
    """With train=image_head nothing else moves, and these rows decay at AdamW's rate."""
    decay, rows, ratio = 5.0, (10, 20), 0.5
    runs = [
        Run(
            str(folder / "corpus"),
            str(tmp_path / str(weight_decay)),
            steps=1,
            save_every=1,
            lr=LR,
            optim={**MUON, "ema_decay": 0.0},
            head_rows=rows,
            weight_decay=weight_decay,
        )
        for weight_decay in (0.0, decay)
    ]
    run_ranks(runs)
    plain, decayed = (
        {name: weight.read() for name, weight in stored_weights(step).items()}
        for step in (Path(run.folder) / "step_00000001" for run in runs)
    )
    name = "lm_head.weight"
    assert all(torch.equal(plain[key], decayed[key]) for key in plain if key != name)
    moved = (plain[name] != decayed[name]).any(1).nonzero().flatten()
    assert moved.tolist() == list(range(*rows))
    # One step: decayed = plain - ratio * LR * decay * first, and first is within LR of plain.
    shrunk = (plain[name] - decayed[name])[slice(*rows)]
    want = ratio * LR * decay * plain[name][slice(*rows)]
    torch.testing.assert_close(shrunk, want, atol=ratio * LR * decay * LR + 1e-7, rtol=0)


def test_averaged_weights_are_validated(folder: Path) -> None:
    import json

    for name in ("rows_2", "fsdp2"):
        metrics = json.loads((folder / name / "outcome.json").read_text())["metrics"]
        assert metrics["val/averaged_loss"] != metrics["val/loss"]
        assert metrics["val/averaged_loss"] == pytest.approx(metrics["val/loss"], abs=0.3)


def test_packing() -> None:
    """Documents packed into one row train as they do in rows of their own."""
    cfg = TransformerConfig(
        hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, head_dim=16, vocab_size=50
    )
    documents = [torch.randint(0, 50, (12,), generator=_seeded(i)) for i in range(4)]
    apart = MicroBatch(
        torch.stack(documents),
        torch.stack([document.roll(-1) for document in documents]),
        torch.arange(12).repeat(4, 1),
    )
    packed = MicroBatch(*(tensor.reshape(1, -1) for tensor in apart))
    found = [dict(_trained(cfg, batch)) for batch in (apart, packed)]
    assert furthest(*found) < 0.05 * LR
    start = Transformer(cfg)
    start.init_weights(0)
    assert furthest(found[0], dict(start.state_dict())) > LR


def _trained(cfg: TransformerConfig, batch: MicroBatch) -> Iterator[tuple[str, Tensor]]:
    backend = build_backend(
        ParallelConfig(dtype="float32"),
        lambda: Transformer(cfg),
        OptimConfig(kind="muon", lr=LR),
        World(),
        0.0,
        0,
        sharding_plan,
    )
    for _ in range(3):
        backend.forward_backward(batch, 1 / 48, last=True)
        backend.step(LR, 1.0)
    yield from backend.full_weights().items()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
