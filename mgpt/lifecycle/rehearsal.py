"""What a stage's `rehearse` is made of: it does a few units, and says what all will take.

    def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
        \"""Tokenises the stand-in's few samples.\"""
        seconds = timed(lambda: tokenize(cfg, silent_tracker()))
        times = scale(real.input)       # samples of the real input for each of the stand-in's
        return Estimate(seconds * times, times)

`mgpt.stages.rehearsal` calls it, with every path of an earlier stage replaced by its stand-in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mgpt.launching.processes import num_cores
from mgpt.tracking.tracker import Tracker, console_tracker

Scale = Callable[[str], float]
"""How many times the samples of a path's stand-in its real content will be; 1 for what is real."""


@dataclass(frozen=True)
class Estimate:
    """How long a stage takes."""

    seconds: float
    """Without the start of its processes."""
    times: float = 1.0
    """How many times the samples of this stage's stand-in its real output will hold."""
    starts: int = 1
    """Starts of processes, one after the other: its own, and then its workers' at once."""


def silent_tracker() -> Tracker:
    """A tracker that shows nothing and records nothing."""
    return console_tracker("rehearsal", is_main=False)


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shares(workers: int) -> int:
    """Among how many processes work is really divided: no more than there are cores."""
    return max(1, min(workers, num_cores()))
