"""A checkpoint as a folder: its contents, whether it is whole, and its weights.

`mgpt.train.step_layout` lists its files. No file is a pickle. This module only reads;
`mgpt.train.run_folder` writes.

    >>> newest = newest_complete(run_folder)
    >>> newest.verify(World())
    >>> weights = export_weights(newest)
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mgpt.errors import CheckpointError
from mgpt.files.atomic import file_sha256
from mgpt.models.tensor_files import LazyTensor
from mgpt.parallel.dist import World
from mgpt.train.step_layout import COMPLETE, complete_step, complete_steps

__all__ = [
    "StepFolder",
    "complete_folders",
    "export_weights",
    "has_averages",
    "newest_complete",
    "seal",
    "stored_weights",
]

_SHOWN_FILES = 5


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
        """Compares every file with its hash; the ranks share the work. Collective.

        Raises CheckpointError that lists all files that are missing or altered.
        """
        listed = world.on_main(lambda: self._sealed()["files"])
        mine = sorted(listed)[world.rank :: world.size]
        found = world.gather_objects([name for name in mine if not self._is_whole(name, listed)])
        wrong = sorted(name for names in found for name in names)
        if wrong:
            more = f" and {len(wrong) - _SHOWN_FILES} more" * (len(wrong) > _SHOWN_FILES)
            raise CheckpointError(
                f"{self.path}: {len(wrong)} of {len(listed)} files are missing or altered: "
                f"{', '.join(wrong[:_SHOWN_FILES])}{more}"
            )

    def _sealed(self) -> dict[str, Any]:
        path = self.path / COMPLETE
        try:
            data = path.read_bytes()
            stored = json.loads(data)
            whole = seal(stored["step"], stored["attempt"], stored["files"])
        except (OSError, ValueError, KeyError, TypeError):
            data, whole, stored = b"", b" ", {}
        if data != whole or stored["step"] != self.step:
            raise CheckpointError(f"{self.path}: {COMPLETE} is missing or altered")
        return stored

    def _is_whole(self, name: str, listed: Mapping[str, Any]) -> bool:
        path, entry = self.path / name, listed[name]
        try:
            return path.stat().st_size == entry["bytes"] and file_sha256(path) == entry["sha256"]
        except OSError:  # not there, or the disk cannot read it
            return False


def seal(step: int, attempt: int, files: Mapping[str, Any]) -> bytes:
    """The content of COMPLETE, the same bytes for the same arguments, with a hash of its own."""
    body = {"step": step, "attempt": attempt, "files": dict(sorted(files.items()))}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1) + "\n").encode()


def complete_folders(run_folder: Path) -> list[StepFolder]:
    """The complete checkpoints of a run folder, oldest first, in one process; not verified."""
    return [StepFolder(path, step) for step, path in complete_steps(run_folder).items()]


def newest_complete(run_folder: Path) -> StepFolder | None:
    """The newest complete checkpoint of a run folder, in one process; not verified."""
    folders = complete_folders(run_folder)
    return folders[-1] if folders else None


def stored_weights(
    step_folder: StepFolder | Path, verify: bool = True, averaged: bool = False
) -> dict[str, LazyTensor]:
    """All weights of a checkpoint under their names in the model, not read yet; one process.

    Args:
        verify: whether every file is compared with its hash first, optimizer state too.
        averaged: the averaged weights, which the checkpoint must have.

    Raises CheckpointError if the folder is no complete checkpoint or a file was altered.
    """
    path = step_folder.path if isinstance(step_folder, StepFolder) else Path(step_folder)
    step = complete_step(path)
    if step is None:
        raise CheckpointError(
            f"{path}: no complete checkpoint; one is a folder named step_<8 digits> with a file "
            f"named {COMPLETE}"
        )
    if verify:
        StepFolder(path, step).verify(World())
    # torch's Distributed Checkpoint, half a second to import, is for those who read a checkpoint.
    from mgpt.parallel import state

    stored = (LazyTensor(*one) for one in state.stored_weights(path / "state", averaged))
    return {tensor.name: tensor for tensor in stored}


def has_averages(state_folder: Path) -> bool:
    """Whether a checkpoint's `state/` holds averaged weights beside the weights."""
    from mgpt.parallel import state

    return state.has_averages(state_folder)


def export_weights(step_folder: StepFolder | Path) -> dict[str, Tensor]:
    """All weights of a checkpoint in float32; see `stored_weights`."""
    return {name: stored.read() for name, stored in stored_weights(step_folder).items()}
