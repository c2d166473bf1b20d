"""Stopped anywhere, on any number of ranks, and gone on with on any other: the rows are the same.

The short form makes 40 draws, the long one (`-m long`) 500.
"""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mgpt.data.documents import IGNORED
from mgpt.data.loader import RowLoader
from mgpt.data.source import DataConfig
from mgpt.errors import MachineError
from mgpt.tokens.vocab import Vocabulary

sys.path.append(str(Path(__file__).parents[1] / "numerics"))

from drawn_corpus import four_tasks, make_vocabulary

STEPS, STEP_ROWS = 40, 6
COLUMNS = ("ids", "labels", "positions", "groups")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Vocabulary]:
    """Two sources of four tasks, one of which ends within the run; windows of a few steps."""
    root = tmp_path_factory.mktemp("rows")
    return four_tasks(root, STEP_ROWS, max_epochs=2), make_vocabulary(root)


@pytest.fixture(scope="module")
def loaders(corpus) -> Iterator[Callable[[int], RowLoader]]:
    """A loader with 0, 1 or 3 background processes; those with some serve draw after draw."""
    config, vocab = corpus
    made: dict[int, RowLoader] = {}

    def get(workers: int) -> RowLoader:
        if workers and workers in made:
            return made[workers]
        loader = RowLoader(DataConfig(**{**vars(config), "workers": workers}), vocab, seed=5)
        made[workers or -len(made)] = loader
        return loader

    yield get
    for loader in made.values():
        loader.close()


def step_rows(loader: RowLoader, step: int, world: int, micro_rows: int) -> np.ndarray:
    """[row, column, token] of a step, put together from what all ranks get."""
    ranks = [loader.read_step(step, rank, world, micro_rows).micro for rank in range(world)]
    columns = [
        [np.concatenate([getattr(rows, name) for rows in micro]) for micro in ranks]
        for name in COLUMNS
    ]
    for rank in range(world):
        missing = columns[1][rank][len(range(rank, STEP_ROWS, world)) :]
        assert (missing == IGNORED).all(), "a missing row trains something"
    return np.stack(
        [
            np.stack([column[row % world][row // world] for column in columns])
            for row in range(STEP_ROWS)
        ]
    )


def drill(corpus, loaders: Callable[[int], RowLoader], draws: int) -> None:
    config, vocab = corpus
    straight = RowLoader(config, vocab, seed=5)
    want = [step_rows(straight, step, 1, STEP_ROWS) for step in range(STEPS + 2)]
    straight.close()
    assert len({rows.tobytes() for rows in want}) == len(want)
    rng = np.random.default_rng(draws)
    for draw in range(draws):
        stop = int(rng.integers(STEPS))
        before, after, micro_before, micro_after = rng.integers(1, 8, 4).tolist()
        told = f"draw {draw}: stopped at {stop} on {before} ranks, went on with {after}"
        stopped = loaders(int(rng.choice([0, 1, 3])))
        for step in range(max(0, stop - 2), stop):
            rows = step_rows(stopped, step, before, micro_before)
            assert np.array_equal(rows, want[step]), told
        state = json.loads(json.dumps(stopped.state(stop)))
        resumed = loaders(int(rng.choice([0, 1, 3])))
        resumed.load_state(state)
        for step in range(stop, stop + 2):
            rows = step_rows(resumed, step, after, micro_after)
            assert np.array_equal(rows, want[step]), told


def test_stopped_and_resumed_rows_are_the_same(corpus, loaders):
    drill(corpus, loaders, draws=40)


@pytest.mark.long
def test_stopped_and_resumed_rows_are_the_same_500_times(corpus, loaders):
    drill(corpus, loaders, draws=500)


# ------------------------------------------------------------------ processes

READ_FOREVER = """
import pickle, sys, time
from mgpt.data.loader import RowLoader
if __name__ == "__main__":
    config, vocab = pickle.load(open(sys.argv[1], "rb"))
    loader = RowLoader(config, vocab, seed=5)
    loader.read_step(0, 0, 1, 2)
    print("up", flush=True)
    time.sleep(60)
"""


def test_processes_that_make_rows_end_with_a_killed_parent(corpus, tmp_path):
    config, vocab = corpus
    (tmp_path / "run.py").write_text(READ_FOREVER)
    settings = DataConfig(**{**vars(config), "workers": 2}), vocab
    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "settings")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "up\n"
        tasks = Path(f"/proc/{parent.pid}/task")
        children = [
            int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()
        ]
        assert len(children) >= 2
    finally:
        parent.kill()
        parent.wait(timeout=10)
    # The kernel ends them with their parent; a busy machine may take a while to do so.
    deadline = time.monotonic() + 20
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs; an orphan that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.3])
def test_a_killed_process_that_makes_rows_is_named(corpus, after_s):
    config, vocab = corpus
    loader = RowLoader(DataConfig(**{**vars(config), "workers": 1}), vocab, seed=5)
    others = set(multiprocessing.active_children())
    loader.read_step(0, 0, 1, 2)
    (process,) = set(multiprocessing.active_children()) - others
    time.sleep(after_s)  # so that it is at work, or has done all that it was asked for
    process.kill()
    with pytest.raises(MachineError, match=r"data\.workers"):
        for step in range(1, 6):
            loader.read_step(step, 0, 1, 2)
    loader.close()


def test_signals_to_the_whole_job_leave_the_processes_that_make_rows(corpus):
    """A stopping run makes its last step yet, and writes it."""
    config, vocab = corpus
    loader = RowLoader(DataConfig(**{**vars(config), "workers": 2}), vocab, seed=5)
    others = set(multiprocessing.active_children())
    loader.read_step(0, 0, 1, 2)
    for process in set(multiprocessing.active_children()) - others:
        assert process.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(process.pid, number)
    for step in range(1, 6):
        loader.read_step(step, 0, 1, 2)
    loader.close()
