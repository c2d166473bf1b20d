"""A rank that fails alone ends all ranks with its status, and one of them says why."""

import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from rank_runs import start_ranks

RANKS = 3
STAGE = """
import os, signal, sys, time
from mgpt.cli import command
from mgpt.errors import DataError
from mgpt.parallel.dist import init_distributed
from mgpt.stop_signals import Interrupted


def run(arguments):
    world = init_distributed(timeout_s=120.0)
    try:
        rank = world.rank
        {body}
        world.barrier()
    finally:
        world.shutdown()


command._run = run
command.console()
"""


def ends(body: str) -> tuple[list[int], str]:
    """Exit statuses and output of ranks whose stage does this, then waits for the others."""
    codes, logs = start_ranks(["-c", STAGE.format(body=body)], RANKS)
    return codes, "".join(logs)


@pytest.mark.parametrize("failing", [0, 2])
def test_a_mistake_of_one_rank_is_said_once_and_ends_all(failing: int) -> None:
    began = time.monotonic()
    codes, shown = ends(f"if rank == {failing}: raise DataError('shard 7 is cut short')")
    assert codes == [2] * RANKS, shown
    assert shown.count("mgpt: shard 7 is cut short") == 1 and "Traceback" not in shown
    assert time.monotonic() - began < 100, "far below the collectives' timeout"


def test_a_mistake_of_all_ranks_is_said_once() -> None:
    codes, shown = ends("raise DataError('no shards')")
    assert codes == [2] * RANKS, shown
    assert shown.count("no shards") == 1 and "Traceback" not in shown


def test_a_mistake_that_is_raised_together_is_said_once() -> None:
    codes, shown = ends("world.raise_together(DataError('cut') if rank == 1 else None)")
    assert codes == [2] * RANKS, shown
    assert shown.count("mgpt: cut") == 1 and "Traceback" not in shown


def test_an_error_in_the_code_has_one_traceback() -> None:
    codes, shown = ends("if rank == 1: [].pop()")
    assert codes == [1] * RANKS, shown
    assert shown.count("Traceback") == 1 and "pop from empty list" in shown


def test_a_killed_rank_has_one_traceback() -> None:
    """Which of the others loses its connection first and reports it does not matter."""
    codes, shown = ends("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)")
    assert codes == [1, -9, 1], shown
    assert shown.count("Traceback") == 1


def test_an_orderly_stop_of_one_rank_lets_the_others_finish_theirs() -> None:
    body = "time.sleep(3 * (rank == 0)); print('finished', rank, flush=True)"
    codes, shown = ends(f"{body}; raise Interrupted('step 3 is saved')")
    assert codes == [75] * RANKS, shown
    assert shown.count("finished") == RANKS and shown.count("step 3 is saved") == 1
