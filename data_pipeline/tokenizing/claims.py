"""Who works on which unit: atomic claims in a shared folder, freed when their holder is gone.

A claim on a unit is a file `<unit>.<n>` that is created whole and exclusively (a hard link; on an
object store a PUT on condition that there is none) and never changed; the highest n holds the
unit. Taking over is creating n + 1, so nothing is deleted or renamed to win, and two takers cannot
both succeed. Each process renews a file of its own, `.alive-<nonce>`, as its heartbeat. A holder
that is dead on this same machine loses its units at once; any other loses them after `LEASE_S`
without a heartbeat. A holder asks `check` right before it publishes: one that was overtaken
(suspended, cut off) then stops instead of publishing.

Host, boot, process and time stand in these files only, and the folder goes when the job is done.

    with Claims(output / ".work") as claims:
        claim = claims.take("00000")              # None: somebody else is at it
        ...
        writer.close(..., before_publish=claim.check)
        claim.release()
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mgpt.errors import MachineError
from mgpt.files.storage import Location, create, locate, modified_times, touch

LEASE_S = 60.0
HEARTBEAT_S = 10.0
_RELEASED = b'{"released": true}'
_TRIALS = 16  # creations of one object, each successful, that show that a store overwrites


class ClaimLost(Exception):
    """Another worker took the unit over; what this one made of it must not be published."""


@dataclass(frozen=True)
class Claim:
    """A unit that is this process's own, for as long as `check` says so."""

    claims: "Claims"
    unit: str
    number: int

    def check(self) -> None:
        """Raises ClaimLost unless the unit is still this process's own."""
        if not self.claims.holds(self):
            raise ClaimLost(self.unit)

    def release(self) -> None:
        """Give the unit up, finished or not."""
        self.claims.release(self)


class Claims:
    """The claims in one folder, and a thread that keeps those of this process alive."""

    def __init__(
        self, folder: Location, lease_s: float = LEASE_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._folder = locate(folder)
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        nonce = secrets.token_hex(8)
        self._identity = json.dumps({**_this_process(), "nonce": nonce}).encode()
        self._alive = self._folder / _alive_name(nonce)
        self._held: list[Claim] = []
        self._holders: dict[tuple[str, float], dict[str, Any]] = {}
        self._clock_s = 0.0  # the folder's clock minus ours
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> "Claims":
        while not self._join():
            pass
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()
        return self

    def _join(self) -> bool:
        """Show this process in the folder; False where the folder went meanwhile, with its job."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._overwrites():
                raise MachineError(
                    f"{self._folder}: this store overwrites what it was asked to create once (If-"
                    "None-Match: *), so workers could not share a job there; give another output"
                )
            self._renew()
        except FileNotFoundError:
            return False
        except OSError as error:
            if isinstance(error, FileExistsError) and not self._folder.exists():
                return False  # it was there, and went before `mkdir` looked what it is
            raise MachineError(
                f"{self._folder}: cannot be created ({error.strerror}); give another output"
            ) from error
        return True

    def _overwrites(self) -> bool:
        """Whether what is created a second time replaces the first. A worker that ends the job
        may delete the first in between, so once is no proof; each deletes it once at most."""
        # Of other bytes each, since `create` knows a creation of ours by its bytes.
        create(self._alive, b"first")
        return all(create(self._alive, b"%d" % trial) for trial in range(_TRIALS))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        for claim in list(self._held):
            self.release(claim)
        self._alive.unlink(missing_ok=True)

    def take(self, unit: str) -> Claim | None:
        """The unit's claim, or None while a living process holds it."""
        times = modified_times(self._folder)
        newest = _newest(unit, times)
        if newest is not None and not self._is_free(f"{unit}.{newest}", times):
            return None
        claim = Claim(self, unit, 0 if newest is None else newest + 1)
        try:
            if not create(self._path(claim), self._identity):
                return None
        except FileNotFoundError:  # a job of fewer units ended, and the folder went with it
            self._join()
            return None
        self._held.append(claim)
        return claim

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is the unit's newest, and this process's own."""
        return _newest(claim.unit, modified_times(self._folder)) == claim.number and (
            self._read(self._path(claim)) == self._identity
        )

    def release(self, claim: Claim) -> None:
        """Free the unit, unless it was taken over. A unit that was taken over from another keeps
        its numbers, lest the other, late, took its own claim for the newest."""
        if claim in self._held:
            self._held.remove(claim)
        with suppress(FileNotFoundError):  # the job ended and its folder went
            if not self.holds(claim):
                return
            if claim.number == 0:
                self._path(claim).unlink(missing_ok=True)
            else:
                create(self._folder / f"{claim.unit}.{claim.number + 1}", _RELEASED)

    def others_at_work(self, done: Collection[str]) -> bool:
        """Whether a living process holds a unit that is none of these."""
        times = modified_times(self._folder)
        units = {name.rpartition(".")[0] for name in times if name.rpartition(".")[2].isdigit()}
        return any(
            not self._is_free(f"{unit}.{_newest(unit, times)}", times)
            for unit in units.difference(done)
        )

    def _path(self, claim: Claim) -> Location:
        return self._folder / f"{claim.unit}.{claim.number}"

    def _is_free(self, name: str, times: dict[str, float]) -> bool:
        """Whether the holder of the claim of this name is gone."""
        holder = self._holder(name, times[name])
        if holder.get("released"):
            return True
        here = _this_process()
        same_machine = all(holder.get(name) == here[name] for name in ("host", "boot", "pids"))
        if same_machine and _started(holder["pid"]) != holder["started"]:
            return True
        # Of a damaged claim the holder is unknown, and only the claim's own age frees it.
        heard_s = max(times[name], times.get(_alive_name(holder.get("nonce", "")), 0.0))
        return time.time() + self._clock_s - heard_s > self._lease_s

    def _holder(self, name: str, modified_s: float) -> dict[str, Any]:
        """What a claim says of its holder; claims do not change, so each is read once."""
        known = self._holders.get((name, modified_s))
        if known is None:
            data = self._read(self._folder / name)
            try:
                known = json.loads(_RELEASED if data is None else data)
            except ValueError:
                known = {}
            self._holders[name, modified_s] = known
        return known

    @staticmethod
    def _read(path: Location) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _renew(self) -> None:
        """A heartbeat; its stamp tells the clock that stamps those of every machine."""
        self._clock_s = touch(self._alive) - time.time()

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            with suppress(OSError, MachineError):  # unreachable: `check` will tell
                self._renew()


def _alive_name(nonce: str) -> str:
    return f".alive-{nonce}"


def _newest(unit: str, names: dict[str, float]) -> int | None:
    """The number of the claim that holds the unit; None where there is none."""
    numbers = [
        int(name[len(unit) + 1 :])
        for name in names
        if name.startswith(f"{unit}.") and name[len(unit) + 1 :].isdigit()
    ]
    return max(numbers, default=None)


def _this_process() -> dict[str, str | int]:
    """Names this process among all machines, boots, containers and reuses of its number."""
    return {
        "host": os.uname().nodename,
        "boot": _read_line("/proc/sys/kernel/random/boot_id"),
        "pids": _pid_namespace(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When the process started, in clock ticks since boot; empty where there is no such process."""
    # The name before the last ")" may hold spaces; state is field 3, starttime 22.
    fields = _read_line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if not fields or fields[0] in "ZX" else fields[19]


def _read_line(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.readline().strip()
    except OSError:
        return ""
