"""Processes share units, survive each other's death, and end with their parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path

import pytest

from data_pipeline.pack import PackConfig, pack
from data_pipeline.scenes.corpus import CorpusConfig
from data_pipeline.tokenizing import workers
from mgpt.errors import MachineError


def config(output: Path, **changes) -> PackConfig:
    """Six shards of small scenes."""
    scenes = CorpusConfig(num_scenes=24, split="train", area_px=32)
    settings = {"source": "scenes", "samples_per_shard": 4, "scenes": scenes, **changes}
    return PackConfig(output=str(output), **settings)


@contextmanager
def killer(condition: Callable[[], bool], times: int) -> Iterator[list[int]]:
    """SIGKILL workers of this process, `times` in all, whenever `condition` holds; who it was."""
    killed: list[int] = []
    stop = threading.Event()

    def hunt() -> None:
        while len(killed) < times and not stop.wait(0.005):
            fresh = [child.pid for child in active_children() if child.pid not in killed]
            if fresh and condition():
                os.kill(fresh[0], signal.SIGKILL)
                killed.append(fresh[0])

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_killed_worker_is_replaced_and_the_bytes_are_the_same(tmp_path, tracker, tree):
    whole = pack(config(tmp_path / "whole"), tracker)
    work = tmp_path / "killed" / workers.WORK_FOLDER
    with killer(lambda: any(work.glob("0*.*")), times=2) as killed:
        assert pack(config(tmp_path / "killed", workers=2), tracker) == whole
    assert killed
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_unit_that_kills_every_worker_ends_in_one_message(tmp_path, tracker, monkeypatch):
    monkeypatch.setattr(workers, "MAX_RESTARTS", 1)
    with killer(lambda: True, times=8), pytest.raises(MachineError, match="killed 2 times"):
        pack(config(tmp_path / "out", workers=2), tracker)
    assert not active_children()


def test_an_error_of_a_worker_is_the_error_of_the_job(tmp_path, tracker):
    (tmp_path / "out" / "00001.tar").mkdir(parents=True)
    with pytest.raises(MachineError, match=r"00001\.tar: cannot be written"):
        pack(config(tmp_path / "out", workers=2), tracker)
    assert not active_children()


def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from data_pipeline.pack import PackConfig, pack\n"
        "from data_pipeline.scenes.corpus import CorpusConfig\n"
        "from mgpt.tracking.tracker import Tracker, TrackingConfig\n"
        "if __name__ == '__main__':\n"
        "    out = sys.argv[1]\n"
        "    tracker = Tracker(TrackingConfig(mode='disabled'), Path(out), 't', record=False)\n"
        "    scenes = CorpusConfig(num_scenes=100_000, split='train')\n"
        "    pack(PackConfig(source='scenes', output=out, workers=2, scenes=scenes), tracker)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "out")])
    work = tmp_path / "out" / workers.WORK_FOLDER
    try:
        until(lambda: len(list(work.glob("0*.*"))) == 2, seconds=120)
        children = children_of(parent.pid)
        assert len(children) >= 2
    finally:
        parent.kill()
        parent.wait(timeout=10)
    # The kernel ends them with their parent; a busy machine may take a while to do so.
    until(lambda: not any(map(is_alive, children)), seconds=20)


def until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether the process runs; an orphan that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
