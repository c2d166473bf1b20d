"""Pipelines as chains of jobs on a real Slurm, and jobs that take over from one another."""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from cluster_node import until
from training import MGPT, PATIENCE_S, STEPS, Inputs, Run, Training, assert_same

CHAIN_S = 900
pytestmark = pytest.mark.timeout(1500)  # a busy machine takes minutes for what follows
ON_CPUS = ("launcher=slurm", "launcher.gpus_per_node=0", "launcher.time=30")


def mgpt(slurm: Cluster, *words: str) -> str:
    """What a command says, run where the cluster is reached."""
    return slurm.run(*MGPT, *words, timeout_s=PATIENCE_S).stdout


def job_of(output: Path) -> str:
    return (output / "launch" / "job").read_text().strip()


def test_a_stage_that_fails_stops_the_chain_and_status_says_which(
    slurm: Cluster, tmp_path: Path
) -> None:
    output = tmp_path / "a chain"
    (output / "scenes_raw" / "00000.tar").mkdir(parents=True)  # where a file belongs
    words = (*ON_CPUS, "launcher.restarts=0")
    mgpt(slurm, "submit", "pipeline", "recipe=tiny", f"output={output}", *words)
    slurm.wait(job_of(output / "scenes_raw"), "FAILED", timeout_s=PATIENCE_S)
    for waiting in ("train_vq", "scenes_tokens", "scenes_tokens.verify", "pretrain", "report"):
        slurm.wait(job_of(output / waiting), "CANCELLED")
    shown = mgpt(slurm, "status", f"output={output}")
    lines = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│")}
    assert "failed" in lines["scenes_raw"] and "not started" in lines["report"]
    (reason,) = [line for line in shown.splitlines() if "scenes_raw: failed: " in line]
    assert "00000.tar" in reason and "1 starts in a row brought nothing" in reason
    assert "train_vq: not started: scenes_raw did not succeed" in shown


def test_a_recipe_runs_through_as_a_chain_with_an_element_of_its_array_killed(
    slurm: Cluster, tmp_path: Path
) -> None:
    output = tmp_path / "a chain"
    words = [*ON_CPUS, "launcher.nodes=2", "launcher.procs_per_node=1", f"output={output}"]
    words.append("launcher.stages.held_out_tokens.array=1")
    mgpt(slurm, "submit", "pipeline", "recipe=tiny", *words)
    array = job_of(output / "scenes_tokens")
    before = job_of(output / "fp_sft" / "64")
    assert f"afterok:{before}" in slurm.job(job_of(output / "omni_sft"))["Dependency"]
    element = f"{array}_2"
    slurm.wait(element, "RUNNING", timeout_s=CHAIN_S)
    slurm.run("scancel", "--full", "--signal=KILL", element)
    slurm.wait(job_of(output / "report"), "COMPLETED", timeout_s=CHAIN_S)
    assert sorted(slurm.states(array)) == ["CANCELLED", "COMPLETED", "COMPLETED", "COMPLETED"]
    assert slurm.states(job_of(output / "scenes_tokens.verify")) == ["COMPLETED"]
    for stage, before in (("fp_sft/32", "pretrain"), ("omni_sft", "fp_sft/64")):
        said = (output / stage / "launch" / "logs" / "1" / "rank_0000.log").read_text()
        assert f"from the weights of {output / before}" in said
    assert json.loads((output / "report.json").read_text())["measures"]
    shown = mgpt(slurm, "status", f"output={output}")
    stages = [line for line in shown.splitlines() if line.startswith("│")]
    assert len(stages) == 16 and all(" complete " in line for line in stages), shown
    again = mgpt(slurm, "submit", "pipeline", "recipe=tiny", *words)
    assert "there is nothing to submit" in again


@pytest.mark.long
def test_without_requeue_a_follow_up_job_takes_over_with_what_waits(
    slurm: Cluster, inputs: Inputs, undisturbed: Run, tmp_path: Path
) -> None:
    run = Training(slurm, inputs, tmp_path / "run", "launcher.requeue=false")
    first = run.submit()
    script = tmp_path / "after.sh"
    script.write_text("#!/bin/bash\ntrue\n")
    options = (f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes", "--output=/dev/null")
    waits = slurm.submit(*options, str(script))
    run.reach(7)
    slurm.run("scancel", "--batch", "--signal=USR1", first)
    until("a follow-up", lambda: job_of(run.output) != first, PATIENCE_S)
    run.job = job_of(run.output)
    until(
        "its dependant",
        lambda: f"afterok:{run.job}" in slurm.job(waits)["Dependency"],
        PATIENCE_S,
    )
    run.finish()
    slurm.wait(waits, "COMPLETED")
    assert run.starts() == 2 and run.step() == STEPS
    assert_same(run, undisturbed)


@pytest.mark.long
def test_elastic_goes_on_with_the_nodes_that_are_left(
    slurm: Cluster, inputs: Inputs, tmp_path: Path
) -> None:
    names = "NodeName=vn[3-4]"
    slurm.run("scontrol", "update", names, "State=DRAIN", "Reason=test")
    try:
        run = Training(slurm, inputs, tmp_path / "run", "launcher.elastic=1")
        run.submit()
        run.reach(12)
        slurm.kill_node("vn2")
        run.finish()
    finally:
        slurm.run("scontrol", "update", names, "State=RESUME")
    logs = run.output / "launch" / "logs"
    assert [len(list((logs / start).glob("rank_*"))) for start in ("1", "2")] == [4, 2]
    assert [row["step"] for row in run.rows()] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_cancelled_is_cancelled_and_the_same_command_goes_on(
    slurm: Cluster, training: Training
) -> None:
    first = training.submit()
    training.reach(7)
    assert "is ended" in training.mgpt("cancel")
    slurm.wait(first, "CANCELLED")
    assert training.starts() == 1, "it does not go back into the queue"
    assert "cancelled" in training.mgpt("status")
    assert training.submit() != first
    training.finish()
    assert [row["step"] for row in training.rows()] == list(range(1, STEPS + 1))
