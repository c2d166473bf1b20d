"""What an optimizer is: an update rule, the state it keeps, and whether it needs whole matrices.

A rule sees plain tensors: whole parameters, or the rows of them that this rank holds. Backends,
checkpoints and plans read what a rule declares and know none by name. To add an optimizer, write
one class with these members in a file of its own and give it a row in `mgpt.optim.table`:

    class Sgd:
        state = ("momentum",)
        by = "rows"
        scratch = 0

        def __init__(self, cfg: OptimConfig) -> None:
            self._momentum = cfg.momentum

        @classmethod
        def takes(cls, name: str, shape: Sequence[int]) -> bool:
            return True

        def update(self, rows: Rows, matrices: WholeMatrices) -> None:
            momentum = rows.state["momentum"]
            torch._foreach_mul_(momentum, self._momentum)
            torch._foreach_add_(momentum, rows.grads)
            torch._foreach_mul_(rows.weights, 1.0 - rows.lr * rows.weight_decay)
            torch._foreach_add_(rows.weights, momentum, alpha=-rows.lr)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mgpt.optim.config import OptimConfig

__all__ = ["WHOLE_NUMEL", "LocalMatrices", "Rows", "Rule", "WholeMatrices", "buckets_of"]

MatrixFunction = Callable[[Sequence[Tensor]], list[Tensor]]
"""From whole matrices to results of the same shapes."""


@dataclass(frozen=True)
class Rows:
    """One update of some parameters: what this rank holds of each, in lists of equal length."""

    shapes: Sequence[torch.Size]
    """Of the whole parameters."""
    weights: list[Tensor]
    grads: list[Tensor]
    state: dict[str, list[Tensor]]
    """By the names that the rule declares, each shaped as its weight."""
    count: int
    """This update's number, counted from 1."""
    lr: float
    weight_decay: float
    """Times lr; 0 for parameters that do not decay."""


WHOLE_NUMEL = 1 << 26
"""Elements of the matrices that a rank makes whole at once, if one matrix has fewer."""


class WholeMatrices(Protocol):
    """Applies a function to whole matrices of which each rank holds some rows."""

    dtype: torch.dtype
    """In which matrices are made whole and worked on: that of the passes."""

    def buckets(self, shapes: Sequence[torch.Size]) -> list[list[int]]:
        """The matrices that are made whole at the same time, by their index; bounds memory."""
        ...

    def map(
        self, rows: Sequence[Tensor], shapes: Sequence[torch.Size], function: MatrixFunction
    ) -> list[Tensor]:
        """This rank's rows of the function's results. Collective where matrices are sharded.

        Each matrix is made whole on one rank only.
        """
        ...


class Rule(Protocol):
    """How the parameters that it takes are updated; built from the configuration."""

    state: ClassVar[tuple[str, ...]]
    """Names of the float32 tensors kept for each parameter, each of the parameter's shape and zero
    before the first update. They are also the names in a checkpoint."""
    by: ClassVar[Literal["rows", "matrix"]]
    """rows: any rows of a parameter can be updated without the others; matrix: an update needs the
    whole matrix."""
    scratch: ClassVar[int]
    """Elements that an update needs for each element of the matrices that are whole at the time, in
    memory that is free again afterwards; 0 for rules that work in place."""

    def __init__(self, cfg: OptimConfig) -> None: ...

    @classmethod
    def takes(cls, name: str, shape: Sequence[int]) -> bool:
        """Whether this rule updates the parameter; AdamW updates what the chosen rule leaves."""
        ...

    def update(self, rows: Rows, matrices: WholeMatrices) -> None:
        """Updates weights and state in place, without autograd."""
        ...


class LocalMatrices:
    """Matrices that this process holds whole."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def buckets(self, shapes: Sequence[torch.Size]) -> list[list[int]]:
        return buckets_of(shapes, WHOLE_NUMEL)

    def map(
        self, rows: Sequence[Tensor], shapes: Sequence[torch.Size], function: MatrixFunction
    ) -> list[Tensor]:
        return function(rows)


def buckets_of(shapes: Sequence[torch.Size], max_numel: int, owners: int = 1) -> list[list[int]]:
    """Indices of the shapes in buckets of at most `max_numel` elements an owner, or one matrix.

    The n-th matrix of a bucket is owner n mod `owners`'s. Matrices of one size stand next to each
    other, largest first.
    """
    order = sorted(
        range(len(shapes)), key=lambda i: (-shapes[i].numel(), min(shapes[i], default=0), i)
    )
    buckets: list[list[int]] = []
    numel = 0  # of the owner that has most, which is the first
    for place in range(0, len(order), owners):
        largest = shapes[order[place]].numel()
        if not buckets or numel + largest > max_numel:
            buckets.append([])
            numel = 0
        buckets[-1] += order[place : place + owners]
        numel += largest
    return buckets
