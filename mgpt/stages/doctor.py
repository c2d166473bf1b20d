r"""mgpt doctor: the health of this machine, or of every node of a job, before it starts.

GPUs and their links, versions, clocks, the file system of `output`, and the bandwidth of an
all-reduce between each two nodes; on this machine, or by srun on all nodes of a Slurm job.

The exit status is 0 where all is well and 3 where nodes are to blame, which stand in
<output>/bad_nodes, one a line. It is 1 where something is wrong and it cannot be told whose fault
it is, as between two nodes that differ. Each problem is named.

Reads: the nodes, one process each
Writes: doctor.json, bad_nodes

    mgpt doctor output=outputs/doctor
    srun --ntasks-per-node=1 mgpt doctor output=outputs/doctor
"""

from __future__ import annotations

import sys

from mgpt.launching.doctor.examination import DoctorConfig, examine
from mgpt.launching.doctor.findings import blamed
from mgpt.tracking.tracker import console_tracker

PROBLEMS_STATUS, BAD_NODES_STATUS = 1, 3

Config = DoctorConfig


def main(cfg: Config) -> None:
    with console_tracker("doctor") as tracker:
        problems = examine(cfg, tracker)
    for problem in problems:
        print(f"mgpt doctor: {problem.line()}", file=sys.stderr, flush=True)
    if problems:
        raise SystemExit(BAD_NODES_STATUS if blamed(problems) else PROBLEMS_STATUS)
