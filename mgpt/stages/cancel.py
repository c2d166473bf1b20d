"""mgpt cancel: ends the jobs of a submission, running and waiting; what they saved stays.

The same `mgpt submit` goes on from there. `stage=` ends that one alone, and with it what waits for
it.

Reads: the output of mgpt submit
Writes: no files

    mgpt cancel output=out
    mgpt cancel output=outputs/quickstart stage=omni_sft
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from mgpt.errors import ConfigError
from mgpt.launching import slurm
from mgpt.stages.status import read_submission


@dataclass(frozen=True)
class Config:
    """What `mgpt cancel` can be given."""

    output: str
    """Output folder of what was submitted."""
    stage: str | None = None
    """One stage of a pipeline, by its name in mgpt status; null: all."""


def main(cfg: Config) -> None:
    submitted = read_submission(cfg.output)
    chosen = [one for one in submitted if cfg.stage in (None, one.name)]
    if not chosen:
        names = ", ".join(one.name for one in submitted)
        raise ConfigError(f"stage={cfg.stage}: {cfg.output} has {names}")
    live = [one for one in chosen if one.launch.live_job() is not None]
    job_ids: list[str] = []
    for one in reversed(live):  # what waits first, so that nothing starts meanwhile
        print(f"{one.name}: {one.launch.live_job()} is ended")
        one.launch.set_cancelled()
        if one.launch.local_pid is not None:
            os.kill(one.launch.local_pid, signal.SIGTERM)
        job_ids += one.launch.slurm_jobs
    slurm.cancel(job_ids)
    if not live:
        print(f"{cfg.output}: no job is waiting or running")
