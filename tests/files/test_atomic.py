"""Files appear whole or not at all, and are hashed whole."""

import hashlib
import os
from pathlib import Path

import pytest

from mgpt.errors import MachineError
from mgpt.files.atomic import atomic_write, file_sha256, remove_leftovers


def test_a_file_is_written_and_replaced(tmp_path: Path):
    path = tmp_path / "new" / "settings.json"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file_alone(tmp_path: Path, monkeypatch, call: str):
    path = tmp_path / "settings.json"
    atomic_write(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(MachineError, match=r"settings\.json.*No space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch):
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: calls.append(n) or r(*a))
    atomic_write(tmp_path / "x", b"data")
    assert calls == ["fsync", "replace", "fsync"]


def test_only_leftovers_of_the_named_target_go(tmp_path: Path):
    mine, other = (tmp_path / f".{n}.0123456789abcdef.tmp" for n in ("a.json", "b.json"))
    for path in (mine, other, tmp_path / ".hidden.tmp"):
        path.write_bytes(b"")
    assert remove_leftovers(tmp_path, "a") == ["a.json"]
    assert remove_leftovers(tmp_path) == ["b.json"]
    assert (tmp_path / ".hidden.tmp").exists()


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(MachineError, match="cannot be written"):
            atomic_write(path, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_longer_than_a_piece_is_hashed_to_its_end(tmp_path: Path):
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
