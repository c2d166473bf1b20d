"""Child processes: that end with the one that started them, and whose own end is noticed.

    process, pipe = start_process(serve, argument)      # serve(its end of the pipe, argument)
    pipe.recv()                                         # an EOFError once the process is dead

    with ProcessExecutor(2, if_killed="a process was killed; set fewer workers") as processes:
        future = processes.submit(function, argument)
        future.result()            # a MachineError with these words, should it be killed

Each process has a pipe of its own, of which nobody else holds its end: when it dies, in the midst
of an answer too, reading from it ends. The processes of `concurrent.futures`
share one pipe and its lock, and one that is killed while it sends leaves all of them waiting for
ever.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from mgpt.errors import MachineError

PARENT_VARIABLE = "MGPT_PARENT_PID"
_PR_SET_PDEATHSIG = 1
# A whole job is sent them (Ctrl-C, a Slurm step's end); what follows from them, the process that
# asks for work decides, and these end with it.
_NOT_FOR_US = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def own_children() -> None:
    """Commands started from here on that call `die_with_parent` end when this process does."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def die_with_parent(parent_pid: int | None = None) -> None:
    """From here on this process ends when the one that started it does, however that ends.

    A child of a process that is killed with SIGKILL otherwise lives on, and writes. Linux kills it
    by itself, already when the thread that started it ends; elsewhere a thread looks four times a
    second.

    Args:
        parent_pid: None: of the process that called `own_children`; nothing happens if none did.
    """
    if parent_pid is None:
        if PARENT_VARIABLE not in os.environ:
            return
        parent_pid = int(os.environ[PARENT_VARIABLE])
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


def start_process(serve: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
    """A new process that calls `serve(pipe, *args)` and ends with this one; our end of the pipe.

    `serve` and its arguments travel by pickle.
    """
    # A forked child would inherit torch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_begin, args=(os.getpid(), serve, theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _begin(parent_pid: int, serve: Callable[..., None], *args: Any) -> None:
    die_with_parent(parent_pid)
    serve(*args)


class ProcessExecutor(ThreadPoolExecutor):
    """An executor of up to `workers` threads, each of which has its calls done by a process.

    A process starts with the first call that needs it, and ends with its thread or, however that
    ends, with this process. Functions, arguments and answers travel by pickle; an error comes back
    as itself, from a RuntimeError with its traceback.

    Args:
        if_killed: the MachineError of a call whose process was killed before its answer was whole.
        prepare: called in each process before all else, with `prepare_args`.
    """

    def __init__(
        self,
        workers: int,
        if_killed: str,
        prepare: Callable[..., None] | None = None,
        prepare_args: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(workers, thread_name_prefix="caller")
        self._if_killed = if_killed
        self._prepare = prepare, prepare_args
        self._of_thread = threading.local()

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """`call(*args, **kwargs)` in one of the processes."""
        return super().submit(self._ask, call, args, kwargs)

    def _ask(self, *request: Any) -> Any:
        pipe = self._pipe()
        try:
            pipe.send(request)
            answer, error, trace = pipe.recv()
        except (EOFError, OSError) as dead:
            raise MachineError(self._if_killed) from dead
        if error is not None:
            raise error from RuntimeError(trace)
        return answer

    def _pipe(self) -> Connection:
        """The pipe to this thread's process, which starts where there is none yet."""
        if not hasattr(self._of_thread, "pipe"):
            # A child begins with the mask of the thread that starts it, so there is no instant at
            # which a signal could end it; this thread needs none of them.
            signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_US)
            _, self._of_thread.pipe = start_process(_serve, *self._prepare)
        return self._of_thread.pipe


def _serve(
    pipe: Connection, prepare: Callable[..., None] | None, prepare_args: tuple[Any, ...]
) -> None:
    if prepare is not None:
        prepare(*prepare_args)
    answer: tuple[Any, Exception | None, str]
    while True:
        try:
            call, args, kwargs = pipe.recv()
        except EOFError:  # its thread has ended
            return
        try:
            answer = call(*args, **kwargs), None, ""
        except Exception as error:
            answer = None, error, traceback.format_exc()
        pipe.send(answer)
