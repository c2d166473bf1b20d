"""What a run has accumulated beside its weights and its position in the data; part of every
checkpoint: token counts, what the guard has seen, rollbacks, and settings that were changed.

*Rollbacks.* The loader's steps are numbered whatever happens. A rollback skips some of them, and
the run's steps count those that remain, so the rows of a step depend on its number and the list of
rollbacks alone, on any number of ranks. `rollbacks.json` lists them from the moment of a rollback,
for a run that is killed before its next save.

*Changes.* Settings that do not alter what has been trained (learning rate, schedule, more steps)
may differ between two starts. `changes.json` lists each with the step after which it applies.

    >>> state = RunState(GuardConfig(), run_folder, world)
    >>> state.load(resumable_state(step_folder, vocab, "adamw", steps=1000))
    >>> rows = loader.read_step(state.loader_step(step), rank, size, micro_rows)
    >>> state.count(rows)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgpt.data.loader import StepRows
from mgpt.errors import CheckpointError, TrainingError, VocabularyError
from mgpt.files.atomic import atomic_write, disk_errors
from mgpt.parallel.dist import World
from mgpt.train.guard import GuardConfig, UpdateGuard
from mgpt.train.metrics import VocabularyLike
from mgpt.train.step_folder import StepFolder

__all__ = ["Change", "Rollback", "RunState", "SkippedSteps", "resumable_state"]


@dataclass(frozen=True)
class Change:
    """A setting that has another value after a step."""

    after_step: int
    setting: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"after step {self.after_step}: {self.setting} {self.old} → {self.new}"


@dataclass(frozen=True)
class SkippedSteps:
    """Steps of the loader that a run skips: sorted, disjoint (first, last) ranges.

    >>> skipped = SkippedSteps().plus([4, 5])
    >>> [skipped.loader_step(step) for step in range(6)]
    [0, 1, 2, 3, 6, 7]
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def loader_step(self, step: int) -> int:
        """The loader's step that the run's step reads."""
        for first, last in self.ranges:
            if step >= first:
                step += last - first + 1
        return step

    def plus(self, loader_steps: Iterable[int]) -> "SkippedSteps":
        """These and `loader_steps`."""
        numbers = set(loader_steps)
        for first, last in self.ranges:
            numbers |= set(range(first, last + 1))
        ranges: list[tuple[int, int]] = []
        for number in sorted(numbers):
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1] = (ranges[-1][0], number)
            else:
                ranges.append((number, number))
        return SkippedSteps(tuple(ranges))


@dataclass(frozen=True)
class Rollback:
    """One return to a checkpoint; the names are those of `rollbacks.json`."""

    at_step: int
    """The step that spiked and was not kept."""
    to_step: int
    """The checkpoint's step."""
    leapt: str
    """What spiked: loss or grad_norm."""
    value: float
    """Its value."""
    passed: tuple[int, ...]
    """The loader's steps that are skipped."""


class RunState:
    """The state of a fresh run; `load` restores that of a checkpoint."""

    def __init__(self, cfg: GuardConfig, run_folder: Path, world: World) -> None:
        self._cfg, self._folder, self._world = cfg, run_folder, world
        self.load({"totals": {"documents": 0, "trained_tokens": 0, "tokens": 0}})

    def load(self, saved: Mapping[str, Any], changes: Sequence[Change] = ()) -> None:
        """Restores what `state` returned, plus the settings changed since then; collective."""
        self.totals: dict[str, int] = saved["totals"]
        """Documents, trained tokens and tokens of the steps so far, on all ranks."""
        self.guard = UpdateGuard(self._cfg, saved)
        self._changes = [*(Change(**one) for one in saved.get("changes", ())), *changes]
        if self._changes and self._world.is_main:
            _write_list(self._folder / "changes.json", self._changes)
        rollbacks = self._world.on_main(lambda: self._known_rollbacks(saved.get("rollbacks", ())))
        self._rollbacks = [
            Rollback(**{**entry, "passed": tuple(entry["passed"])}) for entry in rollbacks
        ]
        self.skipped_steps = SkippedSteps().plus(
            step for rollback in self._rollbacks for step in rollback.passed
        )

    def _known_rollbacks(self, saved: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        # The file is written at each rollback, so it is ahead of the checkpoint or agrees with it.
        path = self._folder / "rollbacks.json"
        listed = json.loads(path.read_text()) if path.exists() else []
        return max(saved, listed, key=len)

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        changes = [asdict(one) for one in self._changes]
        return {
            "totals": self.totals,
            **self.guard.state(),
            "rollbacks": [asdict(rollback) for rollback in self._rollbacks],
            **({"changes": changes} if changes else {}),
        }

    def figures(self) -> dict[str, int]:
        """Counts over the whole run."""
        counts = {"skipped": self.guard.skipped, "rollbacks": len(self._rollbacks)}
        return {**counts, **self.totals}

    def count(self, rows: StepRows) -> None:
        """Adds a step's rows to the totals."""
        self.totals = {name: total + getattr(rows, name) for name, total in self.totals.items()}

    def loader_step(self, step: int) -> int:
        """The loader's step that this step of the run reads."""
        return self.skipped_steps.loader_step(step)

    def roll_back(self, at_step: int, to_step: int, spiked: str, value: float) -> str:
        """Skips the rows of the last `pass_steps` steps up to a spike, none before the checkpoint.

        Collective; returns a sentence for the user once `rollbacks.json` is on the disk.

        Raises TrainingError if the run has used up its rollbacks.
        """
        what = f"step {at_step}: {spiked} spiked to {value:.4g}"
        if len(self._rollbacks) == self._cfg.max_rollbacks:
            raise TrainingError(
                f"{what} after {self._cfg.max_rollbacks} rollbacks (guard.max_rollbacks); "
                "lower the learning rate, or look at the rows that rollbacks.json names"
            )
        steps = range(max(to_step, at_step - self._cfg.pass_steps), at_step)
        skipped = tuple(self.loader_step(step) for step in steps)
        self._rollbacks.append(Rollback(at_step, to_step, spiked, value, skipped))
        self.skipped_steps = self.skipped_steps.plus(skipped)
        self._world.on_main(lambda: _write_list(self._folder / "rollbacks.json", self._rollbacks))
        first, last = skipped[0], skipped[-1]
        return (
            f"{what}; back to step {to_step}, skipping the rows of the loader's "
            f"{f'steps {first} to {last}' if first < last else f'step {first}'}"
        )


def resumable_state(
    saved: StepFolder, vocab: VocabularyLike, optimizer: str, steps: int
) -> dict[str, Any]:
    """The trainer's state of a checkpoint that this run can resume from.

    Raises VocabularyError, TrainingError or CheckpointError with both values.
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
    trained_with = state.get("optimizer", "adamw")  # older versions knew no other
    if trained_with != optimizer:
        raise CheckpointError(
            f"{saved.path} was trained with optim.kind={trained_with}, this run has {optimizer}; "
            f"give optim.kind={trained_with}, or another output= with init_from={saved.path} to "
            "start from its weights"
        )
    return state


def _write_list(path: Path, entries: Sequence[Change] | Sequence[Rollback]) -> None:
    with disk_errors(path):
        text = json.dumps([asdict(entry) for entry in entries], indent=1)
        atomic_write(path, f"{text}\n".encode())
