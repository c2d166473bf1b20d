"""The books of a submission: one live job a folder, one submission at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt.errors import ConfigError
from mgpt.launching import slurm
from mgpt.launching.launch_folder import LaunchFolder
from mgpt.launching.slurm import Job
from mgpt.launching.standing import standing


def job(job_id: str, state: str, **fields: object) -> Job:
    given = {"reason": "", "restarts": 0, "run_time": "", "time_limit": "", "nodes": "vn1"}
    return Job(id=job_id, state=state, dependency="", **{**given, **fields})  # type: ignore[arg-type]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Job]]:
    """What the controller knows, by id."""
    known: dict[str, list[Job]] = {}
    monkeypatch.setattr(slurm, "is_here", lambda: True)
    monkeypatch.setattr(slurm, "look", lambda job_id: known.get(job_id, []))
    return known


def test_a_live_job_is_named(tmp_path: Path, queue: dict[str, list[Job]]) -> None:
    launch = LaunchFolder(tmp_path / "out" / "launch")
    with launch.claim():
        launch.freeze({"job.sbatch": "#!/bin/bash\n"})
        launch.set_job("17")
    queue["17"] = [job("17", "RUNNING", nodes="vn[1-2]")]
    with pytest.raises(ConfigError, match=r"out: job 17 \(RUNNING on vn\[1-2\]\) works in this"):
        with launch.claim():
            raise AssertionError
    for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
        queue["17"] = [job("17", state)]
        with launch.claim():
            pass
    queue.clear()
    with launch.claim():
        pass


def test_a_job_that_took_over_from_an_element_is_live_too(
    tmp_path: Path, queue: dict[str, list[Job]]
) -> None:
    launch = LaunchFolder(tmp_path / "launch")
    (launch.path / "element_3").mkdir(parents=True)
    launch.set_job("5")
    (launch.path / "element_3" / "job").write_text("99\n")
    queue["5"], queue["99"] = [job("5_0", "COMPLETED")], [job("99", "PENDING", nodes="")]
    assert launch.live_job() == "job 99 (PENDING)"


def test_a_local_job_is_live_while_its_process_is(tmp_path: Path) -> None:
    launch = LaunchFolder(tmp_path / "launch")
    launch.path.mkdir()
    here = os.uname().nodename
    with subprocess.Popen(["sleep", "60"], executable="/bin/sleep") as other:
        launch.set_job(f"local {here} {other.pid}")
        assert launch.local_pid == other.pid and launch.live_job() is None, "its number, not mgpt"
        other.kill()
    with subprocess.Popen(["mgpt", "60"], executable="/bin/sleep") as ours:
        launch.set_job(f"local {here} {ours.pid}")
        assert launch.live_job() == f"process {ours.pid} on {here}"
        launch.set_job(f"local elsewhere {ours.pid}")
        assert launch.local_pid is None and launch.live_job() is None
        ours.kill()
    assert launch.slurm_jobs == []


def test_two_submissions_at_once(tmp_path: Path, queue: dict[str, list[Job]]) -> None:
    launch = LaunchFolder(tmp_path / "launch")
    with launch.claim():
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on .* is submitting here"):
            with launch.claim():
                raise AssertionError
    with launch.claim():
        pass
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True)  # fmt: skip
    claim = {"host": os.uname().nodename, "pid": int(ended.stdout), "time": 0}
    (launch.path / "submitting").write_text(json.dumps(claim))
    with launch.claim():
        pass  # what a dead process left is no hindrance


def test_a_new_submission_begins_with_empty_books_and_keeps_the_starts(tmp_path: Path) -> None:
    launch = LaunchFolder(tmp_path / "launch")
    (launch.path / "starts").mkdir(parents=True)
    for name in ("starts/1", "barren", "cancelled", "job"):
        (launch.path / name).write_text("3 0\n")
    (launch.path / "state").write_text("failed\t7\t1.5\tshard 7 is cut short\tand more\n")
    assert [(s.word, s.job, s.reason) for s in launch.states] == [
        ("failed", "7", "shard 7 is cut short")
    ]
    launch.freeze({"job.sbatch": "#!/bin/bash\n", "code.json": "{}"})
    names = sorted(path.name for path in launch.path.iterdir())
    assert names == ["code.json", "job.sbatch", "logs", "starts"]
    assert os.access(launch.path / "job.sbatch", os.X_OK)


def test_where_a_run_stands(tmp_path: Path) -> None:
    rows = [
        {"step": n, "loss": 3.0 - n / 10, "step_s": 2.0, "tokens_per_s": 50} for n in range(1, 6)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    for step, complete in ((2, True), (4, True), (5, False)):
        folder = tmp_path / f"step_{step:08d}"
        folder.mkdir()
        if complete:
            (folder / "COMPLETE").touch()
    found = standing(tmp_path, steps=20)
    assert (found.step, found.loss, found.tokens_per_s) == (5, 2.5, 50)
    assert (found.checkpoint, found.left_s, found.is_done) == (4, 30.0, False)
    assert standing(tmp_path / "nothing", steps=20).step is None


def test_what_scontrol_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "JobId=12 JobName=a b JobState=PENDING Reason=Dependency Dependency=afterok:7(unfulfilled) "
        "Requeue=1 Restarts=2 BatchFlag=1 RunTime=00:00:00 TimeLimit=1-00:00:00 "
        "ReqNodeList=(null) ExcNodeList=vn9 NodeList=(null) NumNodes=2"
    )
    element = "JobId=14 ArrayJobId=13 ArrayTaskId=1-3 JobName=t JobState=RUNNING NodeList=vn1"
    monkeypatch.setattr(slurm, "_run", lambda *words: f"{line}\n{element}\n")
    waiting, running = slurm.look("12")
    assert (waiting.id, waiting.state, waiting.reason) == ("12", "PENDING", "Dependency")
    assert (waiting.restarts, waiting.nodes, waiting.time_limit) == (2, "", "1-00:00:00")
    assert (running.id, running.state, running.nodes) == ("13_1-3", "RUNNING", "vn1")
    assert waiting.is_live and running.is_live
