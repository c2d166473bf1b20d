"""A run folder and the right to write into it: attempts, and how a save becomes a checkpoint.

    run/attempts/1                   one file a start of the run; the highest number is the live one
    run/.step_00001000.attempt_1     a save that is being written
    run/step_00001000                a checkpoint (mgpt.train.step_folder)
    run/step_00002000.damaged        one whose files were found altered

A save gets its name by one rename when it is complete. A later start takes a higher number, and
then takes every unfinished save of earlier attempts out of their reach, by a rename too. So an
earlier attempt that still runs, or wakes up, cannot publish: either it had before the later one
looked for checkpoints, or its folder is gone. No step here blocks or asks another process; a
machine that dies in the middle of one leaves what the next start puts in order.

One process, rank 0 of a run, uses it.

    >>> folder = RunFolder(path)
    >>> work = folder.begin(step=1000)
    >>> ...
    >>> folder.publish(work, 1000, files)
    >>> folder.retain(keep=2, keep_every=0)
"""

import json
import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgpt.errors import TrainingError
from mgpt.files.atomic import disk_errors, sync_folder
from mgpt.train.step_folder import COMPLETE, StepFolder, complete_folders, seal, step_name

__all__ = ["RunFolder", "highest_attempt"]

_HIDDEN = re.compile(r"\.(?P<step>step_\d{8})\.attempt_(?P<attempt>\d+)(?P<kind>\.\w+)?")
_REPLACED, _GONE = ".replaced", ".gone"


class RunFolder:
    """One attempt's hold on a run folder. Taking it ends all earlier attempts.

    Raises MachineError where the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempt = 0
        with disk_errors(path):
            self.attempt = self._take_attempt()
            self._put_in_order()

    def is_superseded(self) -> bool:
        """Whether a later start of this run exists; this one must then end."""
        return highest_attempt(self.path) > self.attempt

    def refuse_if_superseded(self) -> None:
        """Raises TrainingError where a later start of this run exists."""
        highest = highest_attempt(self.path)
        if highest > self.attempt:
            raise TrainingError(
                f"{self.path}: this is attempt {self.attempt} of the run and attempt {highest} has "
                "started since; this one ends without saving"
            )

    def begin(self, step: int) -> Path:
        """An empty folder for the save after `step` steps."""
        self.refuse_if_superseded()
        work = self.path / f".{step_name(step)}.attempt_{self.attempt}"
        self._remove(work)
        os.mkdir(work)
        return work

    def publish(self, work: Path, step: int, files: Mapping[str, Any]) -> StepFolder:
        """Makes a written save a checkpoint. Its files are on the disk, their names may not be.

        An older checkpoint of the same step is replaced; at each moment one of the two is there, or
        found by the next start.
        """
        self.refuse_if_superseded()
        # Nothing here makes the folder anew: where a later start has taken it away, this one ends.
        unsealed = work / f".{COMPLETE}"
        with open(unsealed, "xb") as file:
            file.write(seal(step, self.attempt, files))
            file.flush()
            os.fsync(file.fileno())
        os.rename(unsealed, work / COMPLETE)
        for folder in sorted({work, *((work / name).parent for name in files)}):
            sync_folder(folder)
        final = StepFolder(self.path / step_name(step), step)
        replaced = work.with_name(work.name + _REPLACED)
        if final.path.exists():
            self._remove(replaced)
            os.rename(final.path, replaced)
        try:
            os.rename(work, final.path)
        except OSError:
            if replaced.exists():
                os.rename(replaced, final.path)  # a later start's, and its to keep
            raise
        sync_folder(self.path)
        self._remove(replaced)
        return final

    def retain(self, keep: int, keep_every: int) -> None:
        """Removes complete checkpoints but the newest `keep` and each multiple of `keep_every`."""
        for folder in complete_folders(self.path)[:-keep]:
            if self.is_superseded():
                return
            if not keep_every or folder.step % keep_every:
                self._remove(folder.path)

    def discard(self, work: Path) -> None:
        """Removes what a save that failed has left; nothing is raised."""
        self._remove(work)

    def set_aside(self, folder: StepFolder) -> Path:
        """Takes a damaged checkpoint out of the way and keeps it for whoever wants to look."""
        aside = folder.path.with_name(folder.path.name + ".damaged")
        self._remove(aside)
        os.rename(folder.path, aside)
        sync_folder(self.path)
        return aside

    def _take_attempt(self) -> int:
        attempts = self.path / "attempts"
        attempts.mkdir(parents=True, exist_ok=True)
        while True:
            attempt = highest_attempt(self.path) + 1
            try:
                with open(attempts / str(attempt), "x") as file:
                    json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
                sync_folder(attempts)
                return attempt
            except FileExistsError:
                continue  # another start took the number between our look and our creation

    def _put_in_order(self) -> None:
        """Finishes what earlier attempts had all but done, and removes what they had not."""
        hidden = [
            (match["kind"] or "", -int(match["attempt"]), entry, self.path / match["step"])
            for entry in self.path.iterdir()
            if (match := _HIDDEN.fullmatch(entry.name)) and int(match["attempt"]) < self.attempt
        ]
        # Saves before what they were to replace, the latest attempt's first.
        for kind, _, entry, final in sorted(hidden):
            is_whole = kind != _GONE and (entry / COMPLETE).exists()
            if is_whole and not (final / COMPLETE).exists():
                self._remove(final)
                os.rename(entry, final)
                sync_folder(self.path)
            else:
                self._remove(entry)

    def _remove(self, folder: Path) -> None:
        """Removes a folder if there is one: out of everybody's sight first, then file by file."""
        gone = folder
        if not folder.name.endswith(_GONE):
            stem = folder.name.removeprefix(".").split(".")[0]
            gone = folder.with_name(f".{stem}.attempt_{self.attempt}{_GONE}")
            shutil.rmtree(gone, ignore_errors=True)
            try:
                os.rename(folder, gone)
            except OSError:
                return  # not there, or another was first
        shutil.rmtree(gone, ignore_errors=True)


def highest_attempt(run_folder: Path) -> int:
    """The number of the latest start of a run; 0 where there was none."""
    names = [entry.name for entry in (run_folder / "attempts").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)
