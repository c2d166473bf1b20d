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

from data_pipeline.tokenize import TokenizeConfig, tokenize
from data_pipeline.tokenizing.workers import WORK_FOLDER, Place
from data_pipeline.verify import VerifyConfig, verify

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


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(5, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, Place(3, 4, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "1",
            },
            Place(5, 10, 0),
        ),
        ({"RANK": "", "SLURM_ARRAY_TASK_ID": "x"}, Place(0, 1, 0)),
    ],
)
def test_the_place_among_others_is_what_the_launcher_says(monkeypatch, environment, place):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Place.of_environment() == place


def test_starts_begin_apart_and_reach_every_unit():
    units = [f"{n:05d}" for n in range(10)]
    orders = [Place(number, 3).first(units, slot, 2) for number in range(3) for slot in range(2)]
    assert [order[0] for order in orders] == ["00000", "00001", "00003", "00005", "00006", "00008"]
    assert all(sorted(order) == units for order in orders)
    assert Place(7, 100).first(["only"], 0, 1) == ["only"]
