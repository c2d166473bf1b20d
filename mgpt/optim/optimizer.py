"""The optimizer of a model: each parameter's rule and state, and the average of the weights.

Parameters may be DTensors split along their first dimension: rules then work on this rank's rows as
plain tensors, which have the same bits without a look through hundreds of DTensors in every call.

    >>> optimizer = OptimConfig(kind="muon").build(model.named_parameters())
    >>> loss.backward()
    >>> optimizer.step(lr=1e-3)
    >>> optimizer.state["model.norm.weight"].keys()
    dict_keys(['exp_avg', 'exp_avg_sq'])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mgpt.optim.rule import Rows, Rule, WholeMatrices

__all__ = ["AVERAGE", "Group", "Optimizer", "update_average"]

AVERAGE = "ema"
"""Name of the averaged weights among a parameter's state tensors."""


@dataclass(frozen=True)
class Group:
    """Parameters with one rule, learning rate and weight decay."""

    rule: Rule
    lr_ratio: float
    """Their learning rate over that of `Optimizer.step`."""
    weight_decay: float
    names: list[str]
    parameters: list[nn.Parameter]


class Optimizer:
    """Updates all parameters at once. Built by `mgpt.optim.config.OptimConfig.build`.

    It is no torch.optim.Optimizer, whose first instance imports torch's compiler for seconds.
    """

    def __init__(self, groups: Sequence[Group], ema_decay: float, matrices: WholeMatrices) -> None:
        self.groups, self._ema_decay, self._matrices = groups, ema_decay, matrices
        self.num_updates = 0
        self.state: dict[str, dict[str, Tensor]] = {}
        """By parameter and state tensor; DTensors where the parameter is one."""
        average = (AVERAGE,) if ema_decay else ()
        for group in groups:
            for name, parameter in zip(group.names, group.parameters, strict=True):
                self.state[name] = {
                    key: torch.zeros_like(parameter.detach())
                    for key in (*group.rule.state, *average)
                }

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Updates every parameter that has a gradient, and the average of all."""
        self.num_updates += 1
        for group in self.groups:
            trained = [
                (name, parameter, parameter.grad)
                for name, parameter in zip(group.names, group.parameters, strict=True)
                if parameter.grad is not None
            ]
            if not trained:
                continue
            rows = Rows(
                shapes=[parameter.shape for _, parameter, _ in trained],
                weights=[_local(parameter).detach() for _, parameter, _ in trained],
                grads=[_local(grad) for _, _, grad in trained],
                state={
                    key: [_local(self.state[name][key]) for name, _, _ in trained]
                    for key in group.rule.state
                },
                count=self.num_updates,
                lr=lr * group.lr_ratio,
                weight_decay=group.weight_decay,
            )
            group.rule.update(rows, self._matrices)
        if self._ema_decay:
            update_average(*self._averages(), self.num_updates, self._ema_decay)

    @torch.no_grad()
    def restart_average(self) -> None:
        """Sets the averaged weights to the weights, if there are any."""
        if self._ema_decay:
            torch._foreach_copy_(*self._averages())

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchanges the averaged weights, if there are any, with the weights."""
        if not self._ema_decay:
            return
        for average, weight in zip(*self._averages(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _averages(self) -> tuple[list[Tensor], list[Tensor]]:
        """Averaged weights and weights, of all parameters."""
        pairs = [
            (_local(self.state[name][AVERAGE]), _local(parameter).detach())
            for group in self.groups
            for name, parameter in zip(group.names, group.parameters, strict=True)
        ]
        return [average for average, _ in pairs], [weight for _, weight in pairs]


def update_average(averages: list[Tensor], weights: list[Tensor], count: int, decay: float) -> None:
    """Moves averages towards the weights after update `count`, counted from 1.

    The first update sets them to the weights, whatever they held; then the decay rises to its
    value, so that the average is never mostly the initial weights.
    """
    if count == 1:
        torch._foreach_copy_(averages, weights)
        return
    torch._foreach_lerp_(averages, weights, 1.0 - min(decay, (1 + count) / (10 + count)))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
