"""A training submitted to a real Slurm, and what may happen to it there."""

import os
import signal
from pathlib import Path

import pytest
from cluster import Cluster
from cluster_node import until
from submission import Submission, rows, same_training


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a space in its path, as users have them."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_told_to_save_it_goes_on_where_it_was_bit_by_bit(slurm: Cluster, folder: Path) -> None:
    run = Submission(slurm, folder / "out", steps=50)
    assert "mgpt status output=" in run.submit().stdout
    job = run.job
    run.wait_step(3)
    again = run.submit(check=False)
    assert again.returncode == 2
    assert f"job {job} (" in again.stderr and "works in this folder" in again.stderr
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    run.wait_complete()
    assert run.job == job and run.starts == 2, "its own requeue is not refused"
    assert "going on from" in (run.launch / "logs" / "2" / "rank_0000.log").read_text()
    assert {path.name for path in (run.launch / "logs" / "2").iterdir()} == {
        f"rank_{rank:04d}.log" for rank in range(4)
    }
    shown = run.mgpt("status", f"output={run.output}").stdout
    assert "complete" in shown and "50/50" in shown
    same_training(run.output, run.undisturbed())


@pytest.mark.long
@pytest.mark.parametrize("loss", ["a rank", "a node", "the first node's slurmd"])
def test_what_is_lost_is_made_up_for_bit_by_bit(slurm: Cluster, folder: Path, loss: str) -> None:
    run = Submission(slurm, folder / "out", steps=600, save_every=5)
    run.submit()
    run.wait("a checkpoint", lambda: list(run.output.glob("step_*/COMPLETE")))
    old = slurm.processes("vn1", "mgpt pretrain")
    assert len(old) >= 2
    if loss == "a rank":
        os.kill(slurm.processes("vn2", "mgpt pretrain")[-1], signal.SIGKILL)
    elif loss == "a node":
        slurm.kill_node("vn2")
    else:
        slurm.kill_slurmd("vn1")
    run.wait("another start", lambda: run.starts >= 2)
    run.wait_complete()
    first = (run.launch / "logs" / "2" / "rank_0000.log").read_text()
    assert "going on from" in first
    if loss == "the first node's slurmd":
        until("the old ranks to end", lambda: not set(old) & set(living(old)), 120, 0.5)
    assert run.starts == 2 and rows(run.output)[-1]["step"] == 600
    same_training(run.output, run.undisturbed())


def living(pids: list[int]) -> list[int]:
    """Those that run still, and are no zombies."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


@pytest.mark.long
def test_elastic_goes_on_with_the_nodes_that_are_left(own_nodes: Cluster, folder: Path) -> None:
    slurm = own_nodes
    for name in ("vn3", "vn4"):
        slurm.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")
    try:
        run = Submission(slurm, folder / "out", steps=300, save_every=5)
        run.submit("launcher.elastic=1")
        run.wait("a checkpoint", lambda: list(run.output.glob("step_*/COMPLETE")))
        assert len(list((run.launch / "logs" / "1").iterdir())) == 4
        slurm.kill_node("vn2")
        run.wait_complete()
        assert len(list((run.launch / "logs" / "2").iterdir())) == 2, "two ranks on one node"
        assert [row["step"] for row in rows(run.output)] == list(range(1, 301))
    finally:
        for name in ("vn3", "vn4"):
            slurm.run("scontrol", "update", f"NodeName={name}", "State=RESUME")


@pytest.mark.long
def test_without_requeue_a_follow_up_job_hands_its_dependants_on(
    slurm: Cluster, folder: Path
) -> None:
    run = Submission(slurm, folder / "out", steps=100)
    run.submit("launcher.requeue=false")
    first = run.job
    script = folder / "after.sh"
    script.write_text("#!/bin/bash\ntrue\n")
    waits = slurm.submit(f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes", str(script))
    run.wait_step(3)
    slurm.run("scancel", "--batch", "--signal=USR1", first)
    run.wait("a follow-up", lambda: run.job != first)
    run.wait(
        "the dependant to wait for it",
        lambda: f"afterok:{run.job}" in slurm.job(waits)["Dependency"],
    )
    run.wait_complete()
    slurm.wait(waits, "COMPLETED")
    assert run.starts == 2
    same_training(run.output, run.undisturbed())


@pytest.mark.long
def test_cancelled_is_cancelled_and_the_same_command_goes_on(slurm: Cluster, folder: Path) -> None:
    run = Submission(slurm, folder / "out", steps=60)
    run.submit()
    run.wait_step(3)
    assert "is ended" in run.mgpt("cancel", f"output={run.output}").stdout
    slurm.wait(run.job, "CANCELLED")
    assert "cancelled" in run.mgpt("status", f"output={run.output}").stdout
    run.submit()
    run.wait_complete()
    assert rows(run.output)[-1]["step"] == 60
