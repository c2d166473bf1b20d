"""Ranks that srun starts without a launcher between: `srun --ntasks=16 mgpt pretrain …` is one run.

Each task of a step finds its rank in Slurm's variables and sets those that torchrun would set, so
that everything else sees the ranks of one run. Ranks are numbered node by node, whatever
distribution of tasks srun was asked for: rank 0 is on the first node, where the others meet it.

    >>> step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "7",
    ...         "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "n[3-4]",
    ...         "SLURM_PROCID": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
    >>> rank_variables(step)["RANK"], rank_variables(step)["MASTER_ADDR"]
    ('2', 'n3')
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mgpt.errors import ConfigError, told

_FIRST_PORT, _PORTS = 10_000, 10_000  # below those that mgpt submit and ephemeral sockets take
_SPECIAL_STEPS = 0xFFFFFFF0  # from here on: an interactive shell's, a batch script's


def num_tasks(variables: Mapping[str, str] = os.environ) -> int:
    """Tasks of the srun step that this process is one of; 1 outside of such a step, or where
    torchrun or a job's script has numbered the ranks already.

    Of the tasks of an interactive `srun --pty bash` only one has a shell, so it counts as one.
    """
    step = variables.get("SLURM_STEP_ID", "")
    if "RANK" in variables or "SLURM_PTY_PORT" in variables or not step.isdigit():
        return 1
    if int(step) >= _SPECIAL_STEPS:
        return 1
    count = variables.get("SLURM_STEP_NUM_TASKS", "")
    return int(count) if count.isdigit() else 1


def join_step(procs: int | str, alone: str = "") -> None:
    """Makes this process a rank of one run if it is one of several tasks of an srun step.

    Args:
        procs: `parallel.procs`.
        alone: the backend's name if it runs in one process.

    Raises ConfigError if these say otherwise.
    """
    tasks = num_tasks()
    if tasks == 1:
        return
    variables = rank_variables(os.environ)
    local = int(variables["LOCAL_WORLD_SIZE"])
    if alone:
        raise _of_every_task(
            f"srun started {tasks} tasks and parallel={alone} is one process: set parallel= to a "
            "backend of several, or start srun --ntasks=1"
        )
    if procs not in ("auto", 1, local):
        raise _of_every_task(
            f"srun started {local} tasks on this node, each of them a rank, and parallel.procs="
            f"{procs}: leave parallel.procs out, or start srun --ntasks-per-node={procs}"
        )
    os.environ.update(variables)


def refuse_step(what: str) -> None:
    """Raises ConfigError in one of several tasks of an srun step, of which each would start `what`
    once more."""
    tasks = num_tasks()
    if tasks > 1:
        raise _of_every_task(
            f"srun started {tasks} tasks, and each would be {what} of its own in the same folder: "
            "start it once (srun --ntasks=1, or without srun), or submit it with mgpt submit"
        )


def _of_every_task(words: str) -> ConfigError:
    """A mistake that every task of the step finds; the first one tells it."""
    error = ConfigError(words)
    return error if os.environ.get("SLURM_PROCID") == "0" else told(error)


def rank_variables(step: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables of a task of a step; MASTER_ADDR and MASTER_PORT stay where given."""
    counts = _tasks_per_node(step["SLURM_STEP_TASKS_PER_NODE"])
    node, local = int(step["SLURM_NODEID"]), int(step["SLURM_LOCALID"])
    job, number = int(step["SLURM_JOB_ID"]), int(step["SLURM_STEP_ID"])
    restart = int(step.get("SLURM_RESTART_COUNT") or 0)
    # Another step has another port, so that ranks of an old one that live on cannot join it.
    port = _FIRST_PORT + (64 * job + number + restart) % _PORTS
    address = "127.0.0.1" if len(counts) == 1 else _first_host(step["SLURM_STEP_NODELIST"])
    return {
        "RANK": str(sum(counts[:node]) + local),
        "WORLD_SIZE": str(sum(counts)),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(counts[node]),
        "MASTER_ADDR": step.get("MASTER_ADDR") or address,
        "MASTER_PORT": step.get("MASTER_PORT") or str(port),
    }


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` → [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert match is not None, text
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _first_host(nodes: str) -> str:
    """`rack[2-3]n[01-04],b` → rack2n01."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert first is not None, nodes
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])
