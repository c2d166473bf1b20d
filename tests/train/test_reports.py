"""What ranks tell one another in a step."""

import dataclasses
from types import SimpleNamespace

from mgpt.parallel.dist import World
from mgpt.train.reports import RankReport, meet

OWN = RankReport(
    nll_sum=5.0,
    z_sum=2.0,
    cells=[1.0, 4.0],
    signal=None,
    must_end=False,
    wait_s=0.25,
    own_s=0.5,
    memory_mb=300.0,
)


def meeting(reports: list[RankReport]) -> list[object]:
    """Each rank's view of a meeting of them all."""
    sent: list[list[float]] = []

    def world(rank: int, answer: object) -> SimpleNamespace:
        return SimpleNamespace(rank=rank, size=len(reports), all_reduce_sum=answer)

    def send(values: list[float]) -> list[float]:
        sent.append(values)
        return values

    for rank, report in enumerate(reports):
        meet(world(rank, send), report)
    total = [sum(values) for values in zip(*sent, strict=True)]
    return [meet(world(rank, lambda _: list(total)), r) for rank, r in enumerate(reports)]


def test_alone() -> None:
    step = meet(World(), OWN)
    assert (step.nll_sum, step.z_sum, step.cells) == (5.0, 2.0, [1.0, 4.0])
    assert (step.wait_s, step.own_s, step.memory_mb) == ([0.25], [0.5], [300.0])
    assert step.signal is None and not step.must_end


def test_three_ranks_see_the_same() -> None:
    told = [
        OWN,
        dataclasses.replace(OWN, nll_sum=7.0, signal="SIGUSR1", own_s=0.75),
        dataclasses.replace(OWN, cells=[0.0, 1.0], must_end=True, wait_s=1.5),
    ]
    views = meeting(told)
    assert views[0] == views[1] == views[2]
    assert views[0].nll_sum == 17.0 and views[0].cells == [2.0, 9.0]
    assert views[0].own_s == [0.5, 0.75, 0.5] and views[0].wait_s == [0.25, 0.25, 1.5]
    assert views[0].signal == "SIGUSR1" and views[0].must_end


def test_a_rank_that_is_not_finite_spoils_the_sum_alone() -> None:
    views = meeting([OWN, dataclasses.replace(OWN, nll_sum=float("nan"))])
    assert views[0].nll_sum != views[0].nll_sum
    assert views[0].z_sum == 4.0 and views[0].own_s == [0.5, 0.5] and views[0].signal is None
