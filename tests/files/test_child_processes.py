"""Calls in other processes: answers, errors, and a death at any moment."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from mgpt.errors import DataError, MachineError
from mgpt.files.child_processes import ProcessExecutor

sys.path.append(str(Path(__file__).parent))

from child_functions import (
    die_before_its_answer,
    die_in_its_answer,
    double,
    pid_after,
    recall,
    refuse,
    remember,
)

KILLED = "set fewer workers"


def test_answers_come_in_order_and_from_processes_that_last():
    arrays = [np.full(100_000, number) for number in range(12)]
    with ProcessExecutor(3, KILLED, remember, (7,)) as processes:
        for array, answer in zip(arrays, processes.map(double, arrays), strict=True):
            np.testing.assert_array_equal(answer, 2 * array)
        pids = set(processes.map(pid_after, [0.05] * 12))
        assert processes.submit(recall).result() == 7
    assert 1 <= len(pids) <= 3 and os.getpid() not in pids


def test_an_error_comes_back_as_itself_with_its_traceback():
    with ProcessExecutor(1, KILLED) as processes:
        with pytest.raises(DataError, match="00000: damaged") as caught:
            processes.submit(refuse, "00000").result()
        assert "in refuse" in str(caught.value.__cause__)
        assert processes.submit(pid_after).result() != os.getpid()


@pytest.mark.parametrize("die", [die_before_its_answer, die_in_its_answer])
def test_a_process_that_is_killed_is_named_and_nothing_waits_for_it(die):
    with ProcessExecutor(2, KILLED) as processes:
        waiting = [processes.submit(die), processes.submit(pid_after, 0.2)]
        with pytest.raises(MachineError, match=KILLED):
            waiting[0].result(timeout=30)
        assert waiting[1].result(timeout=30) != os.getpid()


def test_signals_to_the_whole_job_end_none_from_the_first_instant_on():
    with ProcessExecutor(1, KILLED) as processes:
        others = set(multiprocessing.active_children())
        answer = processes.submit(pid_after)
        while not (started := set(multiprocessing.active_children()) - others):
            assert not answer.done()
        (process,) = started
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(process.pid, number)
        assert answer.result(timeout=60) == process.pid
