"""A stage's folder on ranks that torchrun or srun started: rank 0 opens it, and all go on or none.

world = init_distributed()
folder = open_on_ranks(world, cfg, lambda: StageFolder.open("pretrain", cfg, inputs(cfg)))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from mgpt.cli.settings import to_plain
from mgpt.errors import ConfigError, MgptError
from mgpt.lifecycle.folder import StageFolder
from mgpt.parallel.dist import World


def open_on_ranks(world: World, cfg: Any, open_folder: Callable[[], StageFolder]) -> StageFolder:
    """The stage's folder, of which no rank has opened it yet. Collective.

    Raises, on every rank, what rank 0 meets, or ConfigError where the ranks differ in what they
    were asked: the tasks of one srun step that were meant as runs of their own.
    """
    asked = world.gather_objects([str(cfg.output), _fingerprint(cfg)])
    for rank, other in enumerate(asked):
        if other != asked[0]:
            raise ConfigError(
                f"rank {rank} has another configuration than rank 0 (output={other[0]} and "
                f"{asked[0][0]}); the processes of one torchrun or srun are the ranks of one run: "
                "start another run with a torchrun or srun of its own"
            )
    error, folder = None, None
    if world.is_main:
        try:
            folder = open_folder()
        except MgptError as cause:
            error = cause
    world.raise_together(error)
    return folder or open_folder()


def _fingerprint(cfg: Any) -> str:
    """16 hex digits over a stage's configuration."""
    text = json.dumps(to_plain(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
