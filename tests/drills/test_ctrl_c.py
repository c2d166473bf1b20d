"""Ctrl-C at every way to start a training, and at a data job: saved, a status, nothing left over.

A terminal sends SIGINT to all processes in the foreground, `kill -INT` to one; each way is tried
with one of them in the short form, the rest in the long one (`-m long`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mgpt.cli import command
from mgpt.parallel.dist import World
from mgpt.stop_signals import INTERRUPTED_STATUS, SAVED_STATUS
from mgpt.train.step_folder import newest_complete

PATIENCE_S = 200.0
MGPT = (sys.executable, "-m", "mgpt")
STEPS = 3_000
RESUME = "run the same command again to resume"

WAYS = {
    "single": ("pretrain", "parallel=single"),
    "ranks": ("pretrain", "parallel=fsdp2", "parallel.procs=2"),
    "submit": ("submit", "pretrain", "launcher=local", "parallel=fsdp2", "parallel.procs=2"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, vq: str) -> Path:
    """Tokenised scenes and a vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    raw, tokens = folder / "raw", folder / "tokens"
    scenes = ["source=scenes", "scenes.num_scenes=20", "scenes.area_px=40"]
    for words in (
        ["pack", *scenes, f"output={raw}"],
        ["tokenize", f"input={raw}", f"output={tokens}", f"vq={vq}", "resolution=[32]"],
        ["train_text", f"input={tokens}", f"output={folder / 'text'}", "num_pieces=400"],
    ):
        assert command.main([*words, "tracking=disabled"]) == 0
    return folder


def pretrain_words(corpus: Path, output: Path) -> list[str]:
    return [
        *(f"output={output}", f"vocabulary={corpus / 'text'}", "tracking=disabled", "model=debug"),
        *(f"steps={STEPS}", f"save_every={STEPS}", "schedule.warmup_steps=1"),
        *("data.row_tokens=256", "data.step_rows=4"),
        *(f"data.sources.a.path={corpus / 'tokens' / '32'}", "data.sources.a.tasks.image_text=1"),
    ]


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """`mgpt <words>` as a shell starts it in the foreground: it leads a process group."""
    with subprocess.Popen(
        [*MGPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # nothing, where it has ended


def press(process: subprocess.Popen[str], to: str) -> None:
    if to == "group":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)


def until(what: str, there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def num_steps(folder: Path) -> int:
    record = folder / "metrics.jsonl"
    return record.read_text().count("\n") if record.exists() else 0


def at_work_in(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                found.append((process / "cmdline").read_bytes().decode())
            except OSError:
                continue
    return [line for line in found if str(folder) in line]


@pytest.mark.parametrize(
    ("way", "to"),
    [
        ("single", "group"),
        ("ranks", "group"),
        ("submit", "group"),
        pytest.param("ranks", "one", marks=pytest.mark.long),
        pytest.param("submit", "one", marks=pytest.mark.long),
    ],
)
def test_a_training_saves_its_step_and_resumes(
    corpus: Path, tmp_path: Path, way: str, to: str
) -> None:
    words = [*WAYS[way], *pretrain_words(corpus, tmp_path / "run")]
    with started(*words) as process:
        until("steps", lambda: num_steps(tmp_path / "run") >= 3, process)
        press(process, to)
        shown, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == SAVED_STATUS, shown
    newest = newest_complete(tmp_path / "run")
    assert newest is not None and newest.step >= 3, shown
    newest.verify(World())
    assert num_steps(tmp_path / "run") == newest.step
    assert shown.count(f"stopped by SIGINT; step {newest.step} of 3,000 is saved") == 1
    assert shown.count(RESUME) == 1 and "Traceback" not in shown
    assert not at_work_in(tmp_path)
    last = next(i for i, word in enumerate(words) if word == f"steps={STEPS}")
    words[last] = f"steps={newest.step + 2}"
    again = subprocess.run([*MGPT, *words], capture_output=True, text=True, timeout=PATIENCE_S)
    assert again.returncode == 0, again.stdout + again.stderr
    assert num_steps(tmp_path / "run") == newest.step + 2
    assert json.loads((tmp_path / "run" / "DONE").read_text())["figures"]["steps"] > newest.step


@pytest.mark.parametrize("way", ["ranks", pytest.param("single", marks=pytest.mark.long)])
def test_a_second_one_ends_at_once_with_all_ranks(corpus: Path, tmp_path: Path, way: str) -> None:
    with started(*WAYS[way], *pretrain_words(corpus, tmp_path / "run")) as process:
        until("steps", lambda: num_steps(tmp_path / "run") >= 1, process)
        press(process, "group")
        press(process, "group")
        shown, _ = process.communicate(timeout=PATIENCE_S)
    # Two that come in the same instant are one to the system; then the first is answered.
    assert process.returncode in (INTERRUPTED_STATUS, SAVED_STATUS), shown
    assert RESUME in shown and "Traceback" not in shown
    deadline = time.monotonic() + 10
    while at_work_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not at_work_in(tmp_path)


@pytest.mark.parametrize("to", ["group", pytest.param("one", marks=pytest.mark.long)])
@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_data_job_ends_without_a_traceback_and_resumes(
    tmp_path: Path, workers: int, to: str
) -> None:
    output = tmp_path / "raw"
    words = [
        *("pack", "source=scenes", "scenes.num_scenes=60", "samples_per_shard=6"),
        *("scenes.area_px=96", f"output={output}", f"workers={workers}", "tracking=disabled"),
    ]
    with started(*words) as process:
        until("a finished shard", lambda: any(output.glob("0*.json")), process)
        press(process, to)
        shown, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED_STATUS, shown
    assert shown.count(f"stopped; {RESUME}") == 1 and "Traceback" not in shown
    assert not at_work_in(tmp_path)
    done = {file: file.stat().st_mtime_ns for file in output.glob("0*.tar")}
    assert command.main(words) == 0
    assert len([*output.glob("0*.json")]) == 10
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in done.items())
    assert not [item for item in output.iterdir() if item.name.startswith(".")]
