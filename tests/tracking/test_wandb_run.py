"""One run through requeues and kills, in the files of the real client and against bad servers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from wandb_files import config, history, records, run_files

from mgpt.tracking.tracker import Tracker, TrackingConfig
from mgpt.train.metrics import MetricsRecord

START = """
import os, signal, sys, time
from pathlib import Path
from mgpt.tracking.tracker import Tracker, TrackingConfig
from mgpt.train.metrics import MetricsRecord

folder, first, last, end, mode = Path(sys.argv[1]), *map(int, sys.argv[2:4]), *sys.argv[4:6]
record = MetricsRecord(folder / "metrics.jsonl", is_main=True)
record.cut(first)
settings = {"seed": 7, "model": {"size": "debug"}}
with Tracker(TrackingConfig(mode=mode), folder, "pretrain", "group", settings, record=False) as t:
    t.fill(record.rows, 1)
    for step in range(first + 1, last + 1):
        row = {"step": step, "loss": step / 8}
        record.write(row)
        t.log(step, row)
    if end == "killed":
        os.killpg(0, signal.SIGKILL)  # the client's own process too: a node without power
"""


def start(
    folder: Path, first: int, last: int, end: str = "in order", mode: str = "offline", **env: str
) -> None:
    """One start of a run: goes on after step `first`, records to `last`, ends so."""
    words = [str(folder), str(first), str(last), end, mode]
    run = subprocess.run(
        [sys.executable, "-c", START, *words],
        env={k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | env,
        start_new_session=True,
        timeout=200,
    )
    assert run.returncode == (-signal.SIGKILL if end == "killed" else 0)


def test_requeues_and_a_kill_are_one_curve_without_a_gap(tmp_path: Path) -> None:
    start(tmp_path, 0, 5, SLURM_JOB_ID="17", SLURM_JOB_NODELIST="vn[1-2]")
    start(tmp_path, 5, 11, "killed")  # its last checkpoint is of step 9
    start(tmp_path, 9, 12, SLURM_JOB_ID="17", SLURM_RESTART_COUNT="2", SLURM_JOB_NODELIST="vn[2-3]")
    files = run_files(tmp_path)
    run_id = (tmp_path / "wandb" / "run_id").read_text()
    assert len(files) == 3 and {file.stem for file in files} == {f"run-{run_id}"}
    found = history(tmp_path)
    assert sorted(found) == list(range(1, 13))
    assert all(found[step]["loss"] == step / 8 for step in found)
    shown = config(files[-1])
    assert (shown["seed"], shown["model"]) == (7, {"size": "debug"})
    starts = [{**one, "host": "a"} for one in shown["starts"]]
    assert starts == [
        {"host": "a", "job": "17", "nodes": "vn[1-2]"},
        {"host": "a"},
        {"host": "a", "job": "17", "restart": "2", "nodes": "vn[2-3]"},
    ]


def test_what_an_ended_start_has_shown_is_not_given_again(tmp_path: Path) -> None:
    for first, last in ((0, 2), (2, 3)):
        record = MetricsRecord(tmp_path / "metrics.jsonl", is_main=True)
        record.cut(first)
        offline = TrackingConfig(mode="offline")
        with Tracker(offline, tmp_path, "pretrain", record=False) as tracker:
            tracker.fill(record.rows)
            for step in range(first + 1, last + 1):
                record.write({"step": step})
                tracker.log(step, {})
    kinds = [[r.WhichOneof("record_type") for r in records(f)] for f in run_files(tmp_path)]
    assert [kind.count("history") for kind in kinds] == [2, 1]


def test_rows_between_are_not_given_where_every_tenth_is_shown(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 26)))
    record = MetricsRecord(tmp_path / "metrics.jsonl", is_main=True)
    offline = TrackingConfig(mode="offline")
    with Tracker(offline, tmp_path, "pretrain", record=False) as tracker:
        tracker.fill(record.rows, 10)
    assert sorted(history(tmp_path)) == [10, 20]
    assert json.loads((tmp_path / "wandb" / "shown").read_text()) == {"step": 20}


def test_other_ranks_and_disabled_runs_read_no_rows(tmp_path: Path) -> None:
    def rows() -> list[dict[str, int]]:
        raise AssertionError("nobody shows them")

    with Tracker(TrackingConfig(mode="offline"), tmp_path, "pretrain", is_main=False) as tracker:
        tracker.fill(rows)
    with Tracker(TrackingConfig(mode="disabled"), tmp_path, "pretrain", record=False) as tracker:
        tracker.fill(rows)
    assert not (tmp_path / "wandb").exists()
