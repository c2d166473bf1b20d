"""Checkpoints: what a run needs to resume, on any backend and any number of ranks.

A save takes a snapshot of this rank's part of the training state, and a thread writes it while
training continues; the checkpoint appears once all ranks have written theirs (see
mgpt.train.run_folder for how, mgpt.train.step_layout for what it holds). At most one save is in
progress: the next one waits for it, and so does a search for the newest checkpoint. An error in the
thread is raised by the next `wait`, on every rank.

    >>> store = CheckpointStore(run_folder, world, keep=2, background=True)
    >>> with store:
    ...     store.save(1000, backend, loader.state(1000), {"step": 1000}, config_yaml, vocab)
    ...     train_on()
    ...     store.wait()
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mgpt.errors import CheckpointError, MachineError, MgptError, TrainingError
from mgpt.files.atomic import disk_errors, file_sha256
from mgpt.parallel.backend import Backend
from mgpt.parallel.dist import World
from mgpt.parallel.snapshot import FileSum, Snapshot
from mgpt.train.metrics import VocabularyLike
from mgpt.train.run_folder import RunFolder
from mgpt.train.step_folder import StepFolder, complete_folders
from mgpt.train.step_layout import step_name

__all__ = ["CheckpointStore"]

FENCE_EVERY_S = 30.0

T = TypeVar("T")


class CheckpointStore:
    """The checkpoints of one run folder, and this process's right to write them.

    As a context manager it waits for the last save at the end of the block.

    Args:
        run_folder: the stage's output folder, on a file system that all ranks share.
        keep: number of newest complete checkpoints to keep; older ones are removed after each save.
        keep_every: keep every checkpoint whose step is a multiple of this, too; 0: none.
        background: whether training continues while a save is written, at the cost of a copy of
            this rank's part of the state in main memory.

    Raises:
        MachineError: the folder cannot be written.
    """

    def __init__(
        self,
        run_folder: Path,
        world: World,
        keep: int = 2,
        keep_every: int = 0,
        background: bool = False,
    ) -> None:
        assert keep >= 1 and keep_every >= 0
        self.run_folder = Path(run_folder)
        self._world = world
        self._keep, self._keep_every, self._background = keep, keep_every, background
        # Two threads must not run collectives in one group.
        self._writers = world.apart() if background else world
        self._thread: threading.Thread | None = None
        self._error: MgptError | None = None
        self._fence_checked_s = time.monotonic()
        self._folder: RunFolder | None = None
        self.attempt = self._on_main(world, self._take_folder)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None and isinstance(error, MgptError):
            # The other ranks still run, and the save may become the newest checkpoint.
            self._thread.join()

    def newest_whole(self, report: Callable[[str], None] = lambda line: None) -> StepFolder | None:
        """The newest checkpoint of this run, every file compared with its hash; collective.

        A damaged one is renamed to step_<number>.damaged and reported, and the one before it is
        taken: the run repeats the steps since then, to the same result.

        Raises CheckpointError if all of them are damaged; nothing is renamed then.
        """
        self.wait()
        damaged: list[str] = []
        steps = self._on_main(self._world, lambda: [f.step for f in self._complete()])
        for step in reversed(steps):
            folder = StepFolder(self.run_folder / step_name(step), step)
            try:
                folder.verify(self._world)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            self._on_main(self._world, lambda: self._set_aside(steps[len(steps) - len(damaged) :]))
            for problem in damaged:
                report(f"{problem}; renamed to *.damaged, resuming from {folder.path}")
            return folder
        if damaged:
            raise CheckpointError(
                f"{'; '.join(damaged)}; no whole checkpoint is left to resume from: restore these "
                "files, or remove the folder to start again"
            )
        return None

    def require_space(self, checkpoint_bytes: int, steps: int = 0) -> None:
        """Raises MachineError if the disk cannot hold the checkpoints of `steps` steps."""
        there = self._complete()
        for_ever = 0
        if self._keep_every:
            newest = there[-1].step if there else 0
            for_ever = max(0, steps // self._keep_every - newest // self._keep_every)
        most = max(1, self._keep + 1 - len(there)) + for_ever
        need = checkpoint_bytes * most
        free = shutil.disk_usage(self.run_folder).free
        if free < need:
            ever = f", {for_ever} for ever" if for_ever else ""
            raise MachineError(
                f"{self.run_folder}: {free / 1e9:.1f} GB free, checkpoints need {need / 1e9:.1f} "
                f"({self._keep} kept{ever} and one being written); free space, or set keep lower"
            )

    def must_end(self) -> bool:
        """Whether this rank has a reason to `end`: a save in the background has failed, or rank 0,
        which checks every 30 s, has found a later start."""
        if self._error is not None:
            return True
        now = time.monotonic()
        if self._folder is None or now - self._fence_checked_s < FENCE_EVERY_S:
            return False
        self._fence_checked_s = now
        return self._folder.is_superseded()

    def end(self) -> None:
        """Raises, on every rank, the reason that `must_end` found on one; collective."""
        self.wait()
        raise TrainingError(
            f"{self.run_folder}: a later start of this run has begun; this one ends without saving"
        )

    def save(
        self,
        step: int,
        backend: Backend,
        loader_state: Mapping[str, Any],
        trainer_state: Mapping[str, Any],
        config_yaml: str,
        vocab: VocabularyLike,
    ) -> StepFolder:
        """Saves the training state after `step` steps; collective. Returns its future folder.

        Training may continue once it returns; `wait` returns once the checkpoint is complete. The
        run's other files (its record) must be flushed to the disk before.

        Raises:
            TrainingError: a later attempt of this run has started.
            CheckpointError, MachineError: this or the save before it cannot be written.
        """
        self.wait()
        texts = {
            "loader.json": json.dumps(loader_state, indent=1) + "\n",
            "trainer.json": json.dumps(trainer_state, indent=1) + "\n",
            "config.yaml": config_yaml,
        }
        work = Path(self._on_main(self._world, lambda: str(self._rank_0.begin(step))))
        snapshot = backend.snapshot(copy=self._background)

        def write() -> None:
            self._write(step, work, snapshot, texts, vocab)

        if self._background:
            self._thread = threading.Thread(
                target=self._keep_error, args=(write,), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            write()
        return StepFolder(self.run_folder / step_name(step), step)

    def wait(self) -> None:
        """Returns once no save is in progress; collective. Raises the error of one that failed."""
        if self._thread is not None:
            self._thread.join()
            error, self._error, self._thread = self._error, None, None
            self._world.raise_together(error)

    def _keep_error(self, action: Callable[[], None]) -> None:
        try:
            action()
            if self._writers is not self._world:
                self._writers.settle()
        except MgptError as error:
            self._error = error
        except Exception as error:
            self._error = CheckpointError(f"{self.run_folder}: a save ended in {error!r}")

    def _write(
        self,
        step: int,
        work: Path,
        snapshot: Snapshot,
        texts: Mapping[str, str],
        vocab: VocabularyLike,
    ) -> None:
        """Writes and publishes a save; collective among the writers."""
        error: MgptError | None = None
        sums: dict[str, FileSum] = {}
        try:
            sums = {f"state/{name}": s for name, s in snapshot.write(work / "state").items()}
            if self._world.is_main:
                sums |= _write_texts(work, texts, vocab)
        except MgptError as cause:
            error = cause
        try:
            self._writers.raise_together(error)
            parts = self._writers.gather_objects(sums)
            files = {
                name: FileSum(*entry)._asdict() for part in parts for name, entry in part.items()
            }
            self._on_main(self._writers, lambda: self._publish(work, step, files))
        except MgptError:
            # A later start removes unfinished saves, perhaps this one while it was being written.
            self._on_main(self._writers, lambda: self._give_up(work))
            raise

    def _publish(self, work: Path, step: int, files: Mapping[str, Any]) -> None:
        self._rank_0.publish(work, step, files)
        self._rank_0.retain(self._keep, self._keep_every)

    def _give_up(self, work: Path) -> None:
        self._rank_0.discard(work)
        self._rank_0.refuse_if_superseded()

    def _take_folder(self) -> int:
        self._folder = RunFolder(self.run_folder)
        return self._folder.attempt

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            self._rank_0.set_aside(StepFolder(self.run_folder / step_name(step), step))

    def _complete(self) -> list[StepFolder]:
        return complete_folders(self.run_folder)

    @property
    def _rank_0(self) -> RunFolder:
        assert self._folder is not None, "rank 0 alone works on the folder"
        return self._folder

    def _on_main(self, world: World, action: Callable[[], T]) -> T:
        return world.on_main(disk_errors(self.run_folder)(action))


def _write_texts(work: Path, texts: Mapping[str, str], vocab: VocabularyLike) -> dict[str, FileSum]:
    """Writes everything but the state, flushed to the disk; returns the sum of each file."""
    sums = {}
    with disk_errors(work):
        for name, text in texts.items():
            (work / name).write_text(text)
        vocab.save(work / "vocab")
        for path in [*(work / name for name in texts), *sorted((work / "vocab").rglob("*"))]:
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                name = str(path.relative_to(work))
                sums[name] = FileSum(file_sha256(path), path.stat().st_size)
    return sums
