"""Ranks that srun starts by itself, and jobs of sites that keep the environment out of them."""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from training import MGPT, PATIENCE_S, STEPS, Inputs, Run, Training, assert_same

pytestmark = pytest.mark.timeout(1500)  # a busy machine takes minutes for what follows


def srun(slurm: Cluster, run: Run, *options: str, check: bool = True):  # type: ignore[no-untyped-def]
    """The run's own command without `submit`, as tasks of one step."""
    submit = run.command.index("submit")
    words = [*run.command[:submit], *run.command[submit + 1 :]]
    return slurm.run("srun", *options, *words, check=check, timeout_s=PATIENCE_S)


def test_the_tasks_of_a_step_are_the_ranks_of_one_run(
    slurm: Cluster, inputs: Inputs, undisturbed: Run, tmp_path: Path
) -> None:
    run = Run(inputs, tmp_path / "run")
    # cyclic: the second task is on the second node, where it is not the second rank
    srun(slurm, run, "--nodes=2", "--ntasks=4", "--distribution=cyclic")
    assert [attempt.name for attempt in (run.output / "attempts").iterdir()] == ["1"]
    assert json.loads((run.output / "DONE").read_text())["figures"]["steps"] == STEPS
    assert_same(run, undisturbed)


def test_tasks_that_were_meant_as_runs_of_their_own_are_refused_once(
    slurm: Cluster, inputs: Inputs, tmp_path: Path
) -> None:
    single = srun(
        slurm,
        Run(inputs, tmp_path / "a", "parallel=single"),
        "--nodes=1",
        "--ntasks=2",
        check=False,
    )
    assert single.returncode == 2
    assert single.stderr.count("srun started 2 tasks and parallel=single is one process") == 1
    pipeline = (*MGPT, "pipeline", "recipe=tiny", f"output={tmp_path / 'b'}")
    many = slurm.run(
        "srun", "--nodes=2", "--ntasks=2", *pipeline, check=False, timeout_s=PATIENCE_S
    )
    assert many.returncode == 2
    assert many.stderr.count("each would be a pipeline of its own") == 1
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_job_without_the_environment_of_its_submitter_gives_the_ranks_its_own(
    slurm: Cluster, inputs: Inputs, tmp_path: Path
) -> None:
    """SBATCH_EXPORT=NONE, a site's default perhaps."""
    run = Training(slurm, inputs, tmp_path / "run", 'launcher.extra=["--export=NONE"]')
    run.submit()
    run.finish()
    assert run.starts() == 1, run.log()
