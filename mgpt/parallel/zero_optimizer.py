"""Our update rules as the torch.optim.Optimizer that DeepSpeed asks for.

DeepSpeed puts flat float32 pieces in place of the parameters and calls `step` once for each part of
them that it has at hand. So state and the count of updates belong to the tensor that a group holds
at the time, and a rule must be able to update any rows by themselves.

    >>> optimizer = ZeroOptimizer(optim_cfg, module.named_weights())
    >>> optimizer.prepare(master, group=0)
    >>> optimizer.set_lr(1e-4)
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mgpt.optim.config import OptimConfig
from mgpt.optim.optimizer import AVERAGE, update_average
from mgpt.optim.rule import LocalMatrices, Rows

__all__ = ["ZeroOptimizer"]

_STEP = "step"


class ZeroOptimizer(torch.optim.Optimizer):
    """Raises nothing for rules that need whole matrices: see `backend.check_optimizer`."""

    def __init__(
        self,
        cfg: OptimConfig,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        decays: bool = True,
    ) -> None:
        self._ema_decay = cfg.ema_decay
        groups = cfg.groups(named_parameters, decays)
        super().__init__(
            [
                {
                    "params": group.parameters,
                    "rule": group.rule,
                    "lr_ratio": group.lr_ratio,
                    "weight_decay": group.weight_decay,
                }
                for group in groups
            ],
            {"lr": 0.0},
        )

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next steps, before each group's ratio."""
        for group in self.param_groups:
            group["lr"] = lr

    def prepare(self, tensor: Tensor, group: int) -> None:
        """Gives a flat piece of a group's parameters its zero state."""
        average = (AVERAGE,) if self._ema_decay else ()
        keys = (*self.param_groups[group]["rule"].state, *average)
        self.state[tensor] = {
            _STEP: torch.zeros((), dtype=torch.float32),
            **{key: torch.zeros_like(tensor.detach()) for key in keys},
        }

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        return max(int(state[_STEP]) for state in self.state.values())

    @num_updates.setter
    def num_updates(self, count: int) -> None:
        for state in self.state.values():
            state[_STEP].fill_(count)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._update(group, tensor)

    def _update(self, group: dict[str, Any], tensor: Tensor) -> None:
        state, rule = self.state[tensor], group["rule"]
        state[_STEP] += 1
        count = int(state[_STEP])
        assert tensor.grad is not None
        rows = Rows(
            shapes=[tensor.shape],
            weights=[tensor.detach()],
            grads=[tensor.grad],
            state={key: [state[key]] for key in rule.state},
            count=count,
            lr=group["lr"] * group["lr_ratio"],
            weight_decay=group["weight_decay"],
        )
        rule.update(rows, LocalMatrices())
        if self._ema_decay:
            update_average([state[AVERAGE]], [tensor.detach()], count, self._ema_decay)
