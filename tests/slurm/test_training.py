"""Trainings on two nodes that are stopped, killed and continued by Slurm."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from cluster_node import until
from training import Inputs, Training, assert_same

sys.path.append(str(Path(__file__).parents[1] / "tracking"))
from wandb_files import config, history, run_files

pytestmark = pytest.mark.timeout(1500)  # a busy machine takes minutes for what follows


@pytest.fixture(scope="session")
def undisturbed(
    _cluster: Cluster, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory
) -> Training:
    """The same training without any disturbance, to compare with."""
    run = Training(_cluster, inputs, tmp_path_factory.mktemp("undisturbed") / "run")
    run.submit()
    run.finish()
    return run


def test_a_signal_before_the_limit_saves_and_the_requeued_job_goes_on_bit_for_bit(
    training: Training, slurm: Cluster, undisturbed: Training
) -> None:
    job = training.submit()
    training.reach(7)
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@… sends it
    # Its own requeue may go on in the folder, another submission may not.
    again = slurm.run(*training.mgpt("submit", *training.command), check=False, timeout_s=300)
    assert again.returncode == 2 and f"job {job}" in again.stderr, again.stderr
    assert str(training.output) in again.stderr
    training.finish()
    assert "stopped by SIGUSR1" in training.log()
    assert slurm.job(job)["Restarts"] == "1" and training.starts() == 2
    saved = json.loads((training.output / "DONE").read_text())["figures"]
    assert saved["steps"] == 30
    assert_same(training, undisturbed)
    logs = sorted((training.output / "launch" / "logs" / "2").glob("rank_*.log"))
    assert [log.name for log in logs] == [f"rank_{rank:04d}.log" for rank in range(4)]
    shown = slurm.run(*training.mgpt("status", f"output={training.output}"), timeout_s=300)
    assert "complete" in shown.stdout and "30" in shown.stdout


@pytest.mark.long
def test_slurm_itself_signals_before_the_time_limit(
    slurm: Cluster, inputs: Inputs, tmp_path: Path
) -> None:
    limits = ("launcher.time=5", "launcher.signal_s=150")  # from 90 s after the start on
    run = Training(slurm, inputs, tmp_path / "run", "steps=1000000", "save_every=1000", *limits)
    job = run.submit()
    run.reach(1)
    until("a start after the first", lambda: run.starts() > 1, 400)
    assert "stopped by SIGUSR1" in run.log()
    before = run.step()
    until("a step of the second start", lambda: run.step() > before, 200)
    steps = [row["step"] for row in run.rows()]
    assert steps == list(range(1, len(steps) + 1)) and len(list(run.output.glob("step_*"))) > 0
    slurm.run(*run.mgpt("cancel", f"output={run.output}"), timeout_s=300)
    slurm.wait(job, "CANCELLED")


@pytest.mark.long
def test_cancelled_is_not_requeued(training: Training, slurm: Cluster) -> None:
    job = training.submit()
    training.reach(3)
    slurm.run(*training.mgpt("cancel", f"output={training.output}"), timeout_s=300)
    slurm.wait(job, "CANCELLED")
    assert training.starts() == 1


@pytest.mark.long
def test_a_killed_rank_brings_the_job_back_and_it_goes_on(
    training: Training, slurm: Cluster, undisturbed: Training
) -> None:
    job = training.submit()
    training.reach(12)
    ranks = slurm.processes("vn2", "mgpt pretrain")
    assert ranks
    slurm.run("sh", "-c", f"kill -9 {' '.join(map(str, ranks))}")
    training.finish()
    assert int(slurm.job(job)["Restarts"]) == 1
    assert_same(training, undisturbed)


@pytest.mark.long
def test_its_run_in_weights_and_biases_has_every_step_once(
    slurm: Cluster, inputs: Inputs, tmp_path: Path
) -> None:
    run = Training(slurm, inputs, tmp_path / "run", "tracking=offline")
    job = run.submit()
    for number, (step, disturbance) in enumerate([(7, "USR1"), (14, "power"), (22, "USR1")]):
        run.reach(step)
        if disturbance == "USR1":
            slurm.run("scancel", "--batch", "--signal=USR1", job)
        else:
            slurm.kill_node(slurm.nodes_of(job)[-1])
        until("another start", lambda n=number: run.starts() > n + 1, 240)
    run.finish()
    shown, recorded = history(run.output), {row["step"]: row["loss"] for row in run.rows()}
    assert {step: row["loss"] for step, row in shown.items() if "loss" in row} == recorded
    assert sorted(recorded) == list(range(1, 31))
    starts = config(run_files(run.output)[-1])["starts"]
    assert len(starts) == 4 and {one["job"] for one in starts} == {job}


@pytest.mark.long
def test_a_node_without_power_is_left_and_the_job_goes_on_elsewhere(
    training: Training, slurm: Cluster, undisturbed: Training
) -> None:
    job = training.submit()
    training.reach(12)
    slurm.kill_node("vn2")
    training.finish()
    assert "vn2" not in slurm.job(job)["NodeList"]
    assert_same(training, undisturbed)


def test_ranks_that_outlive_their_slurmd_end_by_fencing_and_overwrite_nothing(
    training: Training, slurm: Cluster, undisturbed: Training
) -> None:
    job = training.submit()
    training.reach(7)
    nodes = slurm.job(job)["NodeList"]
    lost = [name for name in slurm.names if name in ("vn1", "vn2")]
    assert nodes == "vn[1-2]"
    for node in lost:
        slurm.kill_slurmd(node)
    # The ranks live on, and Slurm believes their nodes lost. They sleep until others took over.
    old = [pid for node in lost for pid in slurm.processes(node, "mgpt pretrain")]
    assert len(old) == 4
    for pid in old:
        os.kill(pid, signal.SIGSTOP)
    stopped_at = training.step()
    assert stopped_at < 25
    until("a start after the first", lambda: training.starts() > 1, 120)
    attempts = training.output / "attempts"
    until("a second attempt", lambda: (attempts / "2").exists(), 120)
    for pid in old:
        os.kill(pid, signal.SIGCONT)
    training.finish()
    assert slurm.job(job)["NodeList"] == "vn[3-4]"
    until("the old ranks to end", lambda: not any(map(is_running, old)), 120)
    assert_same(training, undisturbed)
    for complete in training.output.glob("step_*/COMPLETE"):
        of_old = int(complete.parent.name[5:]) <= stopped_at
        assert json.loads(complete.read_text())["attempt"] == (1 if of_old else 2)
    error = (training.output / "launch" / "errors" / "1").read_text()
    assert "this one ends without saving" in error, "by the fence, at a step or at a save"
    said = [line for line in training.log().splitlines() if line.startswith("mgpt: ")]
    ends = [line for line in said if line.endswith(" complete")]
    assert len(ends) == 1, "the lost start does not call its job complete"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
