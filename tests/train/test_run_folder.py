"""A run folder between two attempts, and between two moments of one."""

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpt.errors import MgptError, TrainingError
from mgpt.files.atomic import file_sha256
from mgpt.parallel.dist import World
from mgpt.train import run_folder
from mgpt.train.run_folder import RunFolder, highest_attempt
from mgpt.train.step_folder import complete_folders, newest_complete


def publish(folder: RunFolder, step: int, text: str = "rows") -> None:
    """A checkpoint of one file."""
    work = folder.begin(step)
    file = work / "loader.json"
    file.write_text(text)
    entry = {"sha256": file_sha256(file), "bytes": file.stat().st_size}
    folder.publish(work, step, {"loader.json": entry})


def steps(path: Path) -> list[int]:
    return [folder.step for folder in complete_folders(path)]


def assert_in_order(path: Path) -> None:
    """All that looks like a checkpoint is one, and nothing hidden is left."""
    for folder in complete_folders(path):
        folder.verify(World())
    assert not list(path.glob(".*")), list(path.glob(".*"))


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (1, 0, [9]),
        (3, 0, [7, 8, 9]),
        (1, 4, [4, 8, 9]),
        (2, 3, [3, 6, 8, 9]),
        (20, 0, [*range(1, 10)]),
    ],
)
def test_retention(tmp_path: Path, keep: int, keep_every: int, left: list[int]) -> None:
    folder = RunFolder(tmp_path)
    for step in range(1, 10):
        publish(folder, step)
        folder.retain(keep, keep_every)
    assert steps(tmp_path) == left
    assert_in_order(tmp_path)


def test_a_step_saved_again_replaces_the_older(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    publish(folder, 1, "old")
    publish(folder, 1, "new")
    assert newest_complete(tmp_path).path.joinpath("loader.json").read_text() == "new"
    assert_in_order(tmp_path)


def test_attempts_are_numbered_by_all(tmp_path: Path) -> None:
    assert [RunFolder(tmp_path).attempt for _ in range(3)] == [1, 2, 3]
    (tmp_path / "attempts" / "17").touch()
    assert RunFolder(tmp_path).attempt == highest_attempt(tmp_path) == 18


class Died(BaseException):
    """Stands for SIGKILL: nothing that catches errors may go on."""


class HeldUp:
    """Before its `moment`-th touch of the disk the code inside is held up by `action`."""

    def __init__(self, moment: int, action: Callable[[], None]) -> None:
        self._left, self._action = moment, action
        self.was_reached = False

    def __enter__(self) -> "HeldUp":
        self._patch = pytest.MonkeyPatch()
        for name in ("rename", "mkdir", "fsync", "unlink", "rmdir"):
            self._patch.setattr(os, name, self._touching(getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _touching(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            self._left -= not self.was_reached
            if self._left < 0 and not self.was_reached:
                self.was_reached = True
                self._action()
            return real(*args, **options)

        return call


@pytest.mark.parametrize("again", [False, True])
def test_a_later_start_at_every_moment_of_a_save(tmp_path: Path, again: bool) -> None:
    """The earlier attempt is held up anywhere, the later one starts and saves, the earlier wakes:
    it has published before, or ends; what the later one has saved stays."""
    outcomes = []
    for moment in itertools.count():
        path = tmp_path / f"{moment}"
        old = RunFolder(path)
        publish(old, 1)
        if again:
            publish(old, 2, "old")
        seen: list[int] = []

        def later(path: Path = path, seen: list[int] = seen) -> None:
            new = RunFolder(path)
            seen.extend(steps(path))
            publish(new, 2, "new")
            publish(new, 3, "new")

        error = None
        with HeldUp(moment, later) as held_up:
            try:
                publish(old, 2, "slow")
                old.retain(keep=1, keep_every=0)
            except (OSError, MgptError) as cause:
                error = cause
        if not held_up.was_reached:
            break
        outcomes.append(error is None)
        if error is not None and not isinstance(error, TrainingError):
            with pytest.raises(TrainingError, match=r"attempt 1 .* attempt 2 has"):
                old.refuse_if_superseded()
        assert 3 in steps(path)
        assert (path / "step_00000003" / "loader.json").read_text() == "new"
        if 2 in steps(path):
            text = (path / "step_00000002" / "loader.json").read_text()
            assert text == "new"
        RunFolder(path)
        assert steps(path)[-2:] == [2, 3]
        assert_in_order(path)
    assert outcomes.count(False) >= 5, "it was held up before it was done"
    assert outcomes.count(True) >= 1, "and after"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("how", ["died", "full_disk"])
def test_a_save_that_ends_at_any_moment(tmp_path: Path, how: str, again: bool) -> None:
    """The checkpoint before it is there, or the new one is; whole in either case."""

    def end() -> None:
        raise Died if how == "died" else OSError(28, "No space left on device")

    newest = []
    for moment in itertools.count():
        path = tmp_path / f"{moment}"
        old = RunFolder(path)
        publish(old, 1)
        if again:
            publish(old, 2, "before")
        held_up = HeldUp(moment, end)
        with held_up, contextlib.suppress(Died, OSError, MgptError):
            publish(old, 2)
            old.retain(keep=1, keep_every=0)
        if not held_up.was_reached:
            break
        RunFolder(path)
        found = steps(path)
        newest.append(found[-1])
        assert_in_order(path)
        if again:
            text = (path / "step_00000002" / "loader.json").read_text()
            assert text in ("before", "rows")
    assert set(newest) == ({2} if again else {1, 2})


def test_a_damaged_one_is_kept_aside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    publish(folder, 1)
    publish(folder, 2)
    aside = folder.set_aside(complete_folders(tmp_path)[1])
    assert aside.name == "step_00000002.damaged" and (aside / "loader.json").exists()
    assert steps(tmp_path) == [1]
    publish(folder, 2)
    folder.set_aside(complete_folders(tmp_path)[1])
    assert steps(tmp_path) == [1] and aside.exists()


def test_what_the_user_put_there_stays(tmp_path: Path) -> None:
    for name in (".git", "notes", "step_1", ".step_00000001.attempt_x"):
        (tmp_path / name).mkdir(parents=True)
    publish(RunFolder(tmp_path), 1)
    run_folder.RunFolder(tmp_path).retain(1, 0)
    assert {".git", "notes", "step_1", ".step_00000001.attempt_x"} <= {
        path.name for path in tmp_path.iterdir()
    }
