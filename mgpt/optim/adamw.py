"""AdamW (arXiv 1711.05101): Adam with decoupled weight decay, as PyTorch's fused kernel has it.

>>> AdamW(OptimConfig()).update(rows, LocalMatrices())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.optim.adamw import adamw

from mgpt.optim.rule import Rows, WholeMatrices

if TYPE_CHECKING:
    from mgpt.optim.config import OptimConfig

__all__ = ["AdamW"]


class AdamW:
    """Takes every parameter."""

    state: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    by: ClassVar[Literal["rows", "matrix"]] = "rows"
    scratch: ClassVar[int] = 0

    def __init__(self, cfg: OptimConfig) -> None:
        self._betas, self._eps = cfg.betas, cfg.eps

    @classmethod
    def takes(cls, name: str, shape: Sequence[int]) -> bool:
        return True

    def update(self, rows: Rows, matrices: WholeMatrices) -> None:
        device = rows.weights[0].device
        # The kernel adds 1 to each of these before it uses them.
        before = torch.full((len(rows.weights),), float(rows.count - 1), device=device)
        adamw(
            rows.weights,
            rows.grads,
            rows.state["exp_avg"],
            rows.state["exp_avg_sq"],
            [],
            list(before.unbind()),
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=rows.lr,
            weight_decay=rows.weight_decay,
            eps=self._eps,
            maximize=False,
        )
