"""A tokenising job as a Slurm array beside a worker started by hand; an element is killed."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster
from PIL import Image

from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.workers import WORK_FOLDER
from data_pipeline.verify import Config as VerifyConfig
from data_pipeline.verify import verify
from mgpt.tracking.tracker import Tracker, TrackingConfig

pytestmark = pytest.mark.timeout(600)
NUM_SHARDS, SHARD_SAMPLES = 16, 60


def write_noise(folder: Path) -> None:
    """Raw shards of pictures that take some time to encode and none to make."""
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(SHARD_SAMPLES):
                levels_HWC = np.random.default_rng([shard, index]).integers(0, 256, (64, 64, 3))
                png = io.BytesIO()
                Image.fromarray(levels_HWC.astype(np.uint8)).save(png, "PNG")
                info = tarfile.TarInfo(f"{index:02d}.png")
                info.size = png.tell()
                png.seek(0)
                tar.addfile(info, png)


def holders(work: Path) -> set[int]:
    """Pids that newest claims name, as their own nodes see them."""
    found = set()
    for path in work.glob("0*.*"):
        try:
            found.add(json.loads(path.read_bytes()).get("pid"))
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_one_at_work(slurm: Cluster, job: str, pids: Path, work: Path) -> None:
    """SIGKILL, through Slurm, to the first element of the array that holds a claim."""

    def signal_element(name: str, element: Path) -> None:
        slurm.run("scancel", "--full", f"--signal={name}", f"{job}_{element.name}")

    def is_killed() -> bool:
        for element in pids.iterdir():
            pid = int(element.read_text() or 0)
            if pid in holders(work):
                signal_element("STOP", element)  # what it holds now it holds when it is killed
                time.sleep(0.5)
                if pid in holders(work):
                    signal_element("KILL", element)
                    return True
                signal_element("CONT", element)
        return False

    wait_for(is_killed)


@pytest.mark.parametrize(
    "where",
    [
        # On one node, whose death the others see at once; on another they wait for the lease.
        pytest.param("--nodelist=vn1", id="on one node"),
        pytest.param("--exclusive", id="on four nodes", marks=pytest.mark.long),
    ],
)
def test_an_array_and_a_worker_by_hand_share_a_job_and_one_element_is_killed(
    slurm: Cluster, tmp_path: Path, vq: str, where: str
) -> None:
    raw, output, pids = tmp_path / "raw", tmp_path / "tokens", tmp_path / "pids"
    pids.mkdir()
    write_noise(raw)
    words = [sys.executable, "-m", "mgpt", "tokenize", f"input={raw}", f"output={output}"]
    words += [f"vq={vq}", "resolution=[32,64]", "device=cpu", "tracking=disabled"]
    script = tmp_path / "job.sh"
    # exec: the element's pid is that of its batch shell.
    line = f"#!/bin/bash\necho $$ > {pids}/$SLURM_ARRAY_TASK_ID\nexec {' '.join(words)}\n"
    script.write_text(line)
    by_hand = subprocess.Popen(slurm.command(*words), env=slurm.environment)
    try:
        wait_for(lambda: by_hand.pid in holders(output / WORK_FOLDER))
        by_hand.send_signal(signal.SIGSTOP)  # it would be done before the array has begun
        job = slurm.submit("--array=0-3", where, f"--output={tmp_path}/%a.out", str(script))
        kill_one_at_work(slurm, job, pids, output / WORK_FOLDER)
        by_hand.send_signal(signal.SIGCONT)
        assert by_hand.wait(timeout=200) == 0
    finally:
        by_hand.kill()
        by_hand.wait(timeout=10)
    slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", timeout_s=100)
    ends = sorted(slurm.states(job))
    assert len(ends) == 4 and ends.count("COMPLETED") == 3, ends
    check_whole(tmp_path, raw, output, vq)


def check_whole(tmp_path: Path, raw: Path, output: Path, vq: str) -> None:
    """The output holds every sample once, in the bytes that one undisturbed process writes."""
    assert json.loads((output / "DONE").read_bytes())["figures"]["inputs"] == (
        NUM_SHARDS * SHARD_SAMPLES
    )
    assert not (output / WORK_FOLDER).exists()
    tracker = Tracker(TrackingConfig(mode="disabled"), tmp_path / "run", "test", record=False)
    result = verify(VerifyConfig(input=str(output), raw=str(raw)), tracker)
    assert result["ok"] and (result["written"], result["duplicates"]) == (960, 0)
    alone = tmp_path / "alone"
    settings = {"input": str(raw), "output": str(alone), "vq": vq, "device": "cpu"}
    tokenize(TokenizeConfig(**settings, resolution=[32, 64]), tracker)
    for px in ("32", "64"):
        for file in sorted((alone / px).iterdir()):
            assert (output / px / file.name).read_bytes() == file.read_bytes(), file.name
