"""Processes that belong together: children end with their parent, errors come back as one message.

A stage that trains runs itself again, once per process, under torch's own launcher; the stage that
was called becomes the launcher. Knows no stage: it is given the command's arguments.

    >>> run_workers(["fp_sft", "--config", "outputs/a/config.yaml"], procs=2, threads=1)
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from mgpt.errors import MgptError, TrainingError
from mgpt.files import create_exclusive

WORKER_MODULE = "mgpt"
PARENT_VARIABLE = "MGPT_PARENT_PID"
ERROR_VARIABLE = "MGPT_ERROR_FILE"
SHUTDOWN_S = 600
INTERRUPTED_STATUS = 75  # EX_TEMPFAIL: stopped in order by a signal; the same command goes on
_PR_SET_PDEATHSIG = 1


class Interrupted(MgptError):
    """A stage that a signal ended in order, with its work saved; exit status 75."""


def is_worker() -> bool:
    """Whether torchrun, or anything else that sets RANK, started this process."""
    return "RANK" in os.environ


def num_processes(backend: str, procs: int | str) -> int:
    """`procs`, where auto is 1 for `single`, else one a GPU, else 2 on a CPU."""
    if procs != "auto":
        return int(procs)
    if backend == "single":
        return 1
    import torch

    return torch.cuda.device_count() or 2


def own_children() -> None:
    """Children started from here on that call `die_with_parent` end when this process does."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def die_with_parent() -> None:
    """Ends this process at once when the mgpt process that started it ends, even by SIGKILL.

    Linux only (prctl); elsewhere nothing happens. Does nothing where no mgpt process started us.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the line above
        raise SystemExit(INTERRUPTED_STATUS)


def run_workers(arguments: Sequence[str], procs: int, threads: int) -> None:
    """Runs `python -m mgpt <arguments>` (WORKER_MODULE) as `procs` ranks and waits for them.

    Raises TrainingError with the message of the rank that failed first, or `Interrupted`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # What it would log about a failed rank is in the error raised below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    own_children()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Half a minute, the launcher's own, is too short for the step under way and a large save.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={procs}"]
    # Passed on to the ranks, which save and end; SIGUSR1 is what schedulers send ahead of time.
    options.append("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    try:
        run(get_args_parser().parse_args([*options, "--module", WORKER_MODULE, *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == INTERRUPTED_STATUS:
            raise Interrupted("stopped by a signal, work saved; the same command goes on") from None
        raise TrainingError(_failure_words(rank, failure)) from None
    except SignalException as error:
        raise Interrupted(f"stopped by {error.sigval.name}; the same command goes on") from None


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


def _failure_words(rank: int, failure: object) -> str:
    message = getattr(failure, "message", "")
    if isinstance(message, dict):
        message = message.get("message", message)
    if message and failure.error_file != "<N/A>":  # type: ignore[attr-defined]
        kind, _, words = str(message).partition(": ")
        return f"{words if kind.endswith('Error') else message} (rank {rank})"
    code = failure.exitcode  # type: ignore[attr-defined]
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    return f"rank {rank} {end}; its last lines above may say why, and the same command goes on"
