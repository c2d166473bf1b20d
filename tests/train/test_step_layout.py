"""Which folders are complete checkpoints: for Python, and for the shell of a job."""

from pathlib import Path

import pytest

from mgpt.train.step_layout import COMPLETE_GLOB, complete_step, complete_steps, step_name


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints among what else a run folder can hold."""
    complete = (step_name(2000), step_name(1000))
    others = ("step_00003000.damaged", ".step_00004000.attempt_2", "step_5000", "step_latest")
    for name in (*complete, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "COMPLETE").touch()
    (tmp_path / step_name(6000)).mkdir()
    return tmp_path


def test_only_step_folders_with_their_seal_are_complete(run: Path) -> None:
    assert list(complete_steps(run)) == [1000, 2000]
    assert complete_steps(run)[2000] == run / "step_00002000"
    assert complete_step(run / "step_00006000") is None
    assert complete_steps(run / "nothing") == {}


def test_the_shell_finds_the_same_folders(run: Path) -> None:
    assert {file.parent for file in run.glob(COMPLETE_GLOB)} == set(complete_steps(run).values())
