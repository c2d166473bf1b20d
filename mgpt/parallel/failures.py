"""One failure of a run, reported once: the rank that fails tells the others, which end with it.

A mistake that one rank alone can find (rank 0 counts lengths and writes files) leaves the others
waiting in a collective, until that fails with a traceback of a connection that is gone. So each
rank looks for an announcement in the store that the ranks met in. The failing rank announces its
exit status and reports its error; the others end silently with the same status.

    watch = FailureWatch(store, rank=0, size=8)
    ...
    if not watch.announce(error):     # another rank was first and reports this failure
        watch.end()
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

from torch.distributed import Store

from mgpt.errors import MgptError, is_told
from mgpt.stop_signals import INTERRUPTED_STATUS, Interrupted

__all__ = ["FailureWatch"]

_FAILURE, _HEARD = "mgpt/failure", "mgpt/failure/heard"
_LOOK_S = 0.5
_PATIENCE_S = 10.0  # of the failing rank with the others, and of these with its report
_STDERR = 2


class FailureWatch:
    """Watches for the failure of another rank, in a thread, until it is closed.

    Args:
        store: where the ranks met; this takes a connection of its own to it.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store.clone()  # type: ignore[attr-defined]
        self._rank, self._size = rank, size
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch for failures", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the watch: every rank has done its work."""
        self._closed.set()

    def announce(self, error: BaseException) -> bool:
        """Tells the other ranks that this one ends with an error, and waits until they know.

        Returns whether this rank is to report it: not if another one has failed before. An error
        that every rank raises by itself (`World.raise_together`), and an orderly stop, are not
        announced.
        """
        if isinstance(error, Interrupted) or is_told(error) or getattr(error, "is_shared", False):
            self.close()
            return True
        own = json.dumps([self._rank, _status(error), socket.gethostname(), os.getpid()])
        try:
            if self._store.compare_set(_FAILURE, "", own).decode() != own:
                return False
            self.close()
            deadline = time.monotonic() + _PATIENCE_S
            while self._store.add(_HEARD, 0) < self._size - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
        except RuntimeError:  # the store went with the rank that holds it
            self.close()
        return True

    def end(self) -> NoReturn:
        """Ends this process with the status of the rank that failed, once that one has reported."""
        _, status, host, pid = json.loads(self._store.get(_FAILURE))
        sys.stdout.flush()
        # From here on the main thread may lose its connections, which is not worth a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDERR)
        with suppress(RuntimeError):
            self._store.add(_HEARD, 1)
        deadline = time.monotonic() + _PATIENCE_S
        while host == socket.gethostname() and _is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        os._exit(status)

    def _watch(self) -> None:
        with suppress(RuntimeError):  # the store went with the rank that holds it
            while not self._closed.wait(_LOOK_S):
                if self._store.check([_FAILURE]) and not self._closed.is_set():
                    self.end()


def _status(error: BaseException) -> int:
    """The exit status of a process that ends with an error, as the command line gives it."""
    if isinstance(error, MgptError):
        return 2
    return INTERRUPTED_STATUS if isinstance(error, KeyboardInterrupt) else 1


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with suppress(OSError, IndexError):  # a zombie has ended, too
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    return True


def share(error: Any) -> Any:
    """Marks an error that every rank raises."""
    error.is_shared = True
    return error
