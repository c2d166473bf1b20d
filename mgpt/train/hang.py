"""A watchdog: ends a rank that makes no progress, with the stacks of all its threads.

A rank that hangs leaves the others waiting in their next collective, so all ranks stop feeding
their watchdogs at about the same time: each prints its stacks and exits, and the launcher ends the
rest. A rank that was stopped (SIGSTOP) cannot print; the others on its machine signal it to print
and continue it, and its own watchdog ends it. If a thread holds the interpreter's lock for ever, no
Python thread can print; a C thread does (`faulthandler`), a little later and without the rank.

    >>> with HangWatch(900.0, world.rank, find_peers(world)) as watch:
    ...     for step in range(steps):
    ...         watch.feed(f"step {step + 1}")
    ...         train(step)
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mgpt.parallel.dist import World

__all__ = ["HUNG_STATUS", "HangWatch", "Peer", "find_peers"]

HUNG_STATUS = 70  # EX_SOFTWARE
_LOOKS = 8  # within the limit
_GRACE_S = 5.0
_STDERR = 2  # not sys.stderr, which may stand for something else
_PRINT_SIGNAL = signal.SIGUSR2


class Peer(NamedTuple):
    """Where a rank runs."""

    host: str
    pid: int


def find_peers(world: World) -> list[Peer]:
    """Host and process id of every rank; collective."""
    return [Peer(*peer) for peer in world.gather_objects([socket.gethostname(), os.getpid()])]


class HangWatch:
    """Watches this process while it is open.

    Args:
        limit_s: maximum seconds between two calls of `feed`; 0: no limit.
        rank: this process.
        peers: all ranks.
    """

    def __init__(self, limit_s: float, rank: int, peers: Sequence[Peer]) -> None:
        self._limit_s, self._rank, self._peers = limit_s, rank, peers
        self._closed = threading.Event()
        self._ends = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch for hangs", daemon=True)
        self._fed = (time.monotonic(), "the start")

    def __enter__(self) -> HangWatch:
        self.feed("the start")
        if self._limit_s:
            faulthandler.register(_PRINT_SIGNAL, file=_STDERR, all_threads=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._limit_s:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            faulthandler.unregister(_PRINT_SIGNAL)

    def feed(self, what: str) -> None:
        """Resets the timer and names the work that follows."""
        if self._overdue:
            self._end()
        self._fed = (time.monotonic(), what)

    @property
    def _overdue(self) -> bool:
        return 0 < self._limit_s < time.monotonic() - self._fed[0]

    def _watch(self) -> None:
        while not self._closed.is_set():
            if self._overdue:
                self._end()
            # Set here, not in `feed`: a lock that is held for ever stops this thread, too.
            faulthandler.dump_traceback_later(self._limit_s + _GRACE_S, exit=True, file=_STDERR)
            self._closed.wait(self._limit_s / _LOOKS)

    def _end(self) -> None:
        """Prints the stacks and ends this process; never returns."""
        self._ends.acquire()  # never released: of two threads that get here, one prints
        _, what = self._fed
        _say(
            f"{self._name(self._rank)} has not finished {what} within {self._limit_s:g} s "
            "(guard.hang_s); its stacks:"
        )
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        for rank, peer in enumerate(self._peers):
            if peer.host == self._peers[self._rank].host and _is_stopped(peer.pid):
                _say(f"{self._name(rank)} was stopped; its stacks:")
                with contextlib.suppress(OSError):
                    os.kill(peer.pid, _PRINT_SIGNAL)  # taken when it is continued
                    os.kill(peer.pid, signal.SIGCONT)
        time.sleep(_GRACE_S)  # lets the others print before a launcher ends them
        os._exit(HUNG_STATUS)

    def _name(self, rank: int) -> str:
        return f"rank {rank} (process {self._peers[rank].pid} on {self._peers[rank].host})"


def _say(text: str) -> None:
    os.write(_STDERR, f"\nmgpt: {text}\n".encode())


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a terminal; False without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
