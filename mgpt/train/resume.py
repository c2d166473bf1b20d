"""What a run is continued with that differs from what its checkpoint was made with.

Settings that only decide how to go on (the learning rate, its schedule, more steps) may be changed
between two starts. Each change is part of every later checkpoint, and `changes.json` in the run
folder lists them for people, with the step after which the new value holds.

    >>> changes = Changes(run_folder, world)
    >>> changes.load([], [Change(6, "optim.lr", 1e-4, 5e-5)])
    >>> changes.state()
    [{'after_step': 6, 'setting': 'optim.lr', 'old': 0.0001, 'new': 5e-05}]
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgpt.errors import TrainingError, VocabularyError
from mgpt.files.atomic import atomic_write
from mgpt.parallel.dist import World
from mgpt.train.metrics import VocabularyLike
from mgpt.train.step_folder import StepFolder

__all__ = ["Change", "Changes", "check_resumable"]


@dataclass(frozen=True)
class Change:
    """A setting with another value after a step."""

    after_step: int
    setting: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"after step {self.after_step}: {self.setting} {self.old} → {self.new}"


class Changes:
    """The changes of a run up to now, oldest first."""

    def __init__(self, run_folder: Path, world: World) -> None:
        self._path, self._world = run_folder / "changes.json", world
        self._changes: list[Change] = []

    def load(self, saved: Sequence[Mapping[str, Any]], more: Sequence[Change] = ()) -> None:
        """Those of a checkpoint, and what is different since."""
        self._changes = [*(Change(**one) for one in saved), *more]
        if self._changes and self._world.is_main:
            atomic_write(self._path, (json.dumps(self.state(), indent=1) + "\n").encode())

    def state(self) -> list[dict[str, Any]]:
        """JSON."""
        return [asdict(one) for one in self._changes]


def check_resumable(saved: StepFolder, vocab: VocabularyLike, steps: int) -> dict[str, Any]:
    """The trainer's state of a checkpoint that this run can be resumed from.

    Raises VocabularyError or TrainingError with both values.
    """
    state = saved.trainer_state()
    if state["vocabulary"] != vocab.fingerprint:
        raise VocabularyError(
            f"{saved.path} was trained with vocabulary {state['vocabulary']}, this run has "
            f"{vocab.fingerprint}; give another output folder or the same vocabulary"
        )
    if saved.step > steps:
        raise TrainingError(
            f"{saved.path}: this run has {saved.step} steps behind it and steps={steps} are asked "
            "for; raise steps or give another output folder"
        )
    return state
