"""Slurm's variables of a task → the rank that it is, and tasks that are no ranks."""

import os

import pytest

from mgpt.errors import ConfigError
from mgpt.launching.srun import join_step, num_tasks, rank_variables, refuse_step

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "rack[2-3]n[01-04,7],other",
    "SLURM_PROCID": "1",  # of a cyclic distribution: the first task of the second node
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a task of STEP."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in rank_variables(STEP):
            monkeypatch.delenv(name)
    for name, value in {**STEP, **dict.fromkeys(rank_variables(STEP), "")}.items():
        monkeypatch.setenv(name, value)  # restored afterwards
    for name in rank_variables(STEP):
        monkeypatch.delenv(name)


def test_ranks_are_numbered_node_by_node() -> None:
    found = rank_variables(STEP)
    assert (found["RANK"], found["WORLD_SIZE"]) == ("2", "5")
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("0", "2")
    assert found["MASTER_ADDR"] == "rack2n01"
    places = [(node, local) for node, count in enumerate((2, 2, 1)) for local in range(count)]
    ranks = [
        rank_variables({**STEP, "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)})
        for node, local in places
    ]
    assert [one["RANK"] for one in ranks] == ["0", "1", "2", "3", "4"]
    assert len({(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in ranks}) == 1


def test_a_given_address_stays_and_another_step_has_another_port() -> None:
    given = rank_variables({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9"})
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "9")
    other = rank_variables({**STEP, "SLURM_STEP_ID": "1"})
    assert other["MASTER_PORT"] != rank_variables(STEP)["MASTER_PORT"]


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "0"},  # torchrun, or the script of mgpt submit
        {"SLURM_STEP_ID": ""},  # a batch script
        {"SLURM_STEP_ID": str(0xFFFFFFFA)},  # salloc's own shell
        {"SLURM_PTY_PORT": "40000"},  # srun --pty bash
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun -n1 mgpt pretrain parallel.procs=8
    ],
)
def test_what_is_no_task_among_others(changes: dict[str, str]) -> None:
    assert num_tasks({**STEP, **changes}) == 1
    assert num_tasks(STEP) == 5


@pytest.mark.usefixtures("task")
def test_a_task_joins_once() -> None:
    join_step("auto")
    assert os.environ["RANK"] == "2"
    os.environ["RANK"] = "set by another launcher"
    join_step("auto")
    assert os.environ["RANK"] == "set by another launcher"


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize(
    ("alone", "procs", "words"),
    [
        ("single", "auto", "5 tasks and parallel=single is one process"),
        ("", 8, r"2 tasks on this node.*parallel.procs=8.*--ntasks-per-node=8"),
    ],
)
def test_settings_that_say_otherwise(alone: str, procs: int | str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        join_step(procs, alone)
    assert "RANK" not in os.environ


@pytest.mark.usefixtures("task")
def test_a_pipeline_is_not_started_by_each_task() -> None:
    with pytest.raises(ConfigError, match="srun started 5 tasks, and each would be a pipeline"):
        refuse_step("a pipeline")
