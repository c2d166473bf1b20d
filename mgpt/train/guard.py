"""Guards over training: updates that are skipped, spikes, and slow ranks.

No rank applies an update that is not finite; it is counted, and too many in a row end the run. On a
spike of the loss or the gradient norm the run warns, skips the update, or rolls back to its newest
checkpoint and skips the rows (`mgpt.train.run_state`). A rank slower than the others is reported;
one that hangs ends the run (`mgpt.train.hang`).

    >>> guard = UpdateGuard(GuardConfig(on_spike="skip"))
    >>> grad_norm, updated = backend.step(lr, max_norm, guard.limit(loss))
    >>> guard.note(step, loss, grad_norm, updated)  # None, or what spiked: "loss" or "grad_norm"
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
_MIN_SIGMA = 0.005  # of the mean: if hardly anything varies, hardly anything would be a spike
_NEW_LEVEL_STEPS = 16
_SLOW_STEPS = 32
_MIN_DELAY = 0.05  # of a step


@dataclass(frozen=True)
class GuardConfig:
    """When a run warns, skips an update, rolls back or ends."""

    max_skipped: int = 8
    """Maximum consecutive skipped updates before the run ends."""
    on_spike: Literal["warn", "skip", "rollback"] = "warn"
    """Response to a spike of the loss or the gradient norm. warn: record it; skip: skip its update;
    rollback: load the newest checkpoint and skip the rows that led to the spike (before the first
    checkpoint: as skip)."""
    spike_window: int = 128
    """Steps whose mean and deviation a value is compared with; 0 turns spike detection off."""
    spike_sigma: float = 6.0
    """Standard deviations above the window's mean from which a value is a spike. Spikes stay out of
    the window, until 16 in a row are taken for a new level."""
    pass_steps: int = 16
    """rollback: steps whose rows are skipped: the spike's and those before it, back to the
    checkpoint at most."""
    max_rollbacks: int = 8
    """Maximum rollbacks of a whole run; one more ends it."""
    straggler_ratio: float = 1.5
    """Ratio of a rank's own time to that of the others, by medians over 32 steps, from which it is
    reported as slow."""
    hang_s: float = 900.0
    """Maximum seconds for a step, a save, a validation or a round of pictures; beyond it the run
    ends with the stacks of all ranks. 0: no limit."""

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
    """Decides whether an update may be applied, from values that all ranks share.

    Args:
        state: what `state` returned earlier, from a checkpoint.
    """

    def __init__(self, cfg: GuardConfig, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._cfg = cfg
        self.skipped: int = state.get("skipped", 0)
        """Skipped updates of the whole run."""
        self._in_a_row: int = state.get("skipped_in_a_row", 0)
        self._losses, self._norms = (
            _Window(cfg, state.get(f"recent_{kind}", ()), state.get(f"leapt_{kind}", ()))
            for kind in ("losses", "norms")
        )

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return {
            "skipped": self.skipped,
            "skipped_in_a_row": self._in_a_row,
            "recent_losses": self._losses.values,
            "leapt_losses": self._losses.spikes,
            "recent_norms": self._norms.values,
            "leapt_norms": self._norms.spikes,
        }

    def limit(self, loss: float) -> float:
        """The largest gradient norm with which to update; negative if the loss forbids it."""
        if not math.isfinite(loss):
            return _NEVER
        if self._cfg.on_spike == "warn":
            return math.inf
        return _NEVER if loss > self._losses.bound() else self._norms.bound()

    def note(self, step: int, loss: float, grad_norm: float, updated: bool) -> str | None:
        """Records the outcome of a step; returns what spiked in it, if anything.

        Raises TrainingError if more consecutive updates were skipped than allowed.
        """
        spiked = None
        if math.isfinite(loss):
            spiked = "loss" if self._losses.add(loss) else None
            # A backend need not measure the gradients of a step that its loss has ruled out.
            if spiked is None and math.isfinite(grad_norm):
                spiked = "grad_norm" if self._norms.add(grad_norm) else None
        self.skipped += not updated
        self._in_a_row = 0 if updated else self._in_a_row + 1
        if self._in_a_row > self._cfg.max_skipped:
            why = f"its {spiked} spiked" if spiked else "its loss or gradient was not finite"
            raise TrainingError(
                f"step {step}: the updates of {self._in_a_row} steps in a row were skipped, "
                f"guard.max_skipped={self._cfg.max_skipped} are allowed, the last because {why}; "
                "lower optim.lr, or raise z_loss or schedule.warmup_steps"
            )
        return spiked


class _Window:
    """The latest values without spikes, and the bound above which the next one is a spike."""

    def __init__(self, cfg: GuardConfig, values: Sequence[float], spikes: Sequence[float]) -> None:
        self._size, self._sigmas = cfg.spike_window, cfg.spike_sigma
        self.values = list(values)
        self.spikes = list(spikes)
        """Consecutive spikes since the last other value."""

    def bound(self) -> float:
        """Infinite until the window is full."""
        if not self._size or len(self.values) < self._size:
            return math.inf
        mean = statistics.fmean(self.values)
        sigma = math.sqrt(statistics.fmean((value - mean) ** 2 for value in self.values))
        return mean + self._sigmas * max(sigma, _MIN_SIGMA * abs(mean))

    def add(self, value: float) -> bool:
        """Whether the value is a spike. Spikes stay out until there are enough for a new level."""
        is_spike = value > self.bound()
        self.spikes = [*self.spikes, value] if is_spike else []
        if len(self.spikes) == _NEW_LEVEL_STEPS:
            self.values, self.spikes = self.spikes, []
        elif not is_spike and self._size:
            self.values = [*self.values, value][-self._size :]
        return is_spike


class SlowRanks:
    """Finds the rank that the others wait for.

    Compares the time that each rank computes by itself in a step; the time it then waits for the
    others says nothing about it.
    """

    def __init__(
        self, cfg: GuardConfig, hosts: Sequence[str], report: Callable[[str], None]
    ) -> None:
        self._ratio, self._hosts, self._report = cfg.straggler_ratio, hosts, report
        self._recent: deque[np.ndarray] = deque(maxlen=_SLOW_STEPS)
        self._reported: int | None = None

    def figures(self, own_s: Sequence[float], step_s: float) -> dict[str, int]:
        """Records each rank's own seconds of a step and the step's; returns `slow_rank`, if any.

        `report` is told when it is another rank than before.
        """
        self._recent.append(np.array(own_s))
        found = self._slowest(step_s) if len(own_s) > 1 else None
        if found is None:
            self._reported = None
            return {}
        rank, ratio = found
        if rank != self._reported:
            self._report(
                f"rank {rank} (on {self._hosts[rank]}) is slow: by itself it takes {ratio:.1f} "
                "times as long as the others, which wait for it"
            )
        self._reported = rank
        return {"slow_rank": rank}

    def _slowest(self, step_s: float) -> tuple[int, float] | None:
        """The slow rank, and its time over that of the others."""
        if len(self._recent) < _SLOW_STEPS:
            return None
        medians = np.median(np.stack(self._recent), axis=0)
        slowest = int(medians.argmax())
        others = float(np.median(np.delete(medians, slowest)))
        if medians[slowest] - others < _MIN_DELAY * step_s:
            return None
        ratio = float(medians[slowest]) / max(others, 1e-9)
        return (slowest, ratio) if ratio > self._ratio else None
