"""Ends a rank that does nothing any more, with the stacks of all its threads.

A rank that hangs leaves the others waiting in their next collective, so all of them stop feeding
their watch at about the same time: each prints its stacks and ends, and the launcher ends what is
left. A rank that was stopped (SIGSTOP) cannot print; the others on its machine have it print and
continue it, and it finds itself overdue. Where the interpreter's lock is held for ever no thread
of Python's can print, and one of C's does (`faulthandler`), a little later and without a name.

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
    """All ranks, this one among them, by rank; collective."""
    return [Peer(*peer) for peer in world.gather_objects([socket.gethostname(), os.getpid()])]


class HangWatch:
    """Watches this process while it is open.

    Args:
        limit_s: longest time between two feedings; 0 watches nothing.
        rank: of this process.
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
        """Says that something has been done, and what comes next."""
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
            # Wound up here, not in `feed`: a lock that is held for ever stops this thread, too.
            faulthandler.dump_traceback_later(self._limit_s + _GRACE_S, exit=True, file=_STDERR)
            self._closed.wait(self._limit_s / _LOOKS)

    def _end(self) -> None:
        """Prints the stacks and ends this process; never returns."""
        self._ends.acquire()  # for good: where two threads find it overdue, one speaks
        _, what = self._fed
        _say(
            f"{self._words(self._rank)} has not finished {what} within {self._limit_s:g} s "
            "(guard.hang_s); its stacks:"
        )
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        for rank, peer in enumerate(self._peers):
            if peer.host == self._peers[self._rank].host and _is_stopped(peer.pid):
                _say(f"{self._words(rank)} was stopped; its stacks:")
                with contextlib.suppress(OSError):
                    os.kill(peer.pid, _PRINT_SIGNAL)  # taken when it is continued
                    os.kill(peer.pid, signal.SIGCONT)
        time.sleep(_GRACE_S)  # the others' turn to print, before a launcher ends them
        os._exit(HUNG_STATUS)

    def _words(self, rank: int) -> str:
        return f"rank {rank} (process {self._peers[rank].pid} on {self._peers[rank].host})"


def _say(words: str) -> None:
    os.write(_STDERR, f"\nmgpt: {words}\n".encode())


def _is_stopped(pid: int) -> bool:
    """By SIGSTOP or a terminal; False where there is no /proc to tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
