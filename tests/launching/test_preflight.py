"""What is looked at before anything is queued: room, inputs, versions."""

import shutil
from pathlib import Path

import pytest

from mgpt.launching import preflight


def test_a_disk_without_room_is_named_also_for_a_folder_that_is_still_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10e9, 8e9, 2e9)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if path == tmp_path else None)
    folder = tmp_path / "a" / "b"
    (problem,) = preflight.disk(folder, 3e9)
    assert problem.startswith(f"{folder}: 2.0 GB are free, its checkpoints need 3.0 GB; make room")
    assert preflight.disk(folder, 2e9) == []


def test_inputs_without_a_fingerprint_are_not_there() -> None:
    found = preflight.inputs({"vq": "vq:1234", "tokens": "name:tokens"})
    assert found == [f"tokens: there is no such file or folder, seen from {Path.cwd()}"]


@pytest.mark.parametrize(
    ("line", "installed", "words"),
    [
        ("torch<2.14,>=2.11", "2.13.0+cpu", None),
        ("torch<2.14,>=2.11", "2.14.0", "torch 2.14.0 is installed in"),
        ("torch>=2.11", "2.9.1", "mgpt works with >=2.11"),
        ("wandb!=0.20.0", "0.20", "wandb 0.20 is installed in"),
        ("pytest>=8; extra == 'test'", None, None),
        ("rich>=13", None, "rich is not installed in"),
    ],
)
def test_versions_are_those_that_mgpt_works_with(
    line: str, installed: str | None, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise preflight.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(preflight, "requires", lambda name: [line])
    monkeypatch.setattr(preflight, "version", version)
    problems = preflight.versions()
    assert len(problems) == (words is not None)
    assert words is None or words in problems[0]
