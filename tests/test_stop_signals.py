"""What a signal to stop does to a process that can save, to one that cannot, and to a child."""

import os
import signal
import subprocess
import sys

import pytest

from mgpt.stop_signals import INTERRUPTED_STATUS, STOPPING, StopSignals

READY = "print('ready', flush=True); time.sleep(60)"
SAVES = f"""
import time
from mgpt.stop_signals import StopSignals
with StopSignals():
    {READY}
"""
CANNOT_SAVE = f"""
import time
from mgpt.stop_signals import interrupt_once
interrupt_once()
try:
    {READY}
except KeyboardInterrupt:
    print("unwinding", flush=True)
    time.sleep(60)
"""
PARENT = """
import sys
from mgpt.errors import MgptError, is_told
from mgpt.launching.processes import run_child
try:
    print("status", run_child([sys.executable, "-c", sys.argv[1]]))
except (MgptError, KeyboardInterrupt) as error:
    print(type(error).__name__, error, "told" if is_told(error) else "not told")
"""
CHILD = """
import signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
print("ready", flush=True)
time.sleep(0.1)
while not seen:
    time.sleep(0.01)
time.sleep(0.5)
print("interrupts", len(seen), flush=True)
sys.exit({status})
"""


@pytest.mark.parametrize("name", STOPPING)
def test_a_signal_is_noted_and_the_handlers_come_back(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == name
    assert signal.getsignal(number) == before


def started(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that leads a group of its own and has printed `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test runner in the background of a script starts its children with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_the_first_interrupt_is_answered_and_the_second_ends_the_process() -> None:
    process = started(SAVES)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None and process.stderr.readline() == "\n"
    assert "saving; press Ctrl-C again" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED_STATUS
    assert "stopped at once; run the same command again" in err


def test_an_interrupt_that_is_unwinding_is_not_interrupted_with_a_traceback() -> None:
    process = started(CANNOT_SAVE)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None and process.stdout.readline() == "unwinding\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED_STATUS
    assert "stopped at once" in err and "Traceback" not in err


@pytest.mark.parametrize("to", ["parent", "group"])
@pytest.mark.parametrize(
    ("status", "want"),
    [
        (75, "Interrupted stopped by SIGINT; run the same command again to resume told"),
        (130, "KeyboardInterrupt  told"),
        (0, "Interrupted stopped by SIGINT; run the same command again to resume not told"),
        (2, "status 2"),
    ],
)
def test_a_child_gets_each_interrupt_once(to: str, status: int, want: str) -> None:
    """As a terminal sends it, to all processes in the foreground, and to the parent alone."""
    process = started(PARENT, CHILD.format(status=status))
    if to == "parent":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == f"interrupts 1\n{want}\n", out + err
