"""Numbers of processes, errors of ranks as one message, and children that end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from mgpt.cli import command
from mgpt.errors import MgptError
from mgpt.launching.processes import is_worker, num_processes

RANK = """
import os, sys, time
from mgpt.cli import command
from mgpt.errors import DataError
from mgpt.stop_signals import Interrupted

def run(arguments):
    if arguments == ["stop"]:
        raise Interrupted("step 3 is saved")
    if os.environ["RANK"] == "1":
        raise DataError("shard 7 is cut short")
    time.sleep(30)

command._run = run
command.console()
"""
LAUNCHER = """
import sys
from mgpt.errors import MgptError
from mgpt.launching import processes
processes.WORKER_MODULE = "rank"
try:
    processes.run_workers(sys.argv[1:], procs=2, threads=1)
except MgptError as error:
    print(type(error).__name__, error)
"""


def launched(tmp_path: Path, word: str) -> str:
    """What the launcher says about two ranks that run RANK instead of a stage."""
    (tmp_path / "rank.py").write_text(RANK)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCHER, word]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    return run.stdout + run.stderr


def test_the_first_failure_of_a_rank_is_the_message(tmp_path: Path) -> None:
    shown = launched(tmp_path, "fail")
    assert "TrainingError shard 7 is cut short (rank 1)" in shown
    assert "Traceback" not in shown


def test_an_orderly_stop_is_told_from_a_failure(tmp_path: Path) -> None:
    assert "Interrupted stopped by a signal; run the same command again" in launched(
        tmp_path, "stop"
    )


@pytest.mark.parametrize(
    ("work", "procs", "threads", "cores", "want"),
    [
        ("training", 3, 1, 2, 3),
        ("training", "auto", 1, 4, 2),
        ("training", "auto", 1, 1, 1),
        ("training", "auto", 2, 2, 1),
        ("evaluate", "auto", 1, 4, 4),
        ("evaluate", "auto", 4, 2, 1),
    ],
)
def test_numbers_of_processes_on_a_cpu(
    work: str,
    procs: int | str,
    threads: int,
    cores: int,
    want: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("mgpt.launching.processes.num_cores", lambda: cores)
    assert num_processes(work, procs, threads) == want


def test_a_process_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert num_processes("training", "auto", 4) == num_processes("evaluate", "auto") == 8


def test_a_rank_knows_that_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not is_worker()
    monkeypatch.setenv("RANK", "0")
    assert is_worker()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_children_end_with_a_killed_parent() -> None:
    child = "from mgpt.files.child_processes import *; die_with_parent(); print('up', flush=True);"
    child += "import time; time.sleep(60)"
    parent = (
        "import subprocess, sys; from mgpt.files.child_processes import own_children;"
        f"own_children(); c = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "print(c.pid, flush=True); c.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_missing_dependency_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'PIL'", name="PIL")

    monkeypatch.setattr("importlib.import_module", fail)
    assert command.main(["pack", "source=scenes"]) == 2
    assert "needs the package 'PIL'" in (shown := capsys.readouterr().err)
    assert "pip install Pillow" in shown


def test_user_errors_are_one_line_and_others_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise MgptError("what, where, what to do")

    monkeypatch.setattr(command, "_run", fail)
    monkeypatch.delenv("MGPT_TRACEBACK", raising=False)
    assert command.main([]) == 2
    assert capsys.readouterr().err == "mgpt: what, where, what to do\n"
    monkeypatch.setenv("MGPT_TRACEBACK", "1")
    with pytest.raises(MgptError):
        command.main([])
