"""Going back to the last checkpoint, and the rows that are passed over from then on.

The loader's steps are numbered whatever happens; a rollback takes some of them out, and the run's
steps are counted over those that are left. So which rows a step reads is a function of its number
and of the list of rollbacks alone, on any number of ranks. The list stands in every checkpoint, and
in `rollbacks.json` beside them from the moment of a rollback, for the run that is killed before its
next save.

    >>> passed = PassedRows(()).passing([4, 5])
    >>> [passed.loader_step(step) for step in range(6)]
    [0, 1, 2, 3, 6, 7]
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgpt.errors import MgptError
from mgpt.files.atomic import atomic_write, disk_errors
from mgpt.parallel.dist import World

__all__ = ["PassedRows", "Rollback", "Rollbacks"]


@dataclass(frozen=True)
class PassedRows:
    """Steps of the loader that are left out: (first, last) of each stretch, in order, apart."""

    stretches: tuple[tuple[int, int], ...]

    def loader_step(self, step: int) -> int:
        """The loader's step that this step of the run reads."""
        for first, last in self.stretches:
            if step >= first:
                step += last - first + 1
        return step

    def passing(self, loader_steps: Iterable[int]) -> "PassedRows":
        """These, and those of `loader_steps`."""
        numbers = set(loader_steps)
        for first, last in self.stretches:
            numbers |= set(range(first, last + 1))
        stretches: list[tuple[int, int]] = []
        for number in sorted(numbers):
            if stretches and stretches[-1][1] == number - 1:
                stretches[-1] = (stretches[-1][0], number)
            else:
                stretches.append((number, number))
        return PassedRows(tuple(stretches))


@dataclass(frozen=True)
class Rollback:
    """One return to a checkpoint."""

    at_step: int
    """The step that was not made."""
    to_step: int
    """The checkpoint's."""
    leapt: str
    """loss or grad_norm."""
    value: float
    """To which it leapt."""
    passed: tuple[int, ...]
    """The loader's steps whose rows are left out."""


class Rollbacks:
    """The rollbacks of a run, the same on every rank.

    Args:
        saved: what a checkpoint holds of them.
    """

    def __init__(self, folder: Path, world: World, saved: Sequence[dict[str, Any]] = ()) -> None:
        self._path, self._world = folder / "rollbacks.json", world
        found = list(saved)
        if world.is_main and self._path.exists():
            # Written at each of them, so it is ahead of the checkpoint or says the same.
            found = max(found, json.loads(self._path.read_text()), key=len)
        self._done = [
            Rollback(**{**entry, "passed": tuple(entry["passed"])})
            for entry in world.broadcast_object(found)
        ]
        self.rows = PassedRows(())
        for rollback in self._done:
            self.rows = self.rows.passing(rollback.passed)

    def __len__(self) -> int:
        return len(self._done)

    def state(self) -> list[dict[str, Any]]:
        return [asdict(rollback) for rollback in self._done]

    def add(self, at_step: int, to_step: int, leapt: str, value: float, steps: int) -> Rollback:
        """Passes over the rows of the last `steps` steps up to `at_step`, none before `to_step`.

        Returns when the record of it is on the disk.
        """
        first = max(to_step, at_step - steps)
        passed = tuple(self.rows.loader_step(step) for step in range(first, at_step))
        rollback = Rollback(at_step, to_step, leapt, value, passed)
        self._done.append(rollback)
        self.rows = self.rows.passing(passed)
        error: MgptError | None = None
        if self._world.is_main:
            try:
                with disk_errors(self._path):
                    atomic_write(self._path, (json.dumps(self.state(), indent=1) + "\n").encode())
            except MgptError as cause:
                error = cause
        self._world.raise_together(error)
        return rollback
