"""One tiny pipeline through every stage, shared by the tests of this folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE_S = 900


def command_line(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command line in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "mgpt", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert not check or run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run


@pytest.fixture(scope="session")
def mgpt() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `mgpt <arguments>`; the status must be 0 unless `check=False`."""
    return command_line


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `mgpt pipeline recipe=tiny`, trained with fsdp2 on two processes."""
    output = tmp_path_factory.mktemp("tiny") / "out"
    command_line("pipeline", "recipe=tiny", f"output={output}")
    return output
