"""A tokenising job as a Slurm array beside a worker started by hand; an element is killed."""

import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster
from PIL import Image

from data_pipeline.tokenize_shards import TokenizeConfig, tokenize
from data_pipeline.verify_shards import VerifyConfig, verify
from data_pipeline.workers import WORK_FOLDER
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


def kill_while_it_works(slurm: Cluster, job: str, pid_file: Path, work: Path) -> None:
    """SIGKILL, through Slurm, to the element whose pid the file holds, once it has a claim."""
    deadline = time.monotonic() + 120
    while not (pid_file.exists() and int(pid_file.read_text() or 0) in holders(work)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    slurm.run("scancel", "--full", "--signal=KILL", job)


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
    job = slurm.submit("--array=0-3", where, f"--output={tmp_path}/%a.out", str(script))
    by_hand = subprocess.Popen(slurm.command(*words), env=slurm.environment)
    try:
        kill_while_it_works(slurm, f"{job}_2", pids / "2", output / WORK_FOLDER)
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
