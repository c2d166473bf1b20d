"""Names that make a folder a checkpoint, for everyone who looks for one: training, status, jobs.

    run/step_00001000/state/       weights, optimizer state, count of updates (mgpt.parallel.state)
                     /loader.json  position in the data
                     /trainer.json step, seed, vocabulary, optimizer, counters
                     /config.yaml  the resolved configuration
                     /vocab/       the vocabulary's own files
                     /COMPLETE     sha256 and size of every file above, and of itself; written last

A step folder is complete if it holds COMPLETE; its content is for `mgpt.train.step_folder`. Imports
no torch.

    >>> complete_steps(Path("run"))
    {1000: PosixPath('run/step_00001000'), 2000: PosixPath('run/step_00002000')}
"""

import re
from pathlib import Path

COMPLETE = "COMPLETE"
STEP_FILES = (COMPLETE, "config.yaml", "loader.json", "trainer.json", "state/*", "vocab/*")
"""Every file of a step folder, as patterns relative to it."""
STEP_PATTERN = r"step_(\d{8})"
COMPLETE_GLOB = f"step_{'[0-9]' * 8}/{COMPLETE}"
"""COMPLETE of every checkpoint of a run folder, oldest first, for the shell."""


def step_name(step: int) -> str:
    """Name of the folder of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def complete_step(folder: Path) -> int | None:
    """The step of a complete step folder; None if the folder is no complete checkpoint."""
    match = re.fullmatch(STEP_PATTERN, folder.name)
    return int(match[1]) if match and (folder / COMPLETE).exists() else None


def complete_steps(run_folder: Path) -> dict[int, Path]:
    """The complete step folders of a run folder by their step, oldest first; not verified."""
    entries = sorted(run_folder.iterdir()) if run_folder.is_dir() else []
    steps = ((complete_step(entry), entry) for entry in entries)
    return {step: entry for step, entry in steps if step is not None}
