"""What the ranks tell one another in a step: all of it in one small all-reduce, before the update.

Losses and counts are added up. What is asked of each rank by itself, its seconds and its memory,
travels in places of its own, which the others leave at zero.

    >>> step = meet(world, RankReport(nll_sum=5.0, z_sum=1.0, cells=[], signal=None,
    ...                               must_end=False, wait_s=0.0, own_s=0.1, memory_mb=300.0))
    >>> step.nll_sum, step.own_s
    (5.0, [0.1])
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mgpt.parallel.dist import World
from mgpt.stop_signals import STOPPING

__all__ = ["RankReport", "StepReport", "meet"]

_OF_EACH = ("wait_s", "own_s", "memory_mb")


@dataclass(frozen=True)
class RankReport:
    """One rank's part."""

    nll_sum: float
    z_sum: float
    cells: Sequence[float]
    """Of the loss tally; as many on every rank."""
    signal: str | None
    """One of STOPPING, where it came to this rank."""
    must_end: bool
    """The checkpoint store has a reason to end the run."""
    wait_s: float
    """For rows."""
    own_s: float
    """In which this rank worked by itself, or kept the others waiting."""
    memory_mb: float


@dataclass(frozen=True)
class StepReport:
    """All ranks' parts: sums, whatever came to any rank, and lists by rank."""

    nll_sum: float
    z_sum: float
    cells: list[float]
    signal: str | None
    must_end: bool
    wait_s: list[float]
    own_s: list[float]
    memory_mb: list[float]


def meet(world: World, report: RankReport) -> StepReport:
    """What all ranks report, the same on each; collective."""
    flags = [*(float(report.signal == name) for name in STOPPING), float(report.must_end)]
    places = [0.0] * (len(_OF_EACH) * world.size)
    for index, name in enumerate(_OF_EACH):
        places[index * world.size + world.rank] = getattr(report, name)
    totals = world.all_reduce_sum([report.nll_sum, report.z_sum, *report.cells, *flags, *places])
    places = totals[len(totals) - len(places) :]
    *signals, must_end = totals[2 + len(report.cells) : len(totals) - len(places)]
    by_rank = [
        places[index * world.size : (index + 1) * world.size] for index in range(len(_OF_EACH))
    ]
    came = (name for name, count in zip(STOPPING, signals, strict=True) if count)
    return StepReport(
        totals[0],
        totals[1],
        totals[2 : 2 + len(report.cells)],
        next(came, None),
        must_end > 0,
        *by_rank,
    )
