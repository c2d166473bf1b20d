"""One run through requeues and kills, in the files of the real client and against bad servers."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from wandb_files import config, history, records, run_files, run_record
from wandb_service import KEY, Service

from mgpt.tracking.tracker import Tracker, TrackingConfig
from mgpt.tracking.wandb_run import choose_mode
from mgpt.train.metrics import MetricsRecord

pytestmark = pytest.mark.timeout(900)  # the client starts slowly on a busy machine

# What a training does with its record, without torch, whose import would be most of the time.
START = """
import json, os, signal, sys, time
from pathlib import Path
from mgpt.tracking import wandb_run
from mgpt.tracking.tracker import Tracker, TrackingConfig

wandb_run.INIT_TIMEOUT_S, wandb_run.FINISH_TIMEOUT_S = 3, 3
folder, first, last, end, mode = Path(sys.argv[1]), *map(int, sys.argv[2:4]), *sys.argv[4:6]
record = folder / "metrics.jsonl"
lines = record.read_text().splitlines() if record.exists() else []
rows = [row for row in map(json.loads, lines) if row["step"] <= first]
settings = {"seed": 7, "model": {"size": "debug"}}
with Tracker(TrackingConfig(mode=mode), folder, "pretrain", "group", settings, record=False) as t:
    t.fill(lambda: rows)
    for step in range(first + 1, last + 1):
        rows.append({"step": step, "loss": step / 8})
        record.write_text("".join(json.dumps(row) + "\\n" for row in rows))
        t.log(step, rows[-1])
        if step == first + 2 and end.startswith("mood:"):
            Path(end[5:]).touch()
            time.sleep(1)
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
        # WANDB_SERVICE: the client's process of the tests before this one, which outlives a start.
        env={k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | env,
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


def rows_of(service: Service) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in service.history if "loss" in row]


def test_the_service_is_given_what_starts_without_it_could_not_show(tmp_path: Path) -> None:
    with Service().running() as service:
        start(tmp_path, 0, 4, mode="online", **service.environment)
        start(tmp_path, 4, 6, mode="offline")
        start(tmp_path, 6, 9, mode="online", **service.environment)
    assert rows_of(service) == [(step, step / 8) for step in range(1, 10)]
    assert len(service.config["starts"]["value"]) == 3


def test_what_was_kept_is_uploaded_by_the_command_that_is_documented(tmp_path: Path) -> None:
    for first, last in ((0, 4), (4, 6)):
        start(tmp_path / "a" / "pretrain", first, last)
    page = (Path(__file__).parents[2] / "mgpt" / "train" / "README.md").read_text()
    command = re.search(r"`wandb (sync outputs/quickstart/\S+)`", page)
    assert command is not None
    words = command[1].replace("outputs/quickstart", "a")
    with Service().running() as service:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        subprocess.run(
            f"'{sys.executable}' -m wandb {words}",
            shell=True,
            cwd=tmp_path,
            env=environment | service.environment,
            timeout=200,
            check=True,
        )
    assert rows_of(service) == [(step, step / 8) for step in range(1, 7)]


@pytest.mark.parametrize("mood", [pytest.param("500", marks=pytest.mark.long), "silent"])
def test_a_service_that_falls_ill_stops_no_stage_and_every_step_is_kept(
    tmp_path: Path, mood: str
) -> None:
    fallen = tmp_path / "fallen"
    with Service().running() as service:

        def fall() -> None:
            while not fallen.exists():
                time.sleep(0.02)
            service.mood = mood  # type: ignore[assignment]

        threading.Thread(target=fall, daemon=True).start()
        start(tmp_path, 0, 6, f"mood:{fallen}", "online", **service.environment)
    assert fallen.exists() and service.requests > 0
    assert sorted(history(tmp_path)) == list(range(1, 7))


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "mood", [pytest.param("500", marks=LONG), pytest.param("silent", marks=LONG), "gone"]
)
def test_without_an_answer_at_the_start_the_run_is_kept_offline(tmp_path: Path, mood: str) -> None:
    gone = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    with Service().running() as service:
        service.mood = mood  # type: ignore[assignment]
        environment = gone if mood == "gone" else service.environment
        start(tmp_path, 0, 3, mode="online", **environment)
    assert sorted(history(tmp_path)) == [1, 2, 3]
    assert [file.parent.name[:12] for file in run_files(tmp_path)][-1] == "offline-run-"


VARIABLES = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "sweep 3",
    "WANDB_NAME": "wide",
    "WANDB_TAGS": "a,b",
    "WANDB_RUN_ID": "abc123",
}


def test_what_the_configuration_leaves_open_the_environment_says(tmp_path: Path) -> None:
    start(tmp_path, 0, 1, mode="offline", **VARIABLES, WANDB_DIR=str(tmp_path / "scratch"))
    (file,) = run_files(tmp_path / "scratch")
    run = run_record(file)
    assert (run.project, run.entity, run.run_group) == ("theirs", "team", "sweep 3")
    assert (run.display_name, list(run.tags), run.job_type) == ("wide", ["a", "b"], "pretrain")
    assert run.run_id == (tmp_path / "wandb" / "run_id").read_text() == "abc123"


def test_the_configuration_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    cfg = TrackingConfig("offline", "ours", "us", "these", "this")
    with Tracker(cfg, tmp_path, "pretrain", "pipeline") as tracker:
        tracker.log(1, {"loss": 2.0})
    run = run_record(run_files(tmp_path)[0])
    names = (run.project, run.entity, run.run_group, run.display_name)
    assert names == ("ours", "us", "these", "this")


def test_an_id_that_a_sweep_imposes_is_the_one_that_is_kept(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run_id").write_text("of an earlier start")
    start(tmp_path, 0, 1, mode="offline", **VARIABLES, WANDB_SWEEP_ID="s1")
    (file,) = run_files(tmp_path)
    assert run_record(file).run_id == (tmp_path / "wandb" / "run_id").read_text() == "abc123"


@pytest.mark.parametrize(
    ("variables", "configured", "want"),
    [
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "auto", "disabled"),
        ({"WANDB_MODE": "dryrun", "WANDB_API_KEY": KEY}, "auto", "offline"),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": KEY}, "auto", "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_API_KEY": KEY}, "auto", "online"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, "auto", "online"),
        ({"WANDB_MODE": "disabled"}, "online", "online"),
    ],
)
def test_the_mode(
    variables: dict[str, str], configured: str, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose_mode(configured) == want  # type: ignore[arg-type]
