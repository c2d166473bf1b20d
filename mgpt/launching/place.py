"""Which of several processes that a launcher started this one is.

>>> Place.of_environment()                       # the second of four tasks of srun
Place(number=1, total=4, local=1)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This call among those that one launcher started: number `number` of `total` in all, number
    `local` on its machine."""

    number: int = 0
    total: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Place:
        """By torchrun's variables, or those of srun and of a Slurm array; alone without them."""

        def read(name: str, otherwise: int) -> int:
            value = os.environ.get(name, "")
            return int(value) if value.isdigit() else otherwise

        if "RANK" in os.environ:
            return cls(read("RANK", 0), read("WORLD_SIZE", 1), read("LOCAL_RANK", 0))
        tasks = read("SLURM_NTASKS", 1)
        step = read("SLURM_ARRAY_TASK_STEP", 1)
        element = (read("SLURM_ARRAY_TASK_ID", 0) - read("SLURM_ARRAY_TASK_MIN", 0)) // step
        return cls(
            element * tasks + read("SLURM_PROCID", 0),
            read("SLURM_ARRAY_TASK_COUNT", 1) * tasks,
            read("SLURM_LOCALID", 0),
        )

    def first(self, units: Sequence[str], slot: int, workers: int) -> list[str]:
        """All units, those first that the others do not start with; they meet at the end."""
        offset = (self.number * workers + slot) * len(units) // (self.total * workers) % len(units)
        return [*units[offset:], *units[:offset]]
