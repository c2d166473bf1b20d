"""The learning rate of a step, as a pure function of the step.

>>> cfg = ScheduleConfig(kind="cosine", warmup_steps=10)
>>> [learning_rate(cfg, step, 100, peak=1e-3) for step in (0, 5, 10, 100)]
[0.0, 0.0005, 0.001, 0.0]
"""

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["ScheduleConfig", "decayed", "half_cosine", "learning_rate"]


@dataclass(frozen=True)
class ScheduleConfig:
    """A linear warm-up, then one of four curves to `min_ratio` at the last step."""

    kind: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    """constant: fine-tuning as published; cosine: half a cosine, Chameleon's pretraining; linear: a
    straight line; wsd: constant, then a straight line over the last decay_share of the steps."""
    warmup_steps: int = 0
    """Steps of linear rise from 0; the rate of step 0 is then 0, as in the official code."""
    min_ratio: float = 0.0
    """What is left of the peak at the last step; not for constant."""
    decay_share: float = 0.2
    """wsd: share of all steps over which the rate falls."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative")
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"min_ratio={self.min_ratio} must lie in [0, 1]")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share={self.decay_share} must lie in (0, 1]")


def learning_rate(cfg: ScheduleConfig, step: int, total_steps: int, peak: float) -> float:
    """The rate of step `step`, counted from 0, of `total_steps`."""
    if step < cfg.warmup_steps:
        return peak * step / cfg.warmup_steps
    if cfg.kind == "constant":
        return peak
    start = float(cfg.warmup_steps)
    if cfg.kind == "wsd":
        start = max(start, total_steps * (1.0 - cfg.decay_share))
    progress = min(1.0, max(0.0, (step - start) / max(1.0, total_steps - start)))
    left = half_cosine(progress) if cfg.kind == "cosine" else 1.0 - progress
    return peak * decayed(left, cfg.min_ratio)


def half_cosine(progress: float) -> float:
    """Falls from 1 to 0 as `progress` rises from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def decayed(left: float, min_ratio: float) -> float:
    """The share of the peak if `left` of the way down to `min_ratio` is left."""
    return min_ratio + (1.0 - min_ratio) * left
