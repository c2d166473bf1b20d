"""Checkpoints: complete or not there, verified, kept, fenced."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mgpt.errors import CheckpointError, MachineError, TrainingError
from mgpt.parallel.dist import World
from mgpt.parallel.state import write_state
from mgpt.train.checkpoint import CheckpointStore, StepFolder, export_weights, newest_complete


class TwoWeights:
    """What the store asks of a backend: to write a state."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def save(self, folder: Path) -> None:
        tensors = {
            "model.a.weight": torch.full((4, 3), self.value),
            "exp_avg.a.weight": torch.zeros(4, 3),
        }
        write_state(folder, tensors, 5, World())


class FileVocabulary:
    size, fingerprint = 4, "0123456789abcdef"

    def is_code(self, ids: Any) -> Any:
        return ids < 0

    def is_text(self, ids: Any) -> Any:
        return ids >= 0

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "vocabulary.json").write_text("{}")


def save(store: CheckpointStore, step: int, value: float = 1.0) -> StepFolder:
    state = {"step": step}
    return store.save(step, TwoWeights(value), {"row": 3}, state, "a: 1\n", FileVocabulary())


def test_layout(tmp_path: Path) -> None:
    saved = save(CheckpointStore(tmp_path, World()), 1000)
    names = {str(p.relative_to(saved.path)) for p in saved.path.rglob("*") if p.is_file()}
    tensors = {name for name in names if name.endswith(".safetensors")}
    assert saved.path == tmp_path / "step_00001000"
    assert len(tensors) == 1
    assert names - tensors == {
        "COMPLETE",
        "config.yaml",
        "loader.json",
        "state/updates.json",
        "trainer.json",
        "vocab/vocabulary.json",
    }
    listed = json.loads((saved.path / "COMPLETE").read_text())["files"]
    assert listed.keys() == names - {"COMPLETE"}
    assert saved.loader_state() == {"row": 3} and saved.trainer_state() == {"step": 1000}


def test_export(tmp_path: Path) -> None:
    saved = save(CheckpointStore(tmp_path, World()), 2, value=7.0)
    weights = export_weights(saved.path)
    assert weights.keys() == {"a.weight"}
    assert torch.equal(weights["a.weight"], torch.full((4, 3), 7.0))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        export_weights(tmp_path)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, World(), keep=2)
    for step in (1, 2, 3):
        save(store, step)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000002", "step_00000003"]
    assert store.newest_complete() == StepFolder(tmp_path / "step_00000003", 3)


def test_unfinished_saves_are_not_seen_and_cleaned(tmp_path: Path) -> None:
    saved = save(CheckpointStore(tmp_path, World()), 1)
    killed = tmp_path / ".step_00000002.attempt_1"
    shutil.copytree(saved.path, killed)
    half_removed = tmp_path / "step_00000009"
    shutil.copytree(saved.path, half_removed)
    (half_removed / "COMPLETE").unlink()
    assert newest_complete(tmp_path) == saved
    store = CheckpointStore(tmp_path, World())
    assert store.attempt == 2 and not killed.exists()
    assert save(store, 9).path == half_removed and newest_complete(tmp_path).step == 9


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_altered_files_are_named(tmp_path: Path, harm: str) -> None:
    saved = save(CheckpointStore(tmp_path, World()), 1)
    file = next(saved.state.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(data if harm == "flip" else data[:-1])
    for read in (lambda: saved.verify(World()), lambda: export_weights(saved)):
        with pytest.raises(CheckpointError, match=file.name):
            read()


def test_an_older_attempt_ends(tmp_path: Path) -> None:
    old = CheckpointStore(tmp_path, World())
    save(old, 1)
    new = CheckpointStore(tmp_path, World())
    assert (old.attempt, new.attempt) == (1, 2)
    assert old.is_superseded() and not new.is_superseded()
    with pytest.raises(TrainingError, match=r"attempt 1 .* 2 has started"):
        save(old, 2)
    assert newest_complete(tmp_path).step == 1
    save(new, 2)
    assert newest_complete(tmp_path).step == 2


def test_an_attempt_that_comes_during_a_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, World())

    class Overtaken(TwoWeights):
        def save(self, folder: Path) -> None:
            super().save(folder)
            CheckpointStore(tmp_path, World())

    with pytest.raises(TrainingError, match="ends without saving"):
        store.save(1, Overtaken(), {}, {}, "", FileVocabulary())
    assert newest_complete(tmp_path) is None


def test_too_little_space(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, World(), keep=2)
    store.require_space(10)
    with pytest.raises(MachineError, match=r"GB free, checkpoints need .* \(2 kept"):
        store.require_space(10**15)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="cannot be written"):
        CheckpointStore(tmp_path, World())
