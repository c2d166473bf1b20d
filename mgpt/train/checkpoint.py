"""Checkpoints: what a run needs to go on, on any backend and any number of ranks.

    run/attempts/1                 one file a start of the run; the highest number is the live one
    run/step_00001000/state/       weights, moments, count of updates (mgpt.parallel.state)
                     /loader.json  position in the data
                     /trainer.json step, seed, vocabulary, counters
                     /config.yaml  the resolved configuration
                     /vocab/       the vocabulary's own files
                     /COMPLETE     sha256 and size of every file above; written last

A save is made in a folder that carries its attempt's number and gets its final name when it is
complete, so a save that was killed is never taken for a checkpoint. An older attempt that still
runs ends before it can publish anything: it finds a higher number. No file is a pickle.

    >>> store = CheckpointStore(run_folder, world, keep=2)
    >>> store.save(1000, backend, loader.state(1000), {"step": 1000}, config_yaml, vocab)
    >>> weights = export_weights(store.newest_complete())
"""

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mgpt.errors import CheckpointError, MachineError, MgptError, TrainingError
from mgpt.files import atomic_write, disk_errors, file_sha256, sync_folder
from mgpt.parallel import state
from mgpt.parallel.backend import Backend
from mgpt.parallel.dist import World
from mgpt.parallel.state import StoredWeight
from mgpt.train.metrics import VocabularyLike

__all__ = ["CheckpointStore", "StepFolder", "export_weights", "newest_complete", "stored_weights"]

_STEP = re.compile(r"step_(\d{8})")
_UNFINISHED = re.compile(r"\.step_\d{8}\.attempt_(\d+)")
_COMPLETE = "COMPLETE"
_BYTES_A_PARAMETER = 12  # float32 weight and two moments


@dataclass(frozen=True)
class StepFolder:
    """One complete checkpoint."""

    path: Path
    step: int

    @property
    def state(self) -> Path:
        return self.path / "state"

    def loader_state(self) -> dict[str, Any]:
        return json.loads((self.path / "loader.json").read_text())

    def trainer_state(self) -> dict[str, Any]:
        return json.loads((self.path / "trainer.json").read_text())

    def verify(self, world: World) -> None:
        """Compares every file with its hash, the ranks sharing the work; collective.

        Raises CheckpointError that lists all files that are missing or altered.
        """
        listed = json.loads((self.path / _COMPLETE).read_text())["files"]
        found = _hashes(self.path, sorted(listed), world)
        wrong = [name for name, entry in listed.items() if found.get(name) != entry]
        if wrong:
            raise CheckpointError(
                f"{self.path}: {len(wrong)} of {len(listed)} files are missing or altered: "
                f"{', '.join(wrong[:5])}; remove the folder to go on from the checkpoint before it"
            )


class CheckpointStore:
    """The checkpoints of one run folder, and this process's right to write them.

    Args:
        run_folder: the stage's output folder, seen by all ranks.
        keep: complete checkpoints that stay; older ones are removed after each save.

    Raises:
        MachineError: the folder cannot be written.
    """

    def __init__(self, run_folder: Path, world: World, keep: int = 2) -> None:
        assert keep >= 1
        self.run_folder = Path(run_folder)
        self._world = world
        self._keep = keep
        error, attempt = None, 0
        try:
            if world.is_main:
                attempt = self._take_attempt()
                self._remove_unfinished(attempt)
        except MgptError as cause:
            error = cause
        world.raise_together(error)
        self.attempt: int = world.broadcast_object(attempt)

    def newest_complete(self) -> StepFolder | None:
        """The newest checkpoint of this run, the same on every rank; collective."""
        newest = newest_complete(self.run_folder) if self._world.is_main else None
        step = self._world.broadcast_object(None if newest is None else newest.step)
        return None if step is None else StepFolder(self.run_folder / _step_name(step), step)

    def require_space(self, num_parameters: int) -> None:
        """Raises MachineError where the disk cannot hold the checkpoints that will be kept."""
        complete = len(_complete_folders(self.run_folder))
        need = num_parameters * _BYTES_A_PARAMETER * max(1, self._keep + 1 - complete)
        free = shutil.disk_usage(self.run_folder).free
        if free < need:
            raise MachineError(
                f"{self.run_folder}: {free / 1e9:.1f} GB free, checkpoints need {need / 1e9:.1f} "
                f"({self._keep} kept and one being written); free space, or set keep lower"
            )

    def is_superseded(self) -> bool:
        """Whether a later start of this run exists; this one must then end."""
        return self._highest_attempt() > self.attempt

    def save(
        self,
        step: int,
        backend: Backend,
        loader_state: Mapping[str, Any],
        trainer_state: Mapping[str, Any],
        config_yaml: str,
        vocab: VocabularyLike,
    ) -> StepFolder:
        """Writes and publishes the checkpoint after `step` steps; collective.

        Raises:
            TrainingError: a later attempt of this run has started.
            CheckpointError, MachineError: the files cannot be written.
        """
        final = StepFolder(self.run_folder / _step_name(step), step)
        work = self.run_folder / f".{_step_name(step)}.attempt_{self.attempt}"
        try:
            self._on_main(lambda: self._begin(work))
            backend.save(work / "state")
            texts = (loader_state, trainer_state, config_yaml)
            self._on_main(lambda: _write_texts(work, *texts, vocab))
            files = _hashes(work, _files(work) if self._world.is_main else None, self._world)
            self._on_main(lambda: self._publish(work, final, files))
        except (CheckpointError, MachineError):
            # A later start clears unfinished saves away, perhaps this one while it was written.
            self._on_main(self._refuse_if_superseded)
            raise
        return final

    def _on_main(self, action: Callable[[], None]) -> None:
        """Runs on rank 0; what it raises is raised on all ranks."""
        error: MgptError | None = None
        if self._world.is_main:
            try:
                with disk_errors(self.run_folder):
                    action()
            except MgptError as cause:
                error = cause
        self._world.raise_together(error)

    def _begin(self, work: Path) -> None:
        self._refuse_if_superseded()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()

    def _publish(self, work: Path, final: StepFolder, files: Mapping[str, Any]) -> None:
        self._refuse_if_superseded()
        complete = {"step": final.step, "attempt": self.attempt, "files": files}
        atomic_write(work / _COMPLETE, (json.dumps(complete, indent=1) + "\n").encode())
        if final.path.exists():
            _remove(final.path)
        work.rename(final.path)
        sync_folder(self.run_folder)
        for folder in _complete_folders(self.run_folder)[: -self._keep]:
            _remove(folder.path)

    def _refuse_if_superseded(self) -> None:
        highest = self._highest_attempt()
        if highest > self.attempt:
            raise TrainingError(
                f"{self.run_folder}: this is attempt {self.attempt} of the run and attempt "
                f"{highest} has started since; this one ends without saving"
            )

    def _highest_attempt(self) -> int:
        names = [entry.name for entry in (self.run_folder / "attempts").iterdir()]
        return max((int(name) for name in names if name.isdigit()), default=0)

    def _take_attempt(self) -> int:
        folder = self.run_folder / "attempts"
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                attempt = self._highest_attempt() + 1
                try:
                    with open(folder / str(attempt), "x") as file:
                        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
                    return attempt
                except FileExistsError:
                    continue  # another start took the number between our look and our creation

    def _remove_unfinished(self, attempt: int) -> None:
        for entry in self.run_folder.iterdir():
            match = _UNFINISHED.fullmatch(entry.name)
            if match and int(match[1]) < attempt:
                shutil.rmtree(entry, ignore_errors=True)


def newest_complete(run_folder: Path) -> StepFolder | None:
    """The newest complete checkpoint of a run folder, in one process."""
    folders = _complete_folders(run_folder)
    return folders[-1] if folders else None


def stored_weights(step_folder: StepFolder | Path) -> dict[str, StoredWeight]:
    """All weights of a checkpoint under their names in the model, not read yet; one process.

    Raises CheckpointError where the folder is no complete checkpoint or a file was altered.
    """
    path = step_folder.path if isinstance(step_folder, StepFolder) else Path(step_folder)
    match = _STEP.fullmatch(path.name)
    if match is None or not (path / _COMPLETE).exists():
        raise CheckpointError(
            f"{path}: no complete checkpoint; one is a folder named step_<8 digits> with a file "
            f"named {_COMPLETE}"
        )
    StepFolder(path, int(match[1])).verify(World())
    return state.stored_weights(path / "state")


def export_weights(step_folder: StepFolder | Path) -> dict[str, Tensor]:
    """All weights of a checkpoint in float32; see `stored_weights`."""
    return {name: stored.read() for name, stored in stored_weights(step_folder).items()}


def _step_name(step: int) -> str:
    return f"step_{step:08d}"


def _complete_folders(run_folder: Path) -> list[StepFolder]:
    """Oldest first."""
    found = []
    if run_folder.is_dir():
        for entry in sorted(run_folder.iterdir()):
            match = _STEP.fullmatch(entry.name)
            if match and (entry / _COMPLETE).exists():
                found.append(StepFolder(entry, int(match[1])))
    return found


def _write_texts(
    work: Path,
    loader_state: Mapping[str, Any],
    trainer_state: Mapping[str, Any],
    config_yaml: str,
    vocab: VocabularyLike,
) -> None:
    (work / "loader.json").write_text(json.dumps(loader_state, indent=1) + "\n")
    (work / "trainer.json").write_text(json.dumps(trainer_state, indent=1) + "\n")
    (work / "config.yaml").write_text(config_yaml)
    vocab.save(work / "vocab")


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _hashes(folder: Path, names: list[str] | None, world: World) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file, flushed to the disk; files that are missing are left out.

    The ranks take turns over the names, which rank 0 gives.
    """
    names = world.broadcast_object(names)
    mine: dict[str, dict[str, Any]] = {}
    for name in names[world.rank :: world.size]:
        path = folder / name
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            mine[name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    merged: dict[str, dict[str, Any]] = {}
    for part in world.gather_objects(mine):
        merged.update(part)
    return dict(sorted(merged.items()))


def _remove(folder: Path) -> None:
    """Removes a checkpoint; what is left when it is cut short does not look complete."""
    (folder / _COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
