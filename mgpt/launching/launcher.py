"""What a launcher can be given: where jobs run, with what, and how they go on.

`Launcher` is the group `launcher` of `mgpt submit`: its resources hold for every job, and
`stages.<name>` says otherwise for one stage, or for one entry of a pipeline. Knows no scheduler's
language; `mgpt.launching.script` writes it.

    >>> launcher = Launcher(name="slurm", nodes=4, stages={"tokenize": Resources(nodes=1, array=8)})
    >>> launcher.resources("tokenize").array, launcher.resources("pretrain").nodes
    (8, 4)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Literal

_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
_COUNTS = ("nodes", "elastic", "procs_per_node", "cpus_per_proc", "array")
_OF_CLUSTERS = ("elastic", "procs_per_node", "array", "container", "doctor")
PORTS = 10_000  # above `port`, of which each start takes one


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks for. null: as the launcher says for all jobs, else what is said here."""

    nodes: int | None = None
    """Machines of a training job; null: as the recipe says, else 1."""
    elastic: int | None = None
    """Fewest machines that a training job may start or go on with; null: never fewer than nodes."""
    gpus_per_node: int | None = None
    """GPUs of each machine; for a stage, at most the launcher's."""
    procs_per_node: int | None = None
    """Ranks of each machine; null: parallel.procs, else one a GPU, else 2 for training."""
    cpus_per_proc: int | None = None
    """CPU cores of each rank; null: Slurm's default."""
    memory_gb: float | None = None
    """Main memory of each machine in GiB; 0: all of it; null: Slurm's default."""
    time: str | None = None
    """Time limit: minutes, HH:MM:SS or D-HH:MM:SS; null: the partition's."""
    partition: str | None = None
    constraint: str | None = None
    """Features that the machines must have."""
    array: int | None = None
    """Jobs that share a tokenize or pack stage by its claims; null: one."""
    extra: list[str] | None = None
    """Further options of sbatch, `--mail-type=FAIL`, one line of the script each."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("gpus_per_node", "memory_gb"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value} must not be negative")
        if self.elastic and self.nodes and self.elastic > self.nodes:
            raise ValueError(f"elastic={self.elastic} is above nodes={self.nodes}")
        if self.time is not None:
            time_limit_s(self.time)
        for line in self.extra or []:
            if not line.startswith("-") or "\n" in line:
                raise ValueError(f"extra: {line!r} is no option of sbatch; write --name=value")


@dataclass(frozen=True, kw_only=True)
class Launcher(Resources):
    """The whole group. `name` is slurm, or local for torchrun on this machine."""

    name: Literal["slurm", "local"]
    """local: torchrun on this machine, where what belongs to queues and limits says nothing."""
    gpu_type: str | None = None
    """As the cluster calls it, `a100`; null: any."""
    device: str | None = None
    """The GPU for the planner, a name of mgpt.plan.devices; null: as the recipe says."""
    account: str | None = None
    qos: str | None = None
    exclude: str | None = None
    """Machines not to be used, `node[3,7-9]`."""
    stages: dict[str, Resources] = field(default_factory=dict)
    """By stage, or by entry of the recipe, `stages.tokenize.array=8`: other resources."""
    container: str | None = None
    """Image to run in; null: the machine itself."""
    container_by: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis: srun --container-image; apptainer: apptainer exec."""
    mounts: list[str] = field(default_factory=list)
    """Folders that the container sees, FROM:TO, beside the current one and the output."""
    python: str | None = None
    """The Python of the jobs; null: this one, and `python` in a container."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before anything else: `module load cuda`."""
    env: dict[str, str] = field(default_factory=dict)
    """Further environment variables of the ranks."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun: `--cpu-bind=cores`."""
    interface: str | None = None
    """Network interface of NCCL's and gloo's sockets, `ib0`; null: as they find it."""
    port: int = 20_000
    """First of 10,000 ports, one of which a start's ranks meet at."""
    signal_s: int = 180
    """Seconds before the time limit at which the ranks are told to save. Slurm may be up to 60 s
    early."""
    grace_s: int = 120
    """Seconds that ranks may outlive the first one to end."""
    requeue: bool = True
    """Back into the queue after a time limit or a failure; false: by a follow-up job."""
    restarts: int = 3
    """Starts in a row, after the first, that may bring no further checkpoint."""
    doctor: bool = False
    """mgpt doctor on the nodes before training; bad ones are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "local":
            given = [name for name in _OF_CLUSTERS if getattr(self, name)]
            given += ["nodes"] if (self.nodes or 1) > 1 else []
            if given:
                raise ValueError(
                    f"launcher=local runs on this machine as it is, on as many ranks as "
                    f"parallel.procs says; it has no {', '.join(given)}"
                )
        if not 1024 <= self.port <= 65_535 - PORTS:
            raise ValueError(f"port={self.port} must lie in 1024 … {65_535 - PORTS}")
        for name in ("signal_s", "grace_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.restarts < 0:
            raise ValueError(f"restarts={self.restarts} must not be negative")
        for name, own in {"": self, **self.stages}.items():
            limit = own.time and time_limit_s(own.time)
            if limit and limit <= self.signal_s + 60:
                where = f"stages.{name}.time" if name else "time"
                raise ValueError(
                    f"{where}={own.time} leaves nothing before the signal to save, which comes "
                    f"up to {self.signal_s + 60} s (signal_s + 60) ahead of the limit"
                )

    def resources(self, *names: str) -> Resources:
        """What a job asks for: the launcher's own, overlaid by those of each name in turn.

        GPUs are never more than the launcher's; counts of nodes and elasticity are not handed
        down to a stage that has nodes of its own.
        """
        shared = {one.name: getattr(self, one.name) for one in fields(Resources)}
        for own in [self.stages[name] for name in names if name in self.stages]:
            if own.nodes is not None:
                shared["elastic"] = None
            given = {one.name: getattr(own, one.name) for one in fields(Resources)}
            shared |= {name: value for name, value in given.items() if value is not None}
        if shared["gpus_per_node"] is not None and self.gpus_per_node is not None:
            shared["gpus_per_node"] = min(shared["gpus_per_node"], self.gpus_per_node)
        return replace(Resources(), **shared)


def time_limit_s(text: str) -> int:
    """Seconds of a time limit as Slurm writes them: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises ValueError where it is none.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"time={text!r} is no time limit; write minutes, HH:MM:SS or D-HH:MM:SS")
    parts = [int(part) for part in match.group("a", "b", "c") if part is not None]
    if match["d"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(match["d"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)
