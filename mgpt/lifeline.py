"""Processes that end with the one that started them, however that ends.

context = multiprocessing.get_context("spawn")
ProcessPoolExecutor(2, context, initializer=die_with_parent, initargs=(os.getpid(),))
"""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """From here on this process ends when the one that started it does, however that ends.

    A child of a process that is killed with SIGKILL otherwise lives on, and writes. Linux kills it
    by itself, already when the thread that started it ends; elsewhere a thread looks four times a
    second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the line above
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(0.25)
        os._exit(1)

    threading.Thread(target=watch, name="watch parent", daemon=True).start()
