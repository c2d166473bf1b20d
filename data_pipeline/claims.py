"""Who works on which unit: atomic claims in a shared folder, freed when their holder is gone.

A claim on a unit is a file `<unit>.<n>` that is created whole and exclusively; the highest n holds
the unit. Taking over is creating n + 1, so nothing is ever deleted or renamed to win, and two
takers cannot both succeed. A holder that is dead on this same machine loses its unit at once; any
other loses it after `LEASE_S` without a heartbeat. A holder asks `check` right before it publishes:
one that was overtaken (suspended, cut off) then stops instead of publishing.

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mgpt.errors import MachineError

LEASE_S = 60.0
HEARTBEAT_S = 10.0


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
        holder = self.claims.newest(self.unit)
        if holder != self.number or not self.claims.is_own(self.unit, self.number):
            raise ClaimLost(self.unit)

    def release(self) -> None:
        """Give the unit up, finished or not."""
        self.claims.release(self)


class Claims:
    """The claims in one folder, and a thread that keeps those of this process alive."""

    def __init__(
        self, folder: Path, lease_s: float = LEASE_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._folder = folder
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._identity = json.dumps({**_this_process(), "nonce": secrets.token_hex(8)})
        self._held: dict[Path, None] = {}
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> "Claims":
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                f"{self._folder}: cannot be created ({error.strerror}); give another output"
            ) from error
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        for path in list(self._held):
            path.unlink(missing_ok=True)

    def take(self, unit: str) -> Claim | None:
        """The unit's claim, or None while a living process holds it."""
        newest = self.newest(unit)
        if newest is not None and not self._is_free(self._path(unit, newest)):
            return None
        number = 0 if newest is None else newest + 1
        path = self._path(unit, number)
        temporary = self._folder / f".{secrets.token_hex(8)}.tmp"
        try:
            temporary.write_text(self._identity)
            os.link(temporary, path)  # exclusive, and the content is there with the name
        except FileExistsError:
            return None
        except FileNotFoundError:  # the job ended and its folder went
            return None
        except OSError as error:
            raise MachineError(
                f"{path}: cannot be written ({error.strerror}); the output folder needs a file "
                "system with free space and hard links"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._held[path] = None
        return Claim(self, unit, number)

    def newest(self, unit: str) -> int | None:
        """The number of the claim that holds the unit; None where there is none."""
        numbers = [
            int(suffix)
            for path in self._folder.glob(f"{unit}.*")
            if (suffix := path.name[len(unit) + 1 :]).isdigit()
        ]
        return max(numbers, default=None)

    def is_own(self, unit: str, number: int) -> bool:
        try:
            return self._path(unit, number).read_text() == self._identity
        except FileNotFoundError:
            return False

    def release(self, claim: Claim) -> None:
        path = self._path(claim.unit, claim.number)
        self._held.pop(path, None)
        if self.is_own(claim.unit, claim.number):
            path.unlink(missing_ok=True)

    def _path(self, unit: str, number: int) -> Path:
        return self._folder / f"{unit}.{number}"

    def _is_free(self, path: Path) -> bool:
        """Whether the holder of the claim is gone."""
        try:
            holder = json.loads(path.read_text())
            silent_s = self._now_of_folder() - path.stat().st_mtime
        except FileNotFoundError:
            return True
        except ValueError:  # damaged: who holds it is unknown, and only silence frees it
            return self._now_of_folder() - path.stat().st_mtime > self._lease_s
        here = _this_process()
        same_machine = all(holder.get(name) == here[name] for name in ("host", "boot", "pids"))
        if same_machine and _started(holder["pid"]) != holder["started"]:
            return True
        return silent_s > self._lease_s

    def _now_of_folder(self) -> float:
        """The file system's clock, which is the one that stamps heartbeats on every machine."""
        probe = self._folder / f".{secrets.token_hex(8)}.tmp"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            for path in list(self._held):
                with suppress(OSError):  # overtaken or unreachable: `check` will tell
                    os.utime(path)


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
