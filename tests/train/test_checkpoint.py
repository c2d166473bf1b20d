"""Checkpoints: complete or not there, verified, kept, fenced."""

import json
import os
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from mgpt.errors import CheckpointError, MachineError, MgptError, TrainingError
from mgpt.parallel.dist import World
from mgpt.parallel.snapshot import FileSum, Snapshot
from mgpt.train import checkpoint
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.step_folder import StepFolder, export_weights, newest_complete


class TwoWeights:
    """What the store asks of a backend: its state."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def snapshot(self, copy: bool) -> Snapshot:
        tensors = {
            "model.a.weight": torch.full((4, 3), self.value),
            "exp_avg.a.weight": torch.zeros(4, 3),
        }
        return Snapshot.take(tensors.items(), 5, World(), copy)


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
    assert store.newest_whole() == StepFolder(tmp_path / "step_00000003", 3)


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


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.long), 11])
def test_every_flipped_byte_is_reported(tmp_path: Path, stride: int) -> None:
    """COMPLETE's own too. Between the flips each file is cut short by one byte."""
    saved = save(CheckpointStore(tmp_path, World()), 1)
    saved.verify(World())
    for path in sorted(path for path in saved.path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for place in range(0, len(whole), stride):
            harmed = bytearray(whole)
            harmed[place] ^= 1 << place % 8
            for content in (harmed, whole[:-1]) if place == 0 else (harmed,):
                path.write_bytes(content)
                with pytest.raises(CheckpointError, match=path.name):
                    saved.verify(World())
        path.write_bytes(whole)
    saved.verify(World())


def test_a_damaged_one_is_set_aside_and_said(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, World(), keep=3)
    for step in (1, 2, 3):
        save(store, step)
    for step in (2, 3):
        (tmp_path / f"step_{step:08d}" / "loader.json").write_text("{}")
    said: list[str] = []
    assert store.newest_whole(said.append) == StepFolder(tmp_path / "step_00000001", 1)
    assert len(said) == 2 and "step_00000003: 1 of 6 files are missing or altered" in said[0]
    assert all("loader.json" in line and "step_00000001" in line for line in said)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == [
        "step_00000001",
        "step_00000002.damaged",
        "step_00000003.damaged",
    ]
    assert save(store, 3).path.exists() and store.newest_whole().step == 3


def test_where_all_are_damaged_nothing_is_moved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, World())
    assert store.newest_whole() is None
    for step in (1, 2):
        (save(store, step).path / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"00000002: .*config.*00000001: .*restore these"):
        store.newest_whole()
    assert len(list(tmp_path.glob("step_????????"))) == 2


class SlowWeights(TwoWeights):
    """Whose files take as long to write as a test likes."""

    def __init__(self) -> None:
        self.weight = torch.ones(4, 3)
        self.may_write = threading.Event()
        self.error: MgptError | None = None
        self.writing = 0

    def snapshot(self, copy: bool) -> Snapshot:
        tensors = {"model.a.weight": self.weight}
        taken = Snapshot.take(tensors.items(), 5, World(), copy)
        backend = self

        class Slow(Snapshot):
            def write(self, folder: Path) -> dict[str, FileSum]:
                backend.writing += 1
                assert backend.may_write.wait(10)
                if backend.error is not None:
                    raise backend.error
                sums = super().write(folder)
                backend.writing -= 1
                return sums

        return Slow(taken.pieces, taken.num_updates, taken.rank)


def background(tmp_path: Path, keep: int = 2) -> tuple[CheckpointStore, SlowWeights]:
    return CheckpointStore(tmp_path, World(), keep, background=True), SlowWeights()


def begin(store: CheckpointStore, step: int, backend: SlowWeights) -> StepFolder:
    return store.save(step, backend, {"row": 3}, {"step": step}, "a: 1\n", FileVocabulary())


def test_training_goes_on_while_a_save_is_written(tmp_path: Path) -> None:
    store, backend = background(tmp_path)
    saved = begin(store, 1, backend)
    assert newest_complete(tmp_path) is None and not store.must_end()
    backend.weight.mul_(7.0)  # the next step
    backend.may_write.set()
    store.wait()
    assert newest_complete(tmp_path) == saved
    assert torch.equal(export_weights(saved)["a.weight"], torch.ones(4, 3))


def test_at_most_one_save_is_under_way(tmp_path: Path) -> None:
    store, backend = background(tmp_path)
    begin(store, 1, backend)
    second = threading.Thread(target=begin, args=(store, 2, backend))
    second.start()
    time.sleep(0.1)
    assert second.is_alive() and backend.writing == 1, "the second waits for the first"
    backend.may_write.set()
    second.join()
    store.wait()
    assert newest_complete(tmp_path).step == 2


def test_whoever_asks_for_the_newest_waits_for_it(tmp_path: Path) -> None:
    store, backend = background(tmp_path)
    begin(store, 1, backend)
    threading.Timer(0.1, backend.may_write.set).start()
    assert store.newest_whole().step == 1


@pytest.mark.parametrize("ask", ["end", "wait", "save", "newest_whole", "leave"])
def test_an_error_of_the_writer_surfaces(tmp_path: Path, ask: str) -> None:
    store, backend = background(tmp_path)
    backend.error = MachineError("no space")
    begin(store, 1, backend)
    backend.may_write.set()
    deadline = time.monotonic() + 10
    while not store.must_end():
        assert time.monotonic() < deadline
    calls = {
        "save": lambda: begin(store, 2, backend),
        "leave": lambda: store.__exit__(None, None, None),
    }
    with pytest.raises(MachineError, match="no space"):
        calls.get(ask, getattr(store, ask, None))()
    assert not store.must_end() and not list(tmp_path.glob(".step*"))


def test_an_error_that_is_none_of_ours_surfaces_too(tmp_path: Path) -> None:
    store, backend = background(tmp_path)
    backend.error = RuntimeError("connection closed by peer")  # type: ignore[assignment]
    begin(store, 1, backend)
    backend.may_write.set()
    with pytest.raises(CheckpointError, match="connection closed by peer"):
        store.wait()


@pytest.mark.parametrize(("error", "is_there"), [(TrainingError("nan"), True), (KeyError(), False)])
def test_a_run_that_ends_in_an_error_sees_its_last_save_through(
    tmp_path: Path, error: Exception, is_there: bool
) -> None:
    store, backend = background(tmp_path)
    with pytest.raises(type(error)), store:
        begin(store, 1, backend)
        threading.Timer(0.1, backend.may_write.set).start()
        raise error
    assert (newest_complete(tmp_path) is not None) is is_there
    store.wait()


def test_a_later_start_ends_the_writer(tmp_path: Path) -> None:
    store, backend = background(tmp_path)
    begin(store, 1, backend)
    new = CheckpointStore(tmp_path, World())
    backend.may_write.set()
    with pytest.raises(TrainingError, match=r"attempt 1 .* 2 has started"):
        store.wait()
    assert new.newest_whole() is None and not list(tmp_path.glob(".step*"))


def test_a_later_start_is_looked_for_by_and_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, World())
    CheckpointStore(tmp_path, World())
    assert not store.must_end()
    monkeypatch.setattr(checkpoint, "FENCE_EVERY_S", 0.0)
    assert store.must_end()
    with pytest.raises(TrainingError, match="a later start"):
        store.end()


def test_an_older_attempt_ends(tmp_path: Path) -> None:
    old = CheckpointStore(tmp_path, World())
    save(old, 1)
    new = CheckpointStore(tmp_path, World())
    assert (old.attempt, new.attempt) == (1, 2)
    with pytest.raises(TrainingError, match=r"attempt 1 .* 2 has started"):
        save(old, 2)
    assert newest_complete(tmp_path).step == 1
    save(new, 2)
    assert newest_complete(tmp_path).step == 2


def test_an_attempt_that_comes_during_a_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, World())

    class Overtaken(TwoWeights):
        def snapshot(self, copy: bool) -> Snapshot:
            CheckpointStore(tmp_path, World())
            return super().snapshot(copy)

    with pytest.raises(TrainingError, match="ends without saving"):
        store.save(1, Overtaken(), {}, {}, "", FileVocabulary())
    assert newest_complete(tmp_path) is None


def test_too_little_space(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, World(), keep=2)
    store.require_space(10)
    with pytest.raises(MachineError, match=r"GB free, checkpoints need .* \(2 kept and one"):
        store.require_space(10**15)


def test_space_for_those_that_stay_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(12 * 7))
    CheckpointStore(tmp_path, World(), keep=2, keep_every=10).require_space(12, steps=49)
    with pytest.raises(MachineError, match="2 kept, 5 for ever and one"):
        CheckpointStore(tmp_path, World(), keep=2, keep_every=10).require_space(12, steps=50)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="cannot be written"):
        CheckpointStore(tmp_path, World())
