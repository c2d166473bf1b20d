"""The claims' folder goes at any moment, since whoever sees a job done takes it away.

Before each access to the folder in turn, here by another process's hand, it is removed with all
that is in it, once or at every access from there on for a while: the job still ends, with each
unit's output whole and no folder left. Local accesses are Python's audit events, remote ones the
requests.
"""

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.tokenizing.claims import Claim, Claims
from data_pipeline.tokenizing.workers import WORK_FOLDER, run_units
from mgpt.errors import MachineError
from mgpt.files import remote, storage
from mgpt.files.storage import Location, create, locate, remove_tree, write_new

UNITS = ["a", "b"]
MOST_ACCESSES = 400  # a run that takes more does not end


@dataclass(frozen=True)
class WriteJob:
    """Writes each unit's name into a file of that name."""

    output: Location

    def units(self) -> list[str]:
        return UNITS

    def finished(self) -> set[str]:
        return {path.stem for path in self.output.glob("*.txt")}

    def is_done(self, unit: str) -> bool:
        return (self.output / f"{unit}.txt").exists()

    def open(self, slot: int) -> "WriteJob":
        return self

    def work(self, unit: str, claim: Claim, advance: Callable[[int], None]) -> None:
        claim.check()
        write_new(self.output / f"{unit}.txt", unit.encode(), claim.check)
        advance(1)


class Remover:
    """Takes a folder away before those of its accesses whose numbers are given."""

    def __init__(self, folder: Location, at: Collection[int]) -> None:
        self.folder, self.at = folder, at
        self.accesses = 0
        self._busy = False

    def see(self, *names: object) -> None:
        """One access, if one of the names lies in the folder."""
        if self._busy or not any(str(self.folder) in str(name) for name in names):
            return
        self.accesses += 1
        assert self.accesses < MOST_ACCESSES, "the job does not end"
        if self.accesses in self.at:
            self._busy = True
            remove_tree(self.folder)
            self._busy = False


_seen_by: list[Remover] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen_by and event.partition(".")[0] in ("open", "os", "shutil"):
        _seen_by[-1].see(*arguments)


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_audit)  # there is no way to take it out again; it does nothing between tests


def run_job(output: Location, at: Collection[int]) -> int:
    """Do the job with the folder removed so; how often it was accessed."""
    remover = Remover(output / WORK_FOLDER, at)
    _seen_by.append(remover)
    try:
        run_units(WriteJob(output), workers=1, advance=lambda _: None)
    finally:
        _seen_by.pop()
    assert {path.name: path.read_bytes() for path in output.glob("*.txt")} == {
        f"{unit}.txt": unit.encode() for unit in UNITS
    }
    assert sorted(path.name for path in output.iterdir()) == [f"{unit}.txt" for unit in UNITS]
    return remover.accesses


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_local_folder_that_goes_at_each_access(tmp_path: Path, times: int) -> None:
    accesses = run_job(tmp_path / "undisturbed", ())
    assert accesses > 10
    for number in range(1, accesses + 1):
        run_job(tmp_path / str(number), range(number, number + times))


def test_a_remote_folder_that_goes_at_each_request(
    s3: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = remote.request

    def request(path: remote.RemotePath, what: str, call: Callable[[Any], Any]) -> Any:
        if _seen_by:
            _seen_by[-1].see(path)
        return real(path, what, call)

    monkeypatch.setattr(remote, "request", request)
    monkeypatch.setattr(storage, "request", request)
    accesses = run_job(locate("s3://corpus/undisturbed"), ())
    assert accesses > 10
    for number in range(1, accesses + 1):
        run_job(locate(f"s3://corpus/{number}"), (number,))


def test_a_folder_that_goes_while_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    """`mkdir` finds it there, and then not: Python's says that a file is in its place."""
    real, calls = Path.mkdir, []

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(17, "File exists", str(path))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with Claims(tmp_path / "work") as claims:
        assert claims.take("u")
    assert len(calls) == 2


@pytest.mark.parametrize("taken_over", [True, False])
def test_the_files_of_a_unit_go_to_who_takes_it_over(tmp_path: Path, taken_over: bool) -> None:
    """A holder whose half-written file is gone fails, and that is a fault only if it still holds
    the unit."""

    class Suspended(WriteJob):
        def work(self, unit: str, claim: Claim, advance: Callable[[int], None]) -> None:
            if taken_over:
                create(tmp_path / WORK_FOLDER / f"{unit}.{claim.number + 1}", b'{"released": true}')
                write_new(self.output / f"{unit}.txt", unit.encode())
            raise MachineError(f"{unit}.txt: cannot be written (No such file or directory)")

    if taken_over:
        run_units(Suspended(tmp_path), workers=1, advance=lambda _: None)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]
        return
    with pytest.raises(MachineError, match="cannot be written"):
        run_units(Suspended(tmp_path), workers=1, advance=lambda _: None)
