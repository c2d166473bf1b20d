"""The scripts that a submission writes: `launch/slurm.sbatch` and `launch/local.sh`, filled in.

A template is a shell script with `@name@` where a value belongs. Values are quoted for the shell
or for `#SBATCH` lines here, so that paths with spaces and other characters mean themselves. Knows
no stage: what runs comes as a `Task`.

    >>> task = Task(name="pretrain", stage="pretrain", run=Path("/data/out"), kind="training",
    ...             arguments=("pretrain", "--config", "/data/out/launch/config.yaml"), ranks=8)
    >>> print(sbatch_script(task, launcher, launcher.resources("pretrain"), place, written="…"))
    #!/usr/bin/env bash
    #SBATCH --job-name=pretrain
    …
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from mgpt.errors import ConfigError
from mgpt.launching.launcher import Launcher, Resources
from mgpt.train.step_layout import COMPLETE_GLOB

TEMPLATES = "mgpt.launch"
_PLACE = re.compile(r"@([a-z_]+)@")
_PLAIN = re.compile(r"[A-Za-z0-9_.,:/%=+@^\[\]&|*()-]+")


@dataclass(frozen=True)
class Task:
    """What one job does.

    name: of the job, `fp_sft/512`.
    run: the stage's output folder; launch: where the script and its books are.
    kind: training (ranks that meet), shared (processes that share claims), alone.
    arguments: of `mgpt`.
    ranks: processes of each machine.
    threads: torch's, of each rank; None: as the stage's own fields say.
    final: exit statuses that are the stage's answer, after which nothing is tried again.
    """

    name: str
    stage: str
    run: str
    launch: Path
    kind: Literal["training", "shared", "alone"]
    arguments: tuple[str, ...]
    ranks: int = 1
    threads: int | None = None
    final: tuple[int, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where and of what a script was made: shown in it. `output` is what `mgpt status` takes."""

    folder: Path
    output: str
    written: str
    version: str


def sbatch_script(task: Task, launcher: Launcher, own: Resources, origin: Origin) -> str:
    """The text of the job's script. Raises ConfigError where a value cannot stand in one."""
    values = {
        **_shared(task, launcher, origin),
        "environment": "\n".join(f"  {line}" for line in _environment(task, launcher)),
        "sbatch": "\n".join(f"#SBATCH {line}" for line in _options(task, launcher, own, origin)),
        "run": shlex.quote(task.run),
        "launch": shlex.quote(str(task.launch)),
        "container": shlex.join(_container_words(task, launcher, origin)),
        "kind": task.kind,
        "complete_glob": COMPLETE_GLOB,
        "procs": str(task.ranks),
        "requeue": str(launcher.requeue).lower(),
        "max_barren": str(launcher.restarts),
        "final": " ".join(map(str, task.final)),
        "port": str(launcher.port),
        "wait": str(launcher.grace_s if task.kind == "training" else 0),
        "srun": " ".join(map(shlex.quote, _srun_options(task, launcher, own, origin))),
        "doctor": _doctor(task, launcher),
    }
    return _fill("slurm.sbatch", values)


def local_script(task: Task, launcher: Launcher, origin: Origin) -> str:
    """The same for this machine."""
    return _fill("local.sh", _shared(task, launcher, origin) | {"folder": _word(origin.folder)})


def _shared(task: Task, launcher: Launcher, origin: Origin) -> dict[str, str]:
    return {
        "stage": shlex.quote(task.stage),
        "launch": _word(task.launch),
        "output": shlex.quote(origin.output),
        "written": origin.written,
        "version": origin.version,
        "command": shlex.join([_python(launcher), "-m", "mgpt", *task.arguments]),
        "setup": "\n".join(launcher.setup),
        "environment": "\n".join(_environment(task, launcher)),
    }


def _word(path: Path) -> str:
    return shlex.quote(str(path))


def _python(launcher: Launcher) -> str:
    return launcher.python or ("python" if launcher.container else sys.executable)


def _options(task: Task, launcher: Launcher, own: Resources, origin: Origin) -> list[str]:
    """What follows `#SBATCH` on each line."""
    nodes = own.nodes or 1
    is_array = own.array is not None and task.kind == "shared"
    gpus = f"{launcher.gpu_type}:{own.gpus_per_node}" if launcher.gpu_type else own.gpus_per_node
    log = str(task.launch / "logs").replace("%", "%%") + ("/%A_%a.log" if is_array else "/%j.log")
    given = {
        "job-name": task.name,
        "chdir": origin.folder,
        "output": log,
        "open-mode": "append",  # a job that is requeued keeps its id
        "nodes": f"{own.elastic}-{nodes}" if own.elastic else nodes,
        **_ranks_asked_for(task, own),
        "gpus-per-node": gpus if own.gpus_per_node else None,
        "mem": None if own.memory_gb is None else f"{own.memory_gb * 1024:.0f}M",
        "time": own.time,
        "partition": own.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": own.constraint,
        "exclude": launcher.exclude,
        "array": f"0-{(own.array or 1) - 1}" if is_array else None,
        "signal": f"B:USR1@{launcher.signal_s}",
    }
    lines = [f"--{name}={_sbatch_value(name, v)}" for name, v in given.items() if v is not None]
    return [*lines, "--requeue" if launcher.requeue else "--no-requeue", *(own.extra or [])]


def _ranks_asked_for(task: Task, own: Resources) -> dict[str, int | None]:
    """Of an elastic job the CPUs of a node: a count of tasks would fix that of the nodes."""
    if own.elastic:
        return {"mincpus": task.ranks * (own.cpus_per_proc or 1)}
    return {"ntasks-per-node": task.ranks, "cpus-per-task": own.cpus_per_proc}


def _sbatch_value(name: str, value: object) -> str:
    """As sbatch reads it: in double quotes, with backslashes, where it is no plain word."""
    text = str(value)
    if any(ord(character) < 32 for character in text):
        raise ConfigError(f"{name}={text!r}: a line of a job script cannot hold this character")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _srun_options(task: Task, launcher: Launcher, own: Resources, origin: Origin) -> list[str]:
    options = []
    if own.cpus_per_proc is not None:  # srun does not take it from the job
        options.append(f"--cpus-per-task={own.cpus_per_proc}")
    if launcher.container and launcher.container_by == "pyxis":
        options += [
            f"--container-image={launcher.container}",
            f"--container-mounts={','.join(_mounts(task, launcher, origin))}",
            f"--container-workdir={origin.folder}",
        ]
    return [*options, *launcher.srun]


def _container_words(task: Task, launcher: Launcher, origin: Origin) -> list[str]:
    if not launcher.container or launcher.container_by != "apptainer":
        return []
    binds = [word for mount in _mounts(task, launcher, origin) for word in ("--bind", mount)]
    return ["apptainer", "exec", "--nv", "--pwd", str(origin.folder), *binds, launcher.container]


def _mounts(task: Task, launcher: Launcher, origin: Origin) -> list[str]:
    own = [origin.folder, task.launch.parent.absolute()]
    return [*dict.fromkeys(f"{folder}:{folder}" for folder in own), *launcher.mounts]


def _environment(task: Task, launcher: Launcher) -> list[str]:
    """`export` lines of the ranks, each with its reason."""
    lines = []
    if task.threads is not None:
        lines += [
            "# torch's threads of a rank: a setting, since sums depend on it.",
            f"export OMP_NUM_THREADS={task.threads}",
        ]
    lines += [
        "# A rank's last words are in its log also where it is killed, or crashes outside Python.",
        "export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1",
    ]
    if task.kind == "training" and launcher.gpus_per_node:
        lines += [
            "# NCCL names the cause of an error in the rank's log; set INFO to see what it chose.",
            "export NCCL_DEBUG=${NCCL_DEBUG:-WARN}",
            "# A rank whose peer is gone ends, instead of holding its GPU for ever.",
            "export TORCH_NCCL_ASYNC_ERROR_HANDLING=1",
            "# Where ranks hang: the last collectives of each, beside the logs, on a timeout.",
            "export TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1",
            'export TORCH_NCCL_DEBUG_INFO_TEMP_FILE="$own/logs/$start/collectives_"',
        ]
    if launcher.interface:
        name = shlex.quote(launcher.interface)
        lines += [
            "# Hosts with several networks: the one the ranks reach one another on.",
            f"export NCCL_SOCKET_IFNAME={name} GLOO_SOCKET_IFNAME={name}",
        ]
    for name, value in launcher.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"launcher.env: {name!r} is no name of a variable")
        lines.append(f"export {name}={shlex.quote(value)}")
    return lines


def _doctor(task: Task, launcher: Launcher) -> str:
    if not launcher.doctor or task.kind != "training":
        return ""
    output = f"output={task.launch / 'doctor'}"
    return shlex.join([_python(launcher), "-m", "mgpt", "doctor", output])


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = (files(TEMPLATES) / template).read_text()
    return _PLACE.sub(lambda match: values[match[1]], text)
