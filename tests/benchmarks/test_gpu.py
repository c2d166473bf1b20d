"""The GPU measures in toy sizes on whatever device there is; their figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "gpu.py"


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(folder / "gpu.json"), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_every_measure_but_the_compiled_ones_runs_in_small(tmp_path: Path) -> None:
    names = ("matmul", "loss", "attention", "training", "saving", "pictures", "codes")
    run = _run(tmp_path, "--small", "--only", *names)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert {row["measure"] for row in results} == set(names)
    assert all(row["value"] is not None and not row["failed"] for row in results)
    errors = [r["value"] for r in results if r["measure"] == "attention" and "result" in r["what"]]
    assert len(errors) >= 2 and max(errors) < 0.02
    assert run.stdout.splitlines()[-1].startswith("| codes |")


def test_what_time_does_not_allow_is_told(tmp_path: Path) -> None:
    run = _run(tmp_path, "--small", "--only", "matmul", "--minutes", "0")
    assert run.returncode == 0 and "not begun: out of time" in run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert run.returncode == 2 and run.stderr.strip().count("\n") == 0
    assert "no GPU" in run.stderr
