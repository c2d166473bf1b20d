"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from mgpt.data.atomic import atomic_write, remove_leftovers
from mgpt.errors import MachineError


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
