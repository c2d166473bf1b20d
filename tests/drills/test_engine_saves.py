"""A save that dies, or finds the disk full, at any of its steps: a whole checkpoint is there."""

import builtins
import io
import itertools
import json
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from faulty_disk import FULL_DISK_STATUS, break_disk

from mgpt.errors import MgptError
from mgpt.parallel import snapshot
from mgpt.parallel.dist import World
from mgpt.parallel.snapshot import Snapshot
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.step_folder import export_weights

NOTHING_HAPPENED_STATUS = 4
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mgpt.train.checkpoint"])


class State:
    """What a save asks of a backend and of a vocabulary."""

    def __init__(self, value: float) -> None:
        self._value = value

    def snapshot(self, copy: bool) -> Snapshot:
        names = ("model.a", "exp_avg.a", "exp_avg_sq.a")
        tensors = {name: torch.full((4, 3), self._value) for name in names}
        return Snapshot.take(tensors.items(), int(self._value), World(), copy)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "vocabulary.json").write_text("{}")


def save(folder: Path, step: int) -> None:
    """One attempt that saves once."""
    state = State(float(step))
    with CheckpointStore(folder, World(), keep=1, background=True) as store:
        store.save(step, state, {"row": step}, {"step": step}, "a: 1\n", state)  # type: ignore[arg-type]


def faulty_save(folder: Path, step: int, fatal: int, how: str) -> None:
    """Whose `fatal`-th step on the disk kills it, or finds the disk full."""
    calls = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
    steps = break_disk(fatal, how, calls, openers=(builtins, io))
    snapshot._CHUNK_BYTES = 64
    try:
        save(folder, step)
    except MgptError as error:
        assert "No space left" in str(error), error
        sys.exit(FULL_DISK_STATUS)
    if next(steps) <= fatal:
        sys.exit(NOTHING_HAPPENED_STATUS)


def run(target: Any, *args: Any) -> int | None:
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    process.join(timeout=60)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def drill(root: Path, how: str, is_first: bool, stride: int) -> None:
    """Every `stride`-th step of a save, the run's first or its second."""
    found = []
    for fatal in itertools.count(0, stride):
        folder = root / f"{fatal}"
        if not is_first:
            save(folder, 1)
        code = run(faulty_save, folder, 2, fatal, how)
        store = CheckpointStore(folder, World())
        newest = store.newest_whole()
        step = newest.step if newest is not None else 0
        if newest is not None:
            assert torch.equal(export_weights(newest)["a"], torch.full((4, 3), float(step)))
            assert newest.loader_state() == {"row": step}
            assert newest.trainer_state() == {"step": step}
        assert step == 2 or is_first == (step == 0)
        names = {path.name for path in folder.iterdir()} - {"attempts", "step_00000001"}
        assert names <= {"step_00000002"}, "neither a part nor a damaged one"
        found.append(step)
        save(folder, 2)
        assert CheckpointStore(folder, World()).newest_whole().step == 2  # type: ignore[union-attr]
        if code == NOTHING_HAPPENED_STATUS:
            break
        # Where a full disk hinders the tidying up alone, there is nothing to say.
        assert code in ((-signal.SIGKILL,) if how == "kill" else (FULL_DISK_STATUS, 0)), code
    figures = {"drill": how, "is_first": is_first, "tried": len(found) - 1, "saved": found.count(2)}
    print(json.dumps(figures))
    assert len(found) - found.count(2) >= 25 // stride and found[-1] == 2


@pytest.mark.parametrize(("how", "is_first"), [("kill", True), ("full_disk", False)])
def test_at_every_ninth_step_on_the_disk(tmp_path: Path, how: str, is_first: bool) -> None:
    drill(tmp_path, how, is_first, stride=9)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("how", ["kill", "full_disk"])
def test_at_every_step_on_the_disk(tmp_path: Path, how: str, is_first: bool) -> None:
    drill(tmp_path, how, is_first, stride=1)
