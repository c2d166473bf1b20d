"""Runs a job's units in any number of processes on any number of machines, each unit once.

A job names its units, says which are done, and opens a worker that does one. Processes share the
units through `claims`; a process that dies loses its unit to the next one that asks, and is
started again a few times. Processes end with the one that started them. What a unit's output is
must not depend on who does it; this module knows nothing of what that is.

    run_units(TokenizeJob(cfg), workers=4, advance=bar.advance)

may run at the same time, with the same job, on another machine that sees the same output folder,
local or on an object store. Whoever starts it (torchrun, srun, a Slurm array, a person) just
starts it again: each call joins, and returns when all units are done. What launchers set in the
environment only spreads the calls over the units and the GPUs.
"""

import logging
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from data_pipeline.tokenizing.claims import Claim, ClaimLost, Claims
from mgpt import errors
from mgpt.files.child_processes import start_process
from mgpt.files.storage import Location, remove_tree
from mgpt.launching.place import Place

WORK_FOLDER = ".work"
MAX_RESTARTS = 3  # of one process slot; more means that a unit itself kills whoever takes it
_IDLE_S, _LONGEST_IDLE_S = 0.2, 5.0  # between looks at units that others hold
_LOOK_S = 1.0  # between listings of what is finished, where that is quick
_REPORT_S = 0.2

_log = logging.getLogger(__name__)


class UnitWorker(Protocol):
    """Does units, one at a time, in one process."""

    def work(self, unit: str, claim: Claim, advance: Callable[[int], None]) -> None:
        """Do one unit, calling `advance` with counts of samples and `claim.check` before it
        publishes anything."""


class Job(Protocol):
    """What to do; travels to the processes by pickle, so it holds settings only."""

    @property
    def output(self) -> Location: ...

    def units(self) -> Sequence[str]:
        """Names of all units, the same in every process."""

    def finished(self) -> set[str]:
        """Units that are done, by one listing."""

    def is_done(self, unit: str) -> bool:
        """Whether this unit is done now."""

    def open(self, slot: int) -> UnitWorker:
        """What does the work in process number `slot` of this machine: loads models, sets thread
        counts."""


def run_units(job: Job, workers: int, advance: Callable[[int], None]) -> None:
    """Return when every unit is done, by whomever; then the claims' folder is gone.

    Args:
        workers: processes to start; with 1, this process does the work itself.
        advance: called with the number of samples that this call's processes have done since.

    Raises:
        MgptError: what a worker met, or a worker that keeps being killed.
    """
    finished = job.finished()
    pending = [unit for unit in job.units() if unit not in finished]
    place = Place.of_environment()
    if pending and workers == 1:
        _work_through(job, place.first(pending, 0, 1), place.local, advance)
    elif pending:
        _Crew(job, pending, min(workers, len(pending)), advance, place).run()
    work = job.output / WORK_FOLDER
    if not Claims(work).others_at_work(done=job.units()):  # more units came, and another is at them
        remove_tree(work)


def _work_through(
    job: Job, pending: Sequence[str], slot: int, advance: Callable[[int], None]
) -> None:
    worker: UnitWorker | None = None
    finished: set[str] = set()
    look_at, pause_s = 0.0, _IDLE_S
    with Claims(job.output / WORK_FOLDER) as claims:
        while pending:
            left = []
            for unit in pending:
                if time.monotonic() >= look_at:
                    started = time.monotonic()
                    finished = job.finished()
                    # A listing of very many takes long, and is worth as long a time of work.
                    look_at = time.monotonic() + max(_LOOK_S, 20 * (time.monotonic() - started))
                if unit in finished:
                    continue
                claim = claims.take(unit)
                if claim is None:
                    left.append(unit)
                    continue
                try:
                    if not job.is_done(unit):  # its last holder may have finished meanwhile
                        worker = worker or job.open(slot)
                        worker.work(unit, claim, advance)
                except ClaimLost:
                    left.append(unit)
                except errors.MachineError:
                    # Whoever takes a unit over removes the files that its last holder writes.
                    if claims.holds(claim):
                        raise
                    left.append(unit)
                finally:
                    claim.release()
            if len(left) == len(pending):  # others are at all that is left
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_IDLE_S)
            else:
                pause_s = _IDLE_S
            pending = left


# ------------------------------------------------------------------ processes


class _Crew:
    """The processes of one call, their reports, and their successors."""

    def __init__(
        self,
        job: Job,
        units: list[str],
        workers: int,
        advance: Callable[[int], None],
        place: Place,
    ) -> None:
        self._job, self._units, self._advance = job, units, advance
        self._workers, self._place = workers, place
        self._restarts = [0] * workers
        self._running: dict[Connection, tuple[int, BaseProcess]] = {}

    def run(self) -> None:
        try:
            for slot in range(self._workers):
                self._start(slot)
            while self._running:
                for connection in wait(list(self._running)):
                    assert isinstance(connection, Connection)
                    self._receive(connection)
        finally:
            for connection, (_, process) in self._running.items():
                process.kill()
                process.join()
                connection.close()

    def _start(self, slot: int) -> None:
        units = self._place.first(self._units, slot, self._workers)
        local_slot = self._place.local * self._workers + slot
        process, reports = start_process(_work_in_child, self._job, units, local_slot)
        self._running[reports] = (slot, process)

    def _receive(self, connection: Connection) -> None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self._ended(connection)
            return
        if isinstance(message, int):
            self._advance(message)
        else:
            kind, text = message
            raise getattr(errors, kind)(text)

    def _ended(self, connection: Connection) -> None:
        slot, process = self._running.pop(connection)
        connection.close()
        process.join()
        assert process.exitcode is not None, "it was joined"
        if process.exitcode == 0:
            return
        if process.exitcode > 0:
            raise RuntimeError(f"worker {slot} failed; its traceback stands above")
        name = signal.Signals(-process.exitcode).name
        if self._restarts[slot] == MAX_RESTARTS:
            raise errors.MachineError(
                f"worker {slot} was killed {MAX_RESTARTS + 1} times, last by {name}; if memory is "
                "short, set fewer workers or smaller batches, then run the same command again"
            )
        self._restarts[slot] += 1
        _log.warning("worker %d was killed by %s; its unit is free, a new one starts", slot, name)
        self._start(slot)


def _work_in_child(reports: Connection, job: Job, units: Sequence[str], slot: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the parent, which ends this
    counted, reported_at = 0, time.monotonic()

    def advance(samples: int) -> None:
        nonlocal counted, reported_at
        counted += samples
        if time.monotonic() - reported_at >= _REPORT_S:
            reports.send(counted)
            counted, reported_at = 0, time.monotonic()

    try:
        _work_through(job, units, slot, advance)
        reports.send(counted)
    except errors.MgptError as error:
        reports.send((type(error).__name__, str(error)))
    finally:
        reports.close()
