r"""mgpt doctor: the health of this machine, or of every node of a job, before it starts.

GPUs and their links, versions, clocks, the file system of `output`, and the bandwidth of an
all-reduce between each two nodes; run one process a node. By hand, and inside a Slurm job:

    mgpt doctor output=outputs/doctor

    srun --ntasks-per-node=1 mgpt doctor output=outputs/doctor

The exit status is 0 where all is well. Else it is 2, each problem is named, and where single nodes
are to blame they stand in <output>/bad_nodes as sbatch's --exclude takes them.
"""

from __future__ import annotations

from pathlib import Path

from mgpt.errors import MachineError
from mgpt.launching.doctor import DoctorConfig, examine
from mgpt.tracking.tracker import Tracker, TrackingConfig

Config = DoctorConfig


def main(cfg: Config) -> None:
    unrecorded = TrackingConfig(mode="disabled")
    with Tracker(unrecorded, Path(cfg.output), "doctor", record=False) as tracker:
        problems = examine(cfg, tracker)
    if problems:
        raise MachineError("\n  ".join(["doctor:", *(problem.line() for problem in problems)]))
