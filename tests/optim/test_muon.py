"""Muon: orthogonal updates, PyTorch's own Muon in float32, and the shape of a step."""

import math

import pytest
import torch
from torch import Tensor, nn

from mgpt.optim.config import OptimConfig
from mgpt.optim.muon import orthogonalize
from mgpt.optim.rule import LocalMatrices, buckets_of

NAME = "model.layers.0.mlp.up_proj.weight"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz as published, one matrix at a time, in float64."""
    x = matrix.double()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_all_matrices_are_those_of_the_published_iteration() -> None:
    """Square, wide and tall ones, of full and of low rank, together in one call."""
    matrices = [drawn(32, 32), drawn(24, 96, seed=1), drawn(96, 24, seed=2), drawn(40, 48, seed=3)]
    matrices.append(drawn(24, 3, seed=4) @ drawn(3, 96, seed=5))
    matrices.append(1e-6 * drawn(32, 32, seed=6))
    for matrix, made in zip(matrices, orthogonalize(matrices, 5), strict=True):
        assert made.shape == matrix.shape and made.dtype == torch.float32
        # Rounding of the smallest singular values grows by 3.4445 a step.
        torch.testing.assert_close(made.double(), reference(matrix), atol=2e-4, rtol=0)


def test_singular_values_are_near_one() -> None:
    made = orthogonalize([drawn(48, 128), drawn(64, 64, seed=1)], 5)
    values = torch.cat([torch.linalg.svdvals(matrix) for matrix in made])
    assert float(values.min()) > 0.3 and float(values.max()) < 1.3
    assert float((values > 0.65).float().mean()) > 0.9


def test_bfloat16_is_close() -> None:
    matrices = [drawn(32, 32), drawn(24, 96, seed=1), drawn(96, 24, seed=2)]
    low = orthogonalize([matrix.bfloat16() for matrix in matrices], 5)
    for one, other in zip(low, orthogonalize(matrices, 5), strict=True):
        assert one.dtype == torch.bfloat16
        # Singular vectors agree; the values of a few small ones differ.
        assert float((one.float() - other).norm() / other.norm()) < 0.05


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonalize([torch.zeros(8, 8)], 5)[0], torch.zeros(8, 8))


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_steps_are_those_of_pytorchs_muon(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except that PyTorch's casts to bfloat16, which is taken out of it here."""
    import torch.optim._muon as theirs

    monkeypatch.setattr(
        theirs,
        "_zeropower_via_newtonschulz",
        lambda grad, coefficients, steps, eps: reference(grad, steps).float(),
    )
    ours, other = (nn.Parameter(drawn(*shape)) for _ in range(2))
    cfg = OptimConfig(kind="muon", lr=0.01, weight_decay=0.5)
    optimizer = cfg.build([(NAME, ours)])
    muon = theirs.Muon(
        [other], lr=0.01, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        ours.grad, other.grad = (drawn(*shape, seed=step) for _ in range(2))
        optimizer.step(0.01)
        muon.step()
    # Decay, momentum and scale are exact up to rounding; a wrong one moves weights by about 1e-3.
    torch.testing.assert_close(ours, other, atol=2e-6, rtol=0)


def test_an_update_has_the_size_of_adamws() -> None:
    """Its root mean square is 0.2 lr, whatever the shape and the gradient's size."""
    for shape in ((64, 64), (32, 128), (256, 32)):
        parameter = nn.Parameter(torch.zeros(shape))
        parameter.grad = 1e-4 * drawn(*shape)
        OptimConfig(kind="muon", lr=0.01).build([(NAME, parameter)]).step(0.01)
        size = float(parameter.detach().square().mean().sqrt())
        assert size == pytest.approx(0.2 * 0.01, rel=0.2), shape


def test_adamw_has_its_own_rate() -> None:
    head = nn.Parameter(torch.zeros(8, 4))
    head.grad = torch.ones(8, 4)
    OptimConfig(kind="muon", lr=0.02, adamw_lr=0.005).build([("lm_head.weight", head)]).step(0.01)
    torch.testing.assert_close(head.detach(), torch.full((8, 4), -0.0025))


def test_buckets_hold_every_matrix_once_and_bound_memory() -> None:
    shapes = [torch.Size(size) for size in ((4, 4), (8, 16), (4, 4), (100, 100), (16, 8))]
    buckets = buckets_of(shapes, 300)
    assert buckets == [[3], [1, 4, 0, 2]]
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(shapes)))
    for bucket in buckets:
        assert len(bucket) == 1 or sum(math.prod(shapes[i]) for i in bucket) <= 300


def test_small_buckets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(max_numel: int) -> list[Tensor]:
        monkeypatch.setattr("mgpt.optim.rule.WHOLE_NUMEL", max_numel)
        parameters = [nn.Parameter(drawn(16, 24, seed=i)) for i in range(5)]
        named = [(f"layers.{i}.up_proj.weight", p) for i, p in enumerate(parameters)]
        optimizer = OptimConfig(kind="muon").build(named)
        for i, parameter in enumerate(parameters):
            parameter.grad = drawn(16, 24, seed=10 + i)
        optimizer.step(0.1)
        assert len(LocalMatrices().buckets([p.shape for p in parameters])) == (
            1 if max_numel > 10_000 else 5
        )
        return [parameter.detach() for parameter in parameters]

    for one, other in zip(trained(1 << 20), trained(1), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
