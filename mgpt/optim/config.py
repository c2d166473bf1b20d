"""Which optimizer, its settings, and which rule updates which parameter.

The optimizer named by `kind` updates the parameters that it takes, AdamW the others. Weight decay
applies to every weight matrix, the input embedding and the output head among them; not to the
norms' weights and biases, including the two-dimensional ones of qk-norm (the official code decays
them).

    >>> optimizer = OptimConfig(kind="muon", lr=2e-3).build(model.named_parameters())
    >>> OptimConfig().state_names("model.norm.weight", (4096,))
    ('exp_avg', 'exp_avg_sq')
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from mgpt.optim.adamw import AdamW
from mgpt.optim.optimizer import AVERAGE, Group, Optimizer
from mgpt.optim.rule import LocalMatrices, Rule, WholeMatrices
from mgpt.optim.table import OPTIMIZERS

__all__ = ["OptimConfig", "is_decayed"]


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer's settings. The defaults are Lumina-mGPT's (paper) with the clipping of its
    example."""

    kind: str = "adamw"
    """adamw, or muon: Muon for the matrices inside the blocks and AdamW for embedding, head and
    norms (single and fsdp2 only). A name of mgpt.optim.table."""
    lr: float = 2e-5
    """Peak learning rate; the schedule multiplies it."""
    adamw_lr: float | None = None
    """muon: peak learning rate of what AdamW updates; null: lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of AdamW's second moment; Chameleon's pretraining has 1e-5."""
    momentum: float = 0.95
    """muon: decay rate of the momentum."""
    nesterov: bool = True
    """muon: whether the update looks one step ahead of the momentum."""
    newton_schulz_steps: int = 5
    """muon: steps that orthogonalize an update."""
    update_scale: float = 0.2
    """muon: root mean square of an update over the learning rate. 0.2 is about AdamW's, so that
    both take the same learning rate (Moonlight)."""
    weight_decay: float = 0.1
    """Per update, times the learning rate; on matrices only."""
    max_norm: float = 4.0
    """Gradients are scaled down to this norm, taken over all ranks; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Keeps an exponential moving average of the weights with this decay, which the finished model
    then has; early on min(ema_decay, (1 + updates) / (10 + updates)). 0: none."""

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise ValueError(f"kind={self.kind!r} is none of {', '.join(OPTIMIZERS)}")
        for field in ("lr", "adamw_lr"):
            value = getattr(self, field)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{field}={value} must lie between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1)")
        for field in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must lie in [0, 1)")
        if not 1 <= self.newton_schulz_steps <= 20:
            raise ValueError(f"newton_schulz_steps={self.newton_schulz_steps} must lie in 1..20")
        if self.update_scale <= 0:
            raise ValueError(f"update_scale={self.update_scale} must be above 0")
        for field in ("eps", "weight_decay", "max_norm"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")

    def rule_of(self, name: str, shape: Sequence[int]) -> type[Rule]:
        """The rule that updates the parameter of this name and whole shape."""
        chosen = OPTIMIZERS[self.kind]
        return chosen if chosen.takes(name, shape) else AdamW

    def state_names(self, name: str, shape: Sequence[int]) -> tuple[str, ...]:
        """The float32 tensors kept for a parameter beside its weight, each of its shape."""
        average = (AVERAGE,) if self.ema_decay else ()
        return (*self.rule_of(name, shape).state, *average)

    def state_numel(self, shapes: Iterable[tuple[str, Sequence[int]]]) -> int:
        """Elements of all state tensors of the parameters with these names and shapes."""
        return sum(len(self.state_names(name, shape)) * math.prod(shape) for name, shape in shapes)

    def lr_ratio(self, rule: type[Rule]) -> float:
        """What a rule's learning rate is, over `lr`."""
        if self.adamw_lr is None or rule is OPTIMIZERS[self.kind]:
            return 1.0
        return self.adamw_lr / self.lr

    def groups(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], decays: bool = True
    ) -> list[Group]:
        """The parameters by rule, those that decay apart from the others.

        `decays=False` leaves weight decay to the caller, for tensors of which only some rows train.
        """
        groups: dict[tuple[type[Rule], bool], Group] = {}
        for name, parameter in named_parameters:
            rule = self.rule_of(name, parameter.shape)
            key = rule, is_decayed(name, parameter.ndim)
            if key not in groups:
                decay = self.weight_decay if decays and key[1] else 0.0
                groups[key] = Group(rule(self), self.lr_ratio(rule), decay, [], [])
            groups[key].names.append(name)
            groups[key].parameters.append(parameter)
        return list(groups.values())

    def build(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        decays: bool = True,
        matrices: WholeMatrices | None = None,
    ) -> Optimizer:
        """The optimizer over parameters under their names in the model, its state zero.

        Args:
            decays: see `groups`.
            matrices: makes sharded matrices whole, for rules that ask for them; None: they are.
        """
        if matrices is None:
            matrices = LocalMatrices()
        return Optimizer(self.groups(named_parameters, decays), self.ema_decay, matrices)


def is_decayed(name: str, ndim: int) -> bool:
    """Whether weight decay applies to the parameter of this name and number of dimensions."""
    return ndim >= 2 and "norm" not in name.split(".")[-2]
