"""AdamW as the papers use it, with decay on matrices only.

Decayed: every weight matrix, the input embedding and the output head among them. Not decayed: the
norms' weights and biases, including the two-dimensional ones of qk-norm (the official code decays
them).

    >>> optimizer = OptimConfig(lr=2e-5).build(model.named_parameters())
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["OptimConfig"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW's settings. The defaults are Lumina-mGPT's (paper) with the clipping of its example."""

    lr: float = 2e-5
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    """Added to the root of the second moment; Chameleon's pretraining has 1e-5."""
    weight_decay: float = 0.1
    """Per update, times the learning rate; on matrices only."""
    max_norm: float = 4.0
    """Gradients are scaled down to this norm, taken over all ranks; 0 turns clipping off."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1:
            raise ValueError(f"lr={self.lr} must lie between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1)")
        for field in ("eps", "weight_decay", "max_norm"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], decays: bool = True
    ) -> torch.optim.AdamW:
        """The optimiser over parameters under their names in the model.

        The learning rate starts at 0: it is set before each update. `decays=False` leaves weight
        decay to the caller, for tensors of which only some rows train.
        """
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            (matrices if is_decayed(name, parameter.ndim) else vectors).append(parameter)
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay if decays else 0.0},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            fused=True,
        )


def is_decayed(name: str, ndim: int) -> bool:
    """Whether weight decay applies to the parameter of this name and number of dimensions."""
    return ndim >= 2 and "norm" not in name.split(".")[-2]
