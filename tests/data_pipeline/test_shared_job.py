"""One job, started by different launchers: each start joins, and the death of one costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.workers import WORK_FOLDER
from data_pipeline.verify import Config as VerifyConfig
from data_pipeline.verify import verify

MOST_S = 120  # a machine that does other work takes its time to start Python
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_")


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


def start(output: Path, raw: Path, vq: str, **environment: str) -> subprocess.Popen:
    command = ["tokenize", f"input={raw}", f"output={output}", f"vq={vq}", "resolution=[16,32]"]
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt", *command, "device=cpu", "tracking=disabled"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )


def claims_of(work: Path, pid: int) -> list[str]:
    found = []
    for path in work.glob("0*.*"):
        try:
            if json.loads(path.read_bytes()).get("pid") == pid:
                found.append(path.name)
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Until it holds, while the process runs."""
    deadline = time.monotonic() + MOST_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def test_an_array_element_and_a_start_by_hand_share_a_job_and_one_is_killed(
    tmp_path, vq, tracker, write_tar, picture, tree
):
    raw, output = tmp_path / "raw", tmp_path / "out"
    for shard in range(6):
        members = {f"{n:02d}.v1.png": picture(36, 32, seed=100 * shard + n) for n in range(40)}
        write_tar(raw / f"{shard:05d}.tar", members)
    array = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
    element = start(output, raw, vq, **array)
    processes = [element]
    try:
        wait_for(lambda: claims_of(output / WORK_FOLDER, element.pid), element)
        element.send_signal(signal.SIGSTOP)  # it holds its shard while the other one works
        by_hand = start(output, raw, vq)
        processes.append(by_hand)
        wait_for(lambda: claims_of(output / WORK_FOLDER, by_hand.pid), by_hand)
        element.kill()
        assert by_hand.wait(timeout=MOST_S) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=10)
    assert json.loads((output / "DONE").read_bytes())["figures"]["inputs"] == 240
    assert not (output / WORK_FOLDER).exists()
    result = verify(VerifyConfig(input=str(output), raw=str(raw)), tracker)
    assert result["ok"] and (result["written"], result["duplicates"]) == (240, 0)
    alone = {"input": str(raw), "output": str(tmp_path / "alone"), "vq": vq, "device": "cpu"}
    tokenize(TokenizeConfig(**alone, resolution=[16, 32]), tracker)
    for px in ("16", "32"):
        assert tree(output / px) == tree(tmp_path / "alone" / px)
