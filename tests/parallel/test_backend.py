"""Building backends, their settings, and weights given by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgpt.errors import CheckpointError, ConfigError
from mgpt.models.head_loss import HeadLoss
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.optim.muon import orthogonalize
from mgpt.parallel.backend import (
    BACKENDS,
    Backend,
    MicroBatch,
    ParallelConfig,
    backends_on_many,
    build_backend,
    check_weights,
)
from mgpt.parallel.dist import World
from mgpt.parallel.snapshot import Snapshot

SIZE = TransformerConfig(
    hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, head_dim=16, vocab_size=50
)


def build(name: str = "single", seed: int = 0, **settings: object) -> Backend:
    cfg = ParallelConfig(name=name, **{"dtype": "float32", **settings})
    world = World()
    return build_backend(
        cfg, lambda: Transformer(SIZE), OptimConfig(), world, 0, seed, sharding_plan
    )


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """One process group for the file: DeepSpeed keeps the first one it meets."""
    World().require_process_group()
    yield
    World().shutdown()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, group: None) -> Backend:
    return build(request.param)


def batch(seed: int = 0) -> MicroBatch:
    ids_BT = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(seed))
    positions_BT = torch.arange(12).repeat(2, 1)
    return MicroBatch(ids_BT, ids_BT.roll(-1, 1), positions_BT)


def test_every_backend_runs_in_one_process(backend: Backend) -> None:
    before = backend.evaluate(batch())
    for _ in range(3):
        sums = backend.forward_backward(batch(), 1 / 24, last=True)
        norm, finite = backend.step(lr=1e-2, max_norm=1.0)
        assert finite and norm > 0
        assert sums.token_nll_BT.shape == (2, 12) and not sums.nll_sum.requires_grad
    after = backend.evaluate(batch())
    assert float(after.nll_sum) < float(before.nll_sum) - 1
    assert float(after.token_nll_BT.sum()) == pytest.approx(float(after.nll_sum), rel=1e-6)


def test_an_update_above_the_limit_is_not_made(backend: Backend) -> None:
    before = backend.weights_checksum()
    norms = []
    for limit in (1e-6, -1.0, 1e6):
        backend.forward_backward(batch(), 1 / 24, last=True)
        norm, updated = backend.step(1e-2, 1.0, limit)
        assert updated == (limit > 1.0) == (backend.weights_checksum() != before)
        norms.append(norm)
    assert norms[0] == norms[1] == norms[2], "no gradient is left over from before"
    saved = backend.snapshot(copy=True)
    assert saved.num_updates == 1


def test_weights_can_be_given(backend: Backend) -> None:
    other = build(seed=1)
    assert backend.weights_checksum() != other.weights_checksum()
    backend.evaluate(batch())  # what it gathered must not survive the new weights
    backend.load_weights(other.full_weights().items())
    assert backend.weights_checksum() == other.weights_checksum()
    assert backend.num_parameters == other.num_parameters == Transformer(SIZE).num_parameters
    for name, weight in backend.full_weights().items():
        assert torch.equal(weight, other.full_weights()[name]), name
    got, want = (b.evaluate(batch()).nll_sum for b in (backend, other))
    assert float(got) == pytest.approx(float(want), abs=1e-5)


def test_first_weights_are_the_models_own(backend: Backend) -> None:
    model = Transformer(SIZE)
    model.init_weights(0)
    found = backend.full_weights()
    assert {name: tuple(weight.shape) for name, weight in found.items()} == {
        name: tuple(weight.shape) for name, weight in model.named_parameters()
    }
    for name, weight in model.named_parameters():
        assert torch.equal(found[name], weight), name


def test_the_layout_of_checkpoints_before_optim_kind(backend: Backend, tmp_path: Path) -> None:
    """Weights, exp_avg and exp_avg_sq by name, which every AdamW checkpoint has ever held."""
    shapes = {name: p.shape for name, p in Transformer(SIZE).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{kind}.{name}": torch.rand(shape, generator=generator)
        for kind in ("model", "exp_avg", "exp_avg_sq")
        for name, shape in shapes.items()
    }
    Snapshot.take(tensors.items(), 7, World(), copy=False).write(tmp_path / "state")
    backend.load(tmp_path / "state")
    again = backend.snapshot(copy=True)
    assert again.num_updates == 7 and again.pieces.keys() == tensors.keys()
    for name, piece in again.pieces.items():
        assert torch.equal(piece.tensor, tensors[name]), name
    assert backend.checkpoint_bytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("name", BACKENDS)
def test_averaged_weights_stand_in_and_leave_no_trace(name: str, group: None) -> None:
    cfg, optim = ParallelConfig(name=name), OptimConfig(ema_decay=0.5)
    made = build_backend(cfg, lambda: Transformer(SIZE), optim, World(), 0, 0, sharding_plan)
    assert made.has_averages
    for _ in range(3):
        made.forward_backward(batch(), 1 / 24, last=True)
        made.step(lr=1e-2, max_norm=1.0)
    raw, loss = made.weights_checksum(), float(made.evaluate(batch()).nll_sum)
    saved = {
        key.removeprefix("ema."): piece.tensor
        for key, piece in made.snapshot(copy=True).pieces.items()
        if key.startswith("ema.")
    }
    with made.averaged_weights():
        assert made.weights_checksum() != raw
        weights = made.full_weights()
        assert weights.keys() == saved.keys()
        assert all(torch.equal(weights[name], saved[name]) for name in weights)
        # An average lags behind weights that still improve.
        assert float(made.evaluate(batch()).nll_sum) > loss + 0.1
    assert made.weights_checksum() == raw
    assert float(made.evaluate(batch()).nll_sum) == loss


@pytest.mark.parametrize("name", ["single", "fsdp2"])
def test_muon_in_bfloat16(name: str, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orthogonalized in the type of the passes; weights and momentum stay float32."""
    seen = []

    def noted(matrices: Sequence[Tensor], steps: int) -> list[Tensor]:
        seen.extend(matrix.dtype for matrix in matrices)
        return orthogonalize(matrices, steps)

    monkeypatch.setattr("mgpt.optim.muon.orthogonalize", noted)
    optim = OptimConfig(kind="muon")
    for dtype in ("bfloat16", "float32"):
        cfg = ParallelConfig(name=name, dtype=dtype)
        made = build_backend(cfg, lambda: Transformer(SIZE), optim, World(), 0, 0, sharding_plan)
        before = float(made.evaluate(batch()).nll_sum)
        for _ in range(3):
            made.forward_backward(batch(), 1 / 24, last=True)
            made.step(lr=1e-2, max_norm=1.0)
        assert float(made.evaluate(batch()).nll_sum) < before - 1
        assert {piece.tensor.dtype for piece in made.snapshot(True).pieces.values()} == {
            torch.float32
        }
        assert set(seen) == {getattr(torch, dtype)}
        seen.clear()


def test_zero3_refuses_whole_matrices() -> None:
    with pytest.raises(ConfigError, match=r"optim.kind=muon .* take parallel=fsdp2"):
        build_backend(
            ParallelConfig(name="zero3"),
            lambda: Transformer(SIZE),
            OptimConfig(kind="muon"),
            World(),
            0,
            0,
            sharding_plan,
        )


def test_unfit_weights_are_all_named() -> None:
    shapes = {"a": torch.Size([2]), "b": torch.Size([3]), "c": torch.Size([4])}
    given: list[tuple[str, Tensor]] = [
        ("a", torch.zeros(2)),
        ("b", torch.zeros(5)),
        ("d", torch.zeros(1)),
    ]
    passed = []
    with pytest.raises(CheckpointError) as error:
        passed.extend(check_weights(given, shapes))
    message = str(error.value)
    assert "b is [5], the model has [3]" in message
    assert "c is missing" in message and "d is not in this model" in message
    assert "a " not in message


def test_a_checksum_sees_one_bit() -> None:
    backend = build()
    before = backend.weights_checksum()
    weights = backend.full_weights()
    weights["lm_head.weight"][3, 5] = torch.nextafter(
        weights["lm_head.weight"][3, 5], torch.tensor(1.0)
    )
    backend.load_weights(weights.items())
    assert backend.weights_checksum() != before


def test_bfloat16_keeps_float32_weights(backend: Backend) -> None:
    low = build(type_name(backend), dtype="bfloat16", recompute="full")
    for one in (backend, low):
        one.forward_backward(batch(), 1 / 24, last=True)
        one.step(lr=1e-4, max_norm=0.0)
    want, got = backend.full_weights(), low.full_weights()
    moved = max(float((want[name] - got[name]).abs().max()) for name in want)
    # Adam's first update has the size of the rate, with a sign that bf16 may turn over; weights
    # that were themselves bf16 would be off by 0.4 % of their size, 1 for the norms'.
    assert moved <= 2.1e-4
    assert all(weight.dtype == torch.float32 for weight in got.values())


@pytest.mark.parametrize("name", BACKENDS)
def test_passes_are_in_the_type_asked_for(
    name: str, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = HeadLoss.trained_sums, []

    def noted(self: HeadLoss, hidden_ND: torch.Tensor, *others: Any) -> Any:
        seen.append((hidden_ND.dtype, self.weight.dtype))
        return real(self, hidden_ND, *others)

    monkeypatch.setattr(HeadLoss, "trained_sums", noted)
    for dtype in ("bfloat16", "float32"):
        build(name, dtype=dtype).forward_backward(batch(), 1 / 24, last=True)
    assert seen == [(torch.bfloat16,) * 2, (torch.float32,) * 2]


def type_name(backend: Backend) -> str:
    return next(name for name, path in BACKENDS.items() if path.endswith(type(backend).__name__))


def test_single_refuses_several_processes() -> None:
    with pytest.raises(ConfigError, match="started in 2"):
        cfg, several = ParallelConfig(dtype="float32"), World(size=2)
        build_backend(cfg, lambda: Transformer(SIZE), OptimConfig(), several, 0, 0, sharding_plan)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"micro_rows": 0}, "micro_rows=0"),
        ({"name": "fsdp2", "procs": 0}, "procs=0"),
        ({"name": "single", "procs": 2}, "take fsdp2 or zero3"),
        ({"name": "fsdp2", "shard_ranks": 0}, "shard_ranks=0"),
        ({"name": "fsdp2", "reshard": 0}, "reshard=0"),
        ({"name": "fsdp2", "prefetch": -1}, "prefetch=-1"),
        ({"name": "zero3", "recompute": "selective"}, "zero3 takes none or full"),
        ({"name": "zero3", "compile": True}, "zero3 does not compile"),
        ({"name": "single", "offload": "all"}, "single offloads nothing"),
        ({"name": "fsdp2", "offload": "optimizer"}, "fsdp2 takes offload=all"),
        ({"name": "fsdp2", "offload": "all", "offload_folder": "/nvme"}, "main memory alone"),
        ({"name": "zero3", "offload_folder": "/nvme"}, "needs offload=optimizer or offload=all"),
        ({"name": "zero3", "offload": "all", "zero_stage": 2}, "zero_stage=3"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ParallelConfig(**settings)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="name='ddp' is none of single, fsdp2, zero3"):
        ParallelConfig(name="ddp")


def test_what_backends_say_of_processes() -> None:
    assert backends_on_many() == ["fsdp2", "zero3"]
    assert ParallelConfig("single").asked_procs == 1
    assert ParallelConfig("fsdp2").asked_procs == "auto"
    assert ParallelConfig("zero3", procs=3).asked_procs == 3
