"""The whole way: every stage, both sharded backends, stopped and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

PATIENCE_S = 900
Mgpt = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(PATIENCE_S)


def pretrain_words(tiny: Path, output: Path) -> list[str]:
    """`mgpt pretrain` on the tiny corpus, eight steps, a checkpoint every two."""
    source = "data.sources.scenes"
    return [
        "pretrain",
        "tracking=disabled",
        "model=debug",
        "parallel.dtype=float32",
        f"output={output}",
        f"vocabulary={tiny / 'text'}",
        "resolution_px=32",
        "steps=8",
        "save_every=2",
        "schedule.warmup_steps=1",
        "data.row_tokens=512",
        "data.step_rows=3",
        f"{source}.path={tiny / 'scenes_tokens'}",
        f"{source}.tasks.image_text=1",
    ]


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def undisturbed(mgpt: Mgpt, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pretrain") / "fsdp2"
    mgpt(*pretrain_words(tiny, output), "parallel=fsdp2", "parallel.procs=2")
    return output


def test_every_stage_left_what_it_should(tiny: Path) -> None:
    record = json.loads((tiny / "pipeline.json").read_text())
    names = [stage["name"] for stage in record["stages"]]
    assert {"scenes_raw", "pretrain", "fp_sft/32", "fp_sft/64", "omni_sft", "report"} <= {*names}
    assert all((tiny / name / "DONE").exists() for name in names)
    assert (tiny / "omni_sft" / "model" / "vocabulary" / "vocabulary.json").exists()
    assert len(list((tiny / "generate").glob("*.png"))) == 1
    report = json.loads((tiny / "report.json").read_text())
    assert report["measures"]["tasks"] and "torch" in report["conditions"]["versions"]
    page = (tiny / "report.html").read_text()
    assert "<html" in page and 'src="http' not in page


def test_a_second_start_redoes_nothing(mgpt: Mgpt, tiny: Path) -> None:
    def state() -> dict[str, int]:
        files = [
            file for file in tiny.rglob("*") if file.is_file() and file.name != "pipeline.json"
        ]
        return {str(file): file.stat().st_mtime_ns for file in files}

    before = state()
    shown = mgpt("pipeline", "recipe=tiny", f"output={tiny}").stdout
    assert state() == before
    assert "$ mgpt" not in shown and shown.count(": complete") >= 13


def test_the_command_of_a_stage_runs_alone(mgpt: Mgpt, tiny: Path) -> None:
    """As printed; the stage recognises what the pipeline made of the same file."""
    file = tiny / "launch" / "stages" / "fp_sft" / "64.yaml"
    assert "is complete" in mgpt("fp_sft", "--config", str(file)).stdout
    run = mgpt("fp_sft", "--config", str(file), "seed=1", check=False)
    assert run.returncode == 2 and "seed 0 → 1" in run.stderr


def test_another_configuration_is_refused(mgpt: Mgpt, tiny: Path) -> None:
    run = mgpt("pipeline", "recipe=tiny", f"output={tiny}", "text.num_pieces=390", check=False)
    assert run.returncode == 2
    assert "num_pieces 400 → 390" in run.stderr and "redo=true" in run.stderr


@pytest.mark.parametrize("backend", ["zero3", "single"])
def test_backends_have_the_same_losses(
    mgpt: Mgpt, backend: str, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    mgpt(*pretrain_words(tiny, tmp_path / backend), f"parallel={backend}")
    # The bound of the backends' contract for ten steps after a change of backend.
    assert losses(tmp_path / backend) == pytest.approx(losses(undisturbed), abs=1e-6)


def test_killed_and_started_again_is_bit_equal(
    mgpt: Mgpt, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    words = [*pretrain_words(tiny, output), "parallel=fsdp2", "parallel.procs=2"]
    command = [sys.executable, "-m", "mgpt", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet) as process:
        deadline = time.monotonic() + PATIENCE_S / 3
        while not (output / "step_00000002" / "COMPLETE").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        ranks = children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(ranks) >= 2
    time.sleep(1.0)
    assert not [pid for pid in ranks if is_running(pid)], "ranks outlived the stage"
    assert not (output / "DONE").exists()
    mgpt(*words)
    assert losses(output) == losses(undisturbed)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (output, undisturbed))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
