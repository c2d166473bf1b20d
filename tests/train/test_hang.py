"""A process that hangs ends by itself and prints its stacks; one that works is left alone."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from mgpt.parallel.dist import World
from mgpt.train.hang import HUNG_STATUS, HangWatch, Peer, find_peers

HANGS = {
    "loop": "while True: pass",
    "lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "wait": "time.sleep(60)",
    # A regular expression that backtracks for ever never gives the interpreter's lock away.
    "regex": "re.match(r'(a+)+b', 'a' * 64)",
}
CODE = """
import os, re, threading, time
from mgpt.train import hang
hang._GRACE_S = 0.5
def stuck():
    print("working", flush=True)
    {hang}
peers = [hang.Peer("here", os.getpid()), hang.Peer("here", {pid})]
with hang.HangWatch(1.5, 0, peers) as watch:
    for step in range(1, 4):
        watch.feed(f"step {{step}}")
        time.sleep({step_s})
    watch.feed("step 4")
    stuck()
"""


@pytest.mark.parametrize("how", HANGS)
def test_a_hang_ends_with_the_stacks(how: str) -> None:
    step_s = 0.7 if how == "wait" else 0.0
    code = CODE.format(hang=HANGS[how], pid=os.getpid(), step_s=step_s)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert run.stdout == "working\n", "three steps of 0.7 s are within 1.5 s each"
    assert "in stuck" in run.stderr
    if how == "regex":
        assert run.returncode == 1 and "Timeout" in run.stderr
        return
    assert run.returncode == HUNG_STATUS
    assert "mgpt: rank 0 (process" in run.stderr
    assert "has not finished step 4 within 1.5 s (guard.hang_s)" in run.stderr


def test_a_stopped_neighbour_is_continued_and_prints_its_own() -> None:
    wake = CODE.format(hang="time.sleep(60)", pid=os.getpid(), step_s=0.0)
    with subprocess.Popen(
        [sys.executable, "-c", wake], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as stopped:
        assert stopped.stdout is not None and stopped.stderr is not None
        assert stopped.stdout.readline() == "working\n"
        os.kill(stopped.pid, signal.SIGSTOP)
        code = CODE.format(hang="time.sleep(60)", pid=stopped.pid, step_s=0.0)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == HUNG_STATUS
        assert stopped.wait(timeout=20) in (HUNG_STATUS, 1), "1: C's timer, overdue as well"
        assert f"mgpt: rank 1 (process {stopped.pid} on here) was stopped" in run.stderr
        assert "in stuck" in stopped.stderr.read()


def test_one_that_works_is_left_alone() -> None:
    with HangWatch(5.0, 0, find_peers(World())) as watch:
        for step in range(8):
            watch.feed(f"step {step}")
            time.sleep(0.05)
    with HangWatch(0.0, 0, find_peers(World())) as watch:
        watch.feed("step 1")
        time.sleep(0.05)
        watch.feed("step 2")


def test_one_alone_has_no_other_peer() -> None:
    assert find_peers(World()) == [Peer(socket.gethostname(), os.getpid())]
