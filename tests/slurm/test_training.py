"""Trainings on two nodes that are stopped, killed and continued by Slurm."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster
from cluster_node import descendants, until
from training import PATIENCE_S, STEPS, Inputs, Run, Training, assert_same, documented_command

sys.path.append(str(Path(__file__).parents[1] / "tracking"))
from wandb_files import config, history, run_files

pytestmark = pytest.mark.timeout(1500)  # a busy machine takes minutes for what follows
RANKS = "mgpt pretrain"


@dataclass(frozen=True)
class Disturbed:
    """A training that is over, and what was seen of it meanwhile.

    refused: a second submission between its first two starts.
    old: ranks of its third start, which slept while the fourth began on other nodes.
    asleep_at: the step that they had done.
    """

    run: Training
    refused: subprocess.CompletedProcess[str]
    old: list[int]
    asleep_at: int


@pytest.fixture(scope="module")
def disturbed(
    _cluster: Cluster, inputs: Inputs, begun: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Disturbed]:
    """Told to save before its time limit; then a node's step killed; then its nodes given up by
    Slurm while its ranks live on."""
    slurm, output = _cluster, tmp_path_factory.mktemp("disturbed") / "run"
    run = Training(slurm, inputs, output, "tracking=offline")
    run.submit()
    run.reach(2)
    slurm.run(*documented_command("scancel", run.job))  # USR1, as --signal=B:USR1@… sends it
    refused = slurm.run(*run.command, check=False, timeout_s=PATIENCE_S)
    run.reach(6, start=2)
    for rank in slurm.processes(slurm.nodes_of(run.job)[0], RANKS):
        for pid in (rank, *descendants(rank)):
            os.kill(pid, signal.SIGKILL)
    run.reach(9, start=3)
    old, asleep_at = give_up(run)
    run.finish()
    yield Disturbed(run, refused, old, asleep_at)
    slurm.restore()


def give_up(run: Training) -> tuple[list[int], int]:
    """SIGKILL to the slurmd of each node of the job, whose ranks live on: they sleep until others
    have taken over. Returns the ranks, and their step."""
    nodes, attempt = run.slurm.nodes_of(run.job), run.starts() + 1
    for node in nodes:
        run.slurm.kill_slurmd(node)
    ranks = [pid for node in nodes for pid in run.slurm.processes(node, RANKS)]
    assert len(ranks) == 4
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    step = run.step()
    assert step < STEPS - 2, "they would have been done before Slurm had given their nodes up"
    # As Slurm says by itself once SlurmdTimeout is over, for which this does not wait.
    lost = f"NodeName={','.join(nodes)}"
    run.slurm.run("scontrol", "update", lost, "State=DOWN", "Reason=no slurmd")
    until("other ranks", (run.output / "attempts" / str(attempt)).exists, PATIENCE_S)
    assert not set(nodes) & set(run.slurm.nodes_of(run.job))
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    return ranks, step


def test_it_is_requeued_each_time_and_ends_bit_for_bit_as_one_that_nobody_disturbed(
    disturbed: Disturbed, undisturbed: Run
) -> None:
    run = disturbed.run
    assert_same(run, undisturbed)
    job = run.slurm.job(run.job)
    assert (job["JobState"], job["Restarts"], run.starts()) == ("COMPLETED", "3", 4)
    assert "stopped by SIGUSR1" in run.log()
    assert json.loads((run.output / "DONE").read_text())["figures"]["steps"] == STEPS
    for start in "1234":
        logs = sorted((run.output / "launch" / "logs" / start).glob("rank_*.log"))
        assert [log.name for log in logs] == [f"rank_{rank:04d}.log" for rank in range(4)]
    assert "complete" in (shown := run.mgpt("status")) and f"{STEPS}/{STEPS}" in shown


def test_its_own_requeue_works_in_the_folder_and_another_submission_does_not(
    disturbed: Disturbed,
) -> None:
    refused, run = disturbed.refused, disturbed.run
    assert refused.returncode == 2 and f"job {run.job}" in refused.stderr, refused.stderr
    assert str(run.output) in refused.stderr


def test_ranks_that_outlive_their_slurmd_end_by_fencing_and_overwrite_nothing(
    disturbed: Disturbed,
) -> None:
    run = disturbed.run
    until("the old ranks to end", lambda: not any(map(is_running, disturbed.old)), PATIENCE_S)
    for complete in run.output.glob("step_*/COMPLETE"):
        of_old = int(complete.parent.name[5:]) <= disturbed.asleep_at
        assert (json.loads(complete.read_text())["attempt"] < 4) == of_old
    error = (run.output / "launch" / "errors" / "3").read_text()
    assert "this one ends without saving" in error, "by the fence, at a step or at a save"
    said = [line for line in run.log().splitlines() if line.startswith("mgpt: ")]
    ends = [line for line in said if line.endswith(" complete")]
    assert len(ends) == 1, "the lost start does not call its job complete"


def test_its_run_in_weights_and_biases_has_every_step_once(disturbed: Disturbed) -> None:
    assert_shown(disturbed.run, starts=4)


def assert_shown(run: Training, starts: int) -> None:
    """The offline files, in order, hold the record, and name every start."""
    shown, recorded = history(run.output), {row["step"]: row["loss"] for row in run.rows()}
    assert {step: row["loss"] for step, row in shown.items() if "loss" in row} == recorded
    assert sorted(recorded) == list(range(1, STEPS + 1))
    noted = config(run_files(run.output)[-1])["starts"]
    assert len(noted) == starts and {one["job"] for one in noted} == {run.job}
    assert all(one["nodes"].startswith("vn") for one in noted)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
def test_preempted_requeued_by_hand_and_hung_it_goes_on(
    slurm: Cluster, inputs: Inputs, undisturbed: Run, tmp_path: Path
) -> None:
    run = Training(slurm, inputs, tmp_path / "run", "tracking=offline", "guard.hang_s=30")
    run.submit()
    run.reach(2)
    # Preempted: the ranks get SIGTERM, the script nothing.
    all_nodes = ("--partition=high", "--nodes=4", "--exclusive")
    slurm.submit(*all_nodes, "--output=/dev/null", "--wrap=true")
    run.reach(5, start=2)
    # requeue, which does not wait for the ranks
    slurm.run(*documented_command("scontrol", run.job))
    run.reach(8, start=3)
    os.kill(slurm.processes(slurm.nodes_of(run.job)[1], RANKS)[0], signal.SIGSTOP)
    run.finish()
    logs = [log.read_text() for log in (run.output / "launch/logs/3").glob("rank_*.log")]
    assert len(logs) == 4
    assert all("(guard.hang_s); its stacks:" in text and "Thread" in text for text in logs)
    assert any("was stopped; its stacks:" in text for text in logs)
    assert_same(run, undisturbed)
    assert_shown(run, starts=4)


@pytest.mark.long
def test_without_slurms_controller_and_then_without_a_nodes_power_it_goes_on(
    slurm: Cluster, inputs: Inputs, undisturbed: Run, tmp_path: Path
) -> None:
    run = Training(slurm, inputs, tmp_path / "run", "tracking=offline")
    run.submit()
    run.reach(5)
    nodes = slurm.nodes_of(run.job)
    ranks = [pid for node in nodes for pid in slurm.processes(node, RANKS)]
    slurm.stop_controller()  # it gives no answer while the script wants to requeue
    os.kill(ranks[0], signal.SIGKILL)
    until("their end", lambda: not any(map(is_running, ranks)), PATIENCE_S)
    time.sleep(3)
    slurm.start_controller()
    run.reach(9, start=2)
    lost = slurm.nodes_of(run.job)[-1]
    slurm.kill_node(lost)
    run.finish()
    assert lost not in slurm.nodes_of(run.job)
    assert_same(run, undisturbed)
    assert_shown(run, starts=3)


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
    run.mgpt("cancel")
    slurm.wait(job, "CANCELLED")
