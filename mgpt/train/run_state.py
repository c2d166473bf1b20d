"""What a run has come to beside its weights and its place in the data: counts, what the guard has
seen, the rollbacks and the changes of settings. It is part of every checkpoint.

    >>> state = RunState(GuardConfig(), run_folder, world)
    >>> state.load(step_folder.trainer_state())
    >>> rows = loader.read_step(state.loader_step(step), rank, size, micro_rows)
    >>> state.count(rows)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgpt.data.loader import StepRows
from mgpt.errors import CheckpointError, TrainingError
from mgpt.parallel.dist import World
from mgpt.train.guard import GuardConfig, UpdateGuard
from mgpt.train.resume import Change, Changes
from mgpt.train.rollback import Rollbacks
from mgpt.train.step_folder import StepFolder

__all__ = ["RunState", "check_optimizer"]


def check_optimizer(saved: StepFolder, kind: str) -> None:
    """Raises CheckpointError if a checkpoint's state is another optimizer's.

    Those without a name for it are AdamW's.
    """
    found = saved.trainer_state().get("optimizer", "adamw")
    if found != kind:
        raise CheckpointError(
            f"{saved.path} was trained with optim.kind={found}, this run has {kind}; give "
            f"optim.kind={found}, or another output= with init_from={saved.path} to start from its "
            "weights"
        )


class RunState:
    """Fresh; `load` makes it what it was after a checkpoint's step."""

    def __init__(self, cfg: GuardConfig, run_folder: Path, world: World) -> None:
        self._cfg, self._run_folder, self._world = cfg, run_folder, world
        self._changes = Changes(run_folder, world)
        self.load({"totals": {"documents": 0, "trained_tokens": 0, "tokens": 0}})

    def load(self, saved: Mapping[str, Any], changes: Sequence[Change] = ()) -> None:
        """Takes up what `state` gave, with the settings changed since then; collective."""
        self.totals: dict[str, int] = saved["totals"]
        """Documents, trained tokens and tokens of the steps so far, on all ranks."""
        self.guard = UpdateGuard(self._cfg, saved)
        self._changes.load(saved.get("changes", ()), changes)
        self._rollbacks = Rollbacks(self._run_folder, self._world, saved.get("rollbacks", ()))

    def state(self) -> dict[str, Any]:
        """JSON."""
        guard, rollbacks = self.guard.state(), self._rollbacks.state()
        changes = self._changes.state()
        kept = {"changes": changes} if changes else {}
        return {"totals": self.totals, **guard, "rollbacks": rollbacks, **kept}

    def figures(self) -> dict[str, int]:
        """Counts over the whole run."""
        counts = {"skipped": self.guard.skipped, "rollbacks": len(self._rollbacks)}
        return {**counts, **self.totals}

    def count(self, rows: StepRows) -> None:
        self.totals = {
            "documents": self.totals["documents"] + rows.documents,
            "trained_tokens": self.totals["trained_tokens"] + rows.trained_tokens,
            "tokens": self.totals["tokens"] + rows.tokens,
        }

    def loader_step(self, step: int) -> int:
        """The loader's step that this step of the run reads."""
        return self._rollbacks.rows.loader_step(step)

    def go_back(self, at_step: int, to_step: int, leapt: str, value: float) -> str:
        """Passes over the rows that led to a leap in `at_step`; returns what was done, in words.

        Raises TrainingError where the run may not go back any more.
        """
        words = f"step {at_step}: {leapt} leapt to {value:.4g}"
        if len(self._rollbacks) == self._cfg.max_rollbacks:
            raise TrainingError(
                f"{words} after {self._cfg.max_rollbacks} rollbacks (guard.max_rollbacks); "
                "lower the learning rate, or look at the rows that rollbacks.json names"
            )
        done = self._rollbacks.add(at_step, to_step, leapt, value, self._cfg.pass_steps)
        first, last = done.passed[0], done.passed[-1]
        return (
            f"{words}; back to step {to_step}, passing over the rows of the loader's "
            f"{f'steps {first} to {last}' if first < last else f'step {first}'}"
        )
