"""Processes that belong together: ranks and commands, whose errors come back as one message.

A stage that trains runs itself again, once per process, under torch's own launcher; the stage that
was called becomes the launcher. Knows no stage: it is given the command's arguments.

    >>> run_workers(["fp_sft", "--config", "outputs/a/config.yaml"], procs=2, threads=1)
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from mgpt.errors import MgptError, TrainingError, told
from mgpt.files.atomic import create_exclusive
from mgpt.files.child_processes import own_children
from mgpt.stop_signals import INTERRUPTED_STATUS, SAVED_STATUS, Interrupted, end_at_once

WORKER_MODULE = "mgpt"
ERROR_VARIABLE = "MGPT_ERROR_FILE"
SHUTDOWN_S = 600
RESUME = "run the same command again to resume"
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Gloo's collectives cost a small model more than a third rank computes (two ranks took 200 to 240
# ms a step where one process with two threads took 140). Evaluation shares cases without any; each
# of its processes holds the model and torch.
_MOST_ON_CPU = {"training": 2, "evaluate": 8}


def is_worker() -> bool:
    """Whether torchrun, or anything else that sets RANK, started this process."""
    return "RANK" in os.environ


def num_processes(work: str, procs: int | str, threads: int = 1) -> int:
    """`procs`, where auto is one a GPU, else what is fastest on this CPU.

    On a CPU that is as many as its cores hold at `threads` each, up to `_MOST_ON_CPU` of `work`:
    more ranks than cores wait for one another in every collective.
    """
    if procs != "auto":
        return int(procs)
    import torch

    gpus = torch.cuda.device_count()
    return gpus or max(1, min(num_cores() // threads, _MOST_ON_CPU[work]))


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_workers(arguments: Sequence[str], procs: int, threads: int) -> None:
    """Runs `python -m mgpt <arguments>` (WORKER_MODULE) as `procs` ranks and waits for them.

    Raises TrainingError with the message of the rank that failed first, or `Interrupted`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # What it would log about a failed rank is in the error raised below.
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    own_children()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Half a minute, the launcher's own, is too short for the step under way and a large save.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={procs}"]
    # Passed on to the ranks, which save and end; SIGUSR1 is what schedulers send ahead of time.
    options.append("--signals-to-handle=SIGTERM,SIGHUP,SIGQUIT,SIGUSR1")
    before = signal.signal(signal.SIGINT, _interrupt_ranks())
    try:
        run(get_args_parser().parse_args([*options, "--module", WORKER_MODULE, *arguments]))
    except ChildFailedError as error:
        rank, failure = _first_failure(error.failures)
        if failure.exitcode == SAVED_STATUS:
            raise told(Interrupted(f"stopped by a signal; {RESUME}")) from None
        if failure.exitcode == INTERRUPTED_STATUS:
            raise told(KeyboardInterrupt()) from None
        raise TrainingError(_failure_words(rank, failure)) from None
    except SignalException as error:
        stop = Interrupted(f"stopped by {error.sigval.name}; {RESUME}")
        raise (told(stop) if error.sigval == signal.SIGINT else stop) from None
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_ranks() -> Callable[[int, FrameType | None], None]:
    """A handler of SIGINT for the launcher. The first one is passed on to the ranks, which torch
    starts in sessions of their own; the second ends this process and, with it, its ranks."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            end_at_once()
        raise SignalException("SIGINT", sigval=signal.SIGINT)

    return interrupt


def run_child(
    command: Sequence[str],
    tick: Callable[[], None] = lambda: None,
    every_s: float = 10.0,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs a command to its end and returns its status; calls `tick` every so often.

    The child has a session of its own, and SIGINT, SIGTERM and SIGUSR1 to this process are passed
    on to it: it receives a Ctrl-C once, whether the terminal or somebody else sends it. Ctrl-Z
    stops both.

    Raises:
        Interrupted: a signal stopped the child, with its work saved if it can save.
        KeyboardInterrupt: Ctrl-C stopped it, and it saves nothing halfway.
    """
    received: list[int] = []
    too_early: list[int] = []
    child: subprocess.Popen[Any] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if child is None:
            too_early.append(number)
        else:
            child.send_signal(number)

    def suspend(number: int, frame: FrameType | None) -> None:
        if child is not None:
            os.killpg(child.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT
        if child is not None:
            os.killpg(child.pid, signal.SIGCONT)

    handlers = {**dict.fromkeys(_PASSED_ON, pass_on), signal.SIGTSTP: suspend}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        child = subprocess.Popen(command, start_new_session=True, env=environment)
        while too_early:
            child.send_signal(too_early.pop())
        while True:
            try:
                status = child.wait(timeout=every_s)
                break
            except subprocess.TimeoutExpired:
                tick()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status == INTERRUPTED_STATUS:
        raise told(KeyboardInterrupt())
    name = signal.Signals(received[0]).name if received else "a signal"
    stop = Interrupted(f"stopped by {name}; {RESUME}")
    if status == SAVED_STATUS:
        raise told(stop)
    if received and -status in (0, *received):
        raise stop
    return status


def report_failure(error: BaseException) -> bool:
    """Hands a worker's error to its launcher; False where a person at the console must see it.

    A job's script reads the first error of its ranks from the file that ERROR_VARIABLE names.
    """
    if ERROR_VARIABLE in os.environ:
        words = f"{type(error).__name__}\n{error} (rank {os.environ.get('RANK', '0')})\n"
        with suppress(OSError, MgptError):
            create_exclusive(os.environ[ERROR_VARIABLE], words.encode())
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True


def _first_failure(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """The earliest failure that has a message, else the earliest; a rank that only follows the
    failure of another one has none."""

    def order(found: tuple[int, Any]) -> tuple[bool, int]:
        return found[1].error_file == "<N/A>", found[1].timestamp

    return min(failures.items(), key=order)


def _failure_words(rank: int, failure: object) -> str:
    message = getattr(failure, "message", "")
    if isinstance(message, dict):
        message = message.get("message", message)
    if message and failure.error_file != "<N/A>":  # type: ignore[attr-defined]
        kind, _, words = str(message).partition(": ")
        return f"{words if kind.endswith('Error') else message} (rank {rank})"
    code = failure.exitcode  # type: ignore[attr-defined]
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    return f"rank {rank} {end}; its last lines above may say why; {RESUME}"
