"""A run folder and the right to write into it: attempts, and how a save becomes a checkpoint.

    run/attempts/1                   one file a start of the run; the highest number is the live one
    run/.step_00001000.attempt_1     a save that is being written
    run/step_00001000                a checkpoint (mgpt.train.step_layout)
    run/step_00002000.damaged        one whose files were found altered

One rename gives a complete save its name. A later start takes a higher number, then renames every
unfinished save of earlier attempts. So an earlier attempt that still runs, or wakes up, cannot
publish: either it did before the later one looked for checkpoints, or its folder is gone. No step
blocks or asks another process; the next start cleans up what a crash in the middle of one leaves.

Only rank 0 of a run uses it.

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
from mgpt.train.step_folder import StepFolder, complete_folders, seal
from mgpt.train.step_layout import COMPLETE, STEP_PATTERN, step_name

__all__ = ["RunFolder", "highest_attempt"]

_HIDDEN = re.compile(rf"\.(?P<step>{STEP_PATTERN})\.attempt_(?P<attempt>\d+)(?P<kind>\.\w+)?")
_REPLACED, _GONE = ".replaced", ".gone"


class RunFolder:
    """One attempt at a run, which ends all earlier ones.

    Raises MachineError if the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempt = 0
        with disk_errors(path):
            self.attempt = self._take_attempt()
            self._put_in_order()

    def is_superseded(self) -> bool:
        """Whether a later start of this run exists, so that this one must end."""
        return highest_attempt(self.path) > self.attempt

    def refuse_if_superseded(self) -> None:
        """Raises TrainingError if a later start of this run exists."""
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
        """Turns a written save into a checkpoint; its files are flushed, their folders may not be.

        Replaces an older checkpoint of the same step; at each moment one of the two is there, or
        the next start finds it.
        """
        self.refuse_if_superseded()
        # Nothing here recreates the folder: if a later start has removed it, this one ends.
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
        """Removes complete checkpoints except the newest `keep` and multiples of `keep_every`."""
        for folder in complete_folders(self.path)[:-keep]:
            if self.is_superseded():
                return
            if not keep_every or folder.step % keep_every:
                self._remove(folder.path)

    def discard(self, work: Path) -> None:
        """Removes the remains of a failed save; never raises."""
        self._remove(work)

    def set_aside(self, folder: StepFolder) -> Path:
        """Renames a damaged checkpoint, which stays for inspection."""
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
        """Publishes complete saves of earlier attempts and removes their incomplete ones."""
        hidden = [
            (match["kind"] or "", -int(match["attempt"]), entry, self.path / match["step"])
            for entry in self.path.iterdir()
            if (match := _HIDDEN.fullmatch(entry.name)) and int(match["attempt"]) < self.attempt
        ]
        # Saves before the checkpoints that they replace, the latest attempt's first.
        for kind, _, entry, final in sorted(hidden):
            is_whole = kind != _GONE and (entry / COMPLETE).exists()
            if is_whole and not (final / COMPLETE).exists():
                self._remove(final)
                os.rename(entry, final)
                sync_folder(self.path)
            else:
                self._remove(entry)

    def _remove(self, folder: Path) -> None:
        """Removes a folder if there is one: renamed first, then file by file."""
        gone = folder
        if not folder.name.endswith(_GONE):
            stem = folder.name.removeprefix(".").split(".")[0]
            gone = folder.with_name(f".{stem}.attempt_{self.attempt}{_GONE}")
            shutil.rmtree(gone, ignore_errors=True)
            try:
                os.rename(folder, gone)
            except OSError:
                return  # not there, or another process was first
        shutil.rmtree(gone, ignore_errors=True)


def highest_attempt(run_folder: Path) -> int:
    """The number of the latest start of a run; 0 without one."""
    names = [entry.name for entry in (run_folder / "attempts").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)
