"""What can go wrong while training runs, and what is done about it.

A signal to stop ends the run in order, after a save. An update that is not finite is skipped by
all ranks and counted; too many in a row end the run. A loss that leaps is reported, and so is a
rank that is slower than the rest. Only signals and non-finite updates change what is trained.

    >>> with StopSignals() as signals:
    ...     for step in steps:
    ...         train(step)
    ...         if world.any(signals.received is not None):
    ...             break
"""

import signal
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mgpt.errors import TrainingError

__all__ = ["GuardConfig", "NonFiniteGuard", "SpikeWatch", "StopSignals", "slowest_rank"]

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class GuardConfig:
    """When a run is stopped, or a person told."""

    max_skipped: int = 8
    """Updates in a row that may be skipped for not being finite; one more ends the run."""
    spike_window: int = 64
    """Steps whose losses say what is usual; 0 turns the watch off."""
    spike_deviations: float = 8.0
    """A loss so many median absolute deviations above the window's median is called a spike."""
    straggler_ratio: float = 1.5
    """A rank is called slow when its part of a step takes so many times the median rank's."""

    def __post_init__(self) -> None:
        if self.max_skipped < 0 or self.spike_window < 0:
            raise ValueError("max_skipped and spike_window must not be negative")
        if self.spike_deviations <= 0 or self.straggler_ratio <= 1:
            raise ValueError("spike_deviations must be above 0 and straggler_ratio above 1")


class StopSignals:
    """Notes SIGTERM and SIGUSR1 while it is open: what Slurm and torchrun send before they kill."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


class NonFiniteGuard:
    """Counts updates that were skipped because the gradient was not finite."""

    def __init__(self, cfg: GuardConfig, skipped: int = 0) -> None:
        self._limit = cfg.max_skipped
        self._in_a_row = 0
        self.skipped = skipped
        """Of the whole run."""

    def note(self, step: int, finite: bool) -> None:
        """Raises TrainingError at the first skipped update beyond the limit."""
        self._in_a_row = 0 if finite else self._in_a_row + 1
        self.skipped += not finite
        if self._in_a_row > self._limit:
            raise TrainingError(
                f"step {step}: the gradient was not finite for {self._in_a_row} steps in a row, "
                f"{self._limit} are allowed (train.guard.max_skipped); "
                "lower the learning rate, or raise z_loss or warmup_steps"
            )


class SpikeWatch:
    """Tells losses that leap above the window before them."""

    def __init__(self, cfg: GuardConfig, recent: Sequence[float] = ()) -> None:
        self._cfg = cfg
        self.recent = list(recent)
        """Losses of the window; part of a checkpoint, so that a resumed run says the same."""

    def note(self, loss: float) -> bool:
        """Whether this loss is a spike. A spike does not join the window."""
        window = self._cfg.spike_window
        if window == 0:
            return False
        if len(self.recent) == window:
            middle = statistics.median(self.recent)
            deviation = statistics.median(abs(value - middle) for value in self.recent)
            if not loss <= middle + self._cfg.spike_deviations * max(deviation, 1e-3):
                return True
        self.recent = [*self.recent, loss][-window:]
        return False


def slowest_rank(cfg: GuardConfig, seconds: Sequence[float]) -> int | None:
    """The slowest rank, where it takes `straggler_ratio` times as long as the median one."""
    if len(seconds) < 2:
        return None
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    slow = seconds[slowest] > cfg.straggler_ratio * statistics.median(seconds)
    return slowest if slow else None
