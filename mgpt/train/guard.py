"""What can go wrong while training runs, and what is done about it.

An update that is not finite is made by no rank, and counted; too many in a row end the run. A loss
or a gradient that leaps is reported, or its update is not made either, or the run goes back to its
last checkpoint and passes the rows over (`mgpt.train.rollback`). A rank that is slower than the
rest is named; one that hangs ends the run (`mgpt.train.hang`).

    >>> guard = UpdateGuard(GuardConfig(on_spike="skip"))
    >>> grad_norm, updated = backend.step(lr, max_norm, guard.limit(loss))
    >>> guard.note(step, loss, grad_norm, updated)  # None, or what leapt: "loss" or "grad_norm"
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mgpt.errors import TrainingError

__all__ = ["GuardConfig", "SlowRanks", "UpdateGuard"]

_NEVER = -1.0  # a limit below any norm
_LEAST_SIGMA = 0.005  # of the mean: where hardly anything varies, hardly anything would be a leap
_NEW_LEVEL_STEPS = 16
_SLOW_STEPS = 32
_LEAST_DELAY = 0.05  # of a step


@dataclass(frozen=True)
class GuardConfig:
    """When a run is stopped, or set back, or a person told."""

    max_skipped: int = 8
    """Updates in a row that may be left out; one more ends the run."""
    on_spike: Literal["warn", "skip", "rollback"] = "warn"
    """What a leap of the loss or of the gradient's norm does. warn: it is recorded; skip: its
    update is not made; rollback: the newest checkpoint is loaded again, and the rows that led to
    the leap are passed over (a leap before the first checkpoint is skipped)."""
    spike_window: int = 128
    """Steps that say what is usual; 0 turns the watch off."""
    spike_sigma: float = 6.0
    """What leaps lies so many of the window's standard deviations above its mean. Leaps are not
    part of the window, until 16 in a row are taken for a new level."""
    pass_steps: int = 16
    """rollback: steps whose rows are passed over, the leap's own and those before it, as far back
    as the checkpoint."""
    max_rollbacks: int = 8
    """Rollbacks of the whole run; one more ends it."""
    straggler_ratio: float = 1.5
    """A rank is called slow when what it does by itself takes so many times what the others take,
    by medians of 32 steps."""
    hang_s: float = 900.0
    """A step, a save, a validation or a round of pictures that takes longer ends the run, with the
    stacks of all ranks, in seconds; 0: never."""

    def __post_init__(self) -> None:
        for name in ("max_skipped", "spike_window", "max_rollbacks", "hang_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.spike_sigma <= 0 or self.pass_steps < 1:
            raise ValueError(
                f"spike_sigma={self.spike_sigma} must be above 0 and "
                f"pass_steps={self.pass_steps} at least 1"
            )
        if self.straggler_ratio <= 1:
            raise ValueError(f"straggler_ratio={self.straggler_ratio} must be above 1")


class UpdateGuard:
    """Says of each update whether it may be made, from figures that all ranks share.

    Args:
        state: of a guard before, in a checkpoint, so that a resumed run judges alike.
    """

    def __init__(self, cfg: GuardConfig, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._cfg = cfg
        self.skipped: int = state.get("skipped", 0)
        """Updates of the whole run that were not made."""
        self._in_a_row: int = state.get("skipped_in_a_row", 0)
        self._losses, self._norms = (
            _Window(cfg, state.get(f"recent_{kind}", ()), state.get(f"leapt_{kind}", ()))
            for kind in ("losses", "norms")
        )

    def state(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self._in_a_row,
            "recent_losses": self._losses.values,
            "leapt_losses": self._losses.leapt,
            "recent_norms": self._norms.values,
            "leapt_norms": self._norms.leapt,
        }

    def limit(self, loss: float) -> float:
        """The largest norm with which the update may be made; negative where it may not at all."""
        if not math.isfinite(loss):
            return _NEVER
        if self._cfg.on_spike == "warn":
            return math.inf
        return _NEVER if loss > self._losses.bound() else self._norms.bound()

    def note(self, step: int, loss: float, grad_norm: float, updated: bool) -> str | None:
        """Takes what became of a step; returns what leapt in it, if anything.

        Raises TrainingError at the first update beyond those in a row that may be left out.
        """
        leapt = None
        if math.isfinite(loss):
            leapt = "loss" if self._losses.add(loss) else None
            # A backend need not measure the gradients of a step that its loss has ruled out.
            if leapt is None and math.isfinite(grad_norm):
                leapt = "grad_norm" if self._norms.add(grad_norm) else None
        self.skipped += not updated
        self._in_a_row = 0 if updated else self._in_a_row + 1
        if self._in_a_row > self._cfg.max_skipped:
            why = f"its {leapt} leapt" if leapt else "its loss or gradient was not finite"
            raise TrainingError(
                f"step {step}: the updates of {self._in_a_row} steps in a row were left out, "
                f"{self._cfg.max_skipped} may be (guard.max_skipped), the last because "
                f"{why}; lower optim.lr, or raise z_loss or schedule.warmup_steps"
            )
        return leapt


class _Window:
    """The last values of a figure that were usual, and the bound above which the next one leaps."""

    def __init__(self, cfg: GuardConfig, values: Sequence[float], leapt: Sequence[float]) -> None:
        self._size, self._sigmas = cfg.spike_window, cfg.spike_sigma
        self.values = list(values)
        self.leapt = list(leapt)
        """Leaps in a row since the last usual value."""

    def bound(self) -> float:
        """Infinite until the window is full."""
        if not self._size or len(self.values) < self._size:
            return math.inf
        mean = statistics.fmean(self.values)
        sigma = math.sqrt(statistics.fmean((value - mean) ** 2 for value in self.values))
        return mean + self._sigmas * max(sigma, _LEAST_SIGMA * abs(mean))

    def add(self, value: float) -> bool:
        """Whether the value leaps. One that does stays out, unless so many do that it is usual."""
        leaps = value > self.bound()
        self.leapt = [*self.leapt, value] if leaps else []
        if len(self.leapt) == _NEW_LEVEL_STEPS:
            self.values, self.leapt = self.leapt, []
        elif not leaps and self._size:
            self.values = [*self.values, value][-self._size :]
        return leaps


class SlowRanks:
    """Tells the rank that keeps the others waiting.

    What counts is the time of a step in which a rank worked by itself; how long it then waited for
    the others says nothing about it.
    """

    def __init__(
        self, cfg: GuardConfig, hosts: Sequence[str], report: Callable[[str], None]
    ) -> None:
        self._ratio, self._hosts, self._report = cfg.straggler_ratio, hosts, report
        self._recent: deque[np.ndarray] = deque(maxlen=_SLOW_STEPS)
        self._named: int | None = None

    def figures(self, own_s: Sequence[float], step_s: float) -> dict[str, int]:
        """Takes each rank's own seconds of a step, and those of the step; `slow_rank`, if any.

        `report` is told when it is another rank than before.
        """
        self._recent.append(np.array(own_s))
        found = self._slowest(step_s) if len(own_s) > 1 else None
        if found is None:
            self._named = None
            return {}
        rank, ratio = found
        if rank != self._named:
            self._report(
                f"rank {rank} (on {self._hosts[rank]}) is slow: by itself it takes {ratio:.1f} "
                "times as long as the others, which wait for it"
            )
        self._named = rank
        return {"slow_rank": rank}

    def _slowest(self, step_s: float) -> tuple[int, float] | None:
        """The slow rank, and how many times as long as the others it takes."""
        if len(self._recent) < _SLOW_STEPS:
            return None
        usual = np.median(np.stack(self._recent), axis=0)
        slowest = int(usual.argmax())
        others = float(np.median(np.delete(usual, slowest)))
        if usual[slowest] - others < _LEAST_DELAY * step_s:
            return None
        ratio = float(usual[slowest]) / max(others, 1e-9)
        return (slowest, ratio) if ratio > self._ratio else None
