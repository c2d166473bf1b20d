"""What is saved is the state of its own step, though training has gone on before it is written."""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from engine_runs import Attempt, elsewhere, finish
from rank_runs import Run, make_corpus

from mgpt.parallel.single import SingleBackend
from mgpt.parallel.snapshot import FileSum, Snapshot
from mgpt.parallel.zero3 import Zero3Backend

RANKS = 2
SAVED = (2, 4, 6)


def writing_late(folder: Path) -> None:
    """Each snapshot is written after the update that follows it, where there is one."""
    updates, taken = 0, {}

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal updates
            made = step(self, *args, **options)
            updates += 1
            return made

        return call

    def noted(snapshot: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, copy: bool) -> Any:
            made = snapshot(self, copy)
            taken[id(made)] = updates
            return made

        return call

    for backend in (SingleBackend, Zero3Backend):
        backend.step = counted(backend.step)  # type: ignore[method-assign]
        backend.snapshot = noted(backend.snapshot)  # type: ignore[method-assign]
    write = Snapshot.write

    def late(self: Snapshot, place: Path) -> dict[str, FileSum]:
        deadline = time.monotonic() + (60.0 if taken[id(self)] < SAVED[-1] else 0.0)
        while updates == taken[id(self)] and time.monotonic() < deadline:
            time.sleep(0.001)
        with open(folder / f"late_{self.rank}.jsonl", "a") as file:
            file.write(json.dumps([taken[id(self)], updates]) + "\n")
        return write(self, place)

    Snapshot.write = late  # type: ignore[method-assign]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["fsdp2", pytest.param("zero3", marks=pytest.mark.long)])
def test_the_bytes_are_those_of_a_blocking_save(tmp_path: Path, backend: str) -> None:
    blocking = Run(
        make_corpus(tmp_path / "corpus"),
        str(tmp_path / "blocking"),
        backend=backend,
        steps=SAVED[-1],
        save_every=2,
        async_save=False,
    )
    finish(blocking, RANKS)
    run = elsewhere(blocking, tmp_path / "background", async_save=True)
    with Attempt(run, RANKS, functools.partial(writing_late, tmp_path / "background")) as attempt:
        assert attempt.wait() == [0] * RANKS, attempt.logs()
    for rank in range(RANKS):
        lines = (tmp_path / "background" / f"late_{rank}.jsonl").read_text().splitlines()
        moments = [json.loads(line) for line in lines]
        assert [taken for taken, _ in moments] == list(SAVED)
        assert all(written > taken for taken, written in moments[:-1])
    for step in SAVED:
        want, got = (
            json.loads((tmp_path / kind / f"step_{step:08d}" / "COMPLETE").read_text())["files"]
            for kind in ("blocking", "background")
        )
        assert got == want, step
