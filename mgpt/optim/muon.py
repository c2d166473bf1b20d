"""Muon: momentum, orthogonalized, for the matrices inside the blocks.

The update of a matrix is its Nesterov momentum with all singular values brought near 1 by a few
Newton-Schulz steps (https://kellerjordan.github.io/posts/muon/, with the quintic coefficients given
there), scaled by 0.2 sqrt(larger side), which makes its root mean square that of AdamW's updates,
so that both take the same learning rate and weight decay (Moonlight, arXiv 2502.16982). Embedding,
head and norms are left to AdamW.

The steps run in the type of the passes, so that bfloat16 halves their time where it is used anyway.
PyTorch's own Muon always takes bfloat16, which is slow on a CPU without instructions for it.

    >>> orthogonalize([torch.randn(128, 384)], steps=5)[0].svd().S  # all near 1

Shape suffixes: N matrices of one shape, R rows and C columns of each, R <= C.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from mgpt.optim.rule import Rows, WholeMatrices

if TYPE_CHECKING:
    from mgpt.optim.config import OptimConfig

__all__ = ["Muon", "is_block_matrix", "orthogonalize"]

_A, _B, _C = 3.4445, -4.7750, 2.0315
_LEAST_NORM = 1e-7


class Muon:
    """Takes the matrices inside the blocks, norms excluded."""

    state: ClassVar[tuple[str, ...]] = ("momentum",)
    by: ClassVar[Literal["rows", "matrix"]] = "matrix"
    scratch: ClassVar[int] = 6

    def __init__(self, cfg: OptimConfig) -> None:
        self._momentum, self._nesterov = cfg.momentum, cfg.nesterov
        self._steps, self._scale = cfg.newton_schulz_steps, cfg.update_scale

    @classmethod
    def takes(cls, name: str, shape: Sequence[int]) -> bool:
        return is_block_matrix(name, len(shape))

    def update(self, rows: Rows, matrices: WholeMatrices) -> None:
        momentum = rows.state["momentum"]
        torch._foreach_mul_(momentum, self._momentum)
        torch._foreach_add_(momentum, rows.grads)
        torch._foreach_mul_(rows.weights, 1.0 - rows.lr * rows.weight_decay)
        for bucket in matrices.buckets(rows.shapes):
            shapes = [rows.shapes[i] for i in bucket]
            updates = [
                self._direction(momentum[i], rows.grads[i]).to(matrices.dtype) for i in bucket
            ]
            updates = matrices.map(updates, shapes, lambda whole: orthogonalize(whole, self._steps))
            for i, update in zip(bucket, updates, strict=True):
                scale = self._scale * math.sqrt(max(rows.shapes[i]))
                rows.weights[i].add_(update.to(rows.weights[i].dtype), alpha=-rows.lr * scale)

    def _direction(self, momentum: Tensor, grad: Tensor) -> Tensor:
        return torch.add(grad, momentum, alpha=self._momentum) if self._nesterov else momentum


def is_block_matrix(name: str, ndim: int) -> bool:
    """Whether a parameter is a matrix inside a block (`…layers.<number>…`) and no norm's weight."""
    *modules, _ = name.split(".")
    return ndim == 2 and "layers" in modules and "norm" not in modules[-1]


def orthogonalize(matrices: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Each matrix with its singular values brought near 1, between about 0.7 and 1.2.

    Matrices of one shape, up to transposition, are worked on together.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        by_shape[min(matrix.shape), max(matrix.shape)].append(index)
    results: list[Tensor] = list(matrices)
    for indices in by_shape.values():
        wide = [_wide(matrices[i]) for i in indices]
        made_NRC = _newton_schulz(torch.stack(wide), steps)
        for i, made_RC in zip(indices, made_NRC, strict=True):
            results[i] = made_RC if matrices[i].shape == made_RC.shape else made_RC.mT
    return results


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _newton_schulz(x_NRC: Tensor, steps: int) -> Tensor:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X, from X of Frobenius norm 1; overwrites its input."""
    norm_N11 = torch.linalg.vector_norm(x_NRC, dim=(-2, -1), keepdim=True)
    x_NRC.div_(norm_N11.clamp(min=_LEAST_NORM))
    num_rows, num_columns = x_NRC.shape[-2:]
    if x_NRC.dtype is torch.float32 and 2 * num_columns > 3 * num_rows:
        return _by_gram(x_NRC, steps)
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=_B, alpha=_C)
        x_NRC = torch.baddbmm(x_NRC, factor_NRR, x_NRC, beta=_A)
    return x_NRC


def _by_gram(x_NRC: Tensor, steps: int) -> Tensor:
    """The same steps on the small side: all factors are polynomials of X X^T and commute.

    10 C/R + 5 products of R x R matrices become 2 C/R + 17. The Gram matrix squares the singular
    values, for which bfloat16 has too few digits.
    """
    gram_NRR = x_NRC @ x_NRC.mT
    product_NRR = None
    for step in range(steps):
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=_B, alpha=_C)
        factor_NRR.diagonal(dim1=-2, dim2=-1).add_(_A)
        product_NRR = factor_NRR if product_NRR is None else factor_NRR @ product_NRR
        if step < steps - 1:
            gram_NRR = factor_NRR @ (gram_NRR @ factor_NRR)
    assert product_NRR is not None
    return product_NRR @ x_NRC
