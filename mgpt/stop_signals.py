"""Signals that ask this process to stop, and what Ctrl-C does.

A stage whose work can be saved at any step holds `StopSignals` open and asks it after each step;
everything else is interrupted by the first Ctrl-C (`KeyboardInterrupt`). Either way a second Ctrl-C
ends the process at once. Exit statuses: 75 when the work is saved, 130 when it was interrupted.

    >>> interrupt_once()
    >>> with StopSignals() as signals:
    ...     while signals.received is None:
    ...         train_step()
    >>> save()
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

from mgpt.errors import MgptError

__all__ = [
    "INTERRUPTED_STATUS",
    "SAVED_STATUS",
    "STOPPING",
    "Interrupted",
    "StopSignals",
    "interrupt_once",
]

STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Ctrl-C, and what Slurm and torchrun send before they kill."""
SAVED_STATUS = 75  # EX_TEMPFAIL: stopped by a signal with the work saved
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells report it
_STDERR = 2  # not sys.stderr: a handler may run in the middle of a print


class Interrupted(MgptError):
    """A stage that a signal stopped with its work saved; its exit status is SAVED_STATUS."""


class StopSignals:
    """Records SIGINT, SIGTERM and SIGUSR1 while it is open; a second SIGINT ends the process.

    SIGINT is handled even if this process started with it ignored, as background jobs of a script
    do: whoever sends it wants a stop, and this one loses nothing.

    Args:
        is_main: whether this process tells the user what a Ctrl-C does; one of several ranks.
    """

    def __init__(self, is_main: bool = True) -> None:
        self.received: str | None = None
        self._is_main = is_main
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        numbers = [signal.Signals[name] for name in STOPPING]
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number != signal.SIGINT:
            return
        self._interrupts += 1
        if self._interrupts > 1:
            end_at_once()
        if self._is_main:
            say("finishing this step and saving; press Ctrl-C again to stop at once without saving")


def interrupt_once() -> None:
    """From here on the first SIGINT raises KeyboardInterrupt and the second ends the process, so
    that what the first one unwinds is not interrupted halfway with a traceback."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: end_at_once())
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def end_at_once() -> None:
    """Ends this process without any cleanup; does not return."""
    say("stopped at once; run the same command again to resume from what was saved before")
    os._exit(INTERRUPTED_STATUS)


def say(words: str) -> None:
    """One line on stderr, from within a signal handler too."""
    sys.stdout.flush()
    os.write(_STDERR, f"\nmgpt: {words}\n".encode())
