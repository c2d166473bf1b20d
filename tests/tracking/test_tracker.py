"""The three views of a record, and that Weights & Biases neither asks nor stops a stage."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mgpt.errors import MachineError
from mgpt.tracking import wandb_run
from mgpt.tracking.progress import clock, progress, rate_text
from mgpt.tracking.tracker import Tracker, TrackingConfig

OFF = TrackingConfig(mode="disabled")


def test_figures_go_to_the_record(tmp_path: Path) -> None:
    with Tracker(OFF, tmp_path, "pack") as tracker:
        tracker.log(1, {"loss": 2.5})
        tracker.log(2, {"loss": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]


def test_a_trainer_keeps_the_record_itself(tmp_path: Path) -> None:
    with Tracker(OFF, tmp_path, "pretrain", record=False) as tracker:
        tracker.log(1, {"loss": 2.5})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(TrackingConfig(), tmp_path, "pretrain", is_main=False) as tracker:
        tracker.log(1, {"loss": 2.5})
        tracker.print("words")
        tracker.table("t", ["a"], [[1]])
        with tracker.progress(2, "steps", "train") as bar:
            bar.advance(2)
        tracker.finish({"loss": 2.5})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_tables_and_ends_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(OFF, tmp_path, "evaluate") as tracker:
        tracker.table("measures", ["task", "model"], [["caption", 0.75]])
        tracker.finish({"tasks": 1})
    shown = capsys.readouterr().out
    assert "measures" in shown and "caption" in shown and "0.75" in shown
    assert "evaluate: complete  tasks 1" in shown


def test_progress_says_how_far_and_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "samples", "pack", done=4) as bar:
        bar.advance(6, loss=1.5)
    shown = capsys.readouterr().out
    assert "pack  10/10 samples  100 %" in shown and "loss 1.5" in shown and "samples/s" in shown


def test_rates_and_clocks_in_words() -> None:
    assert rate_text(310.4, "samples") == "310 samples/s"
    assert rate_text(0.1, "tasks") == "10 s a task"
    assert (clock(123), clock(3723)) == ("2:03", "1:02:03")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.mark.usefixtures("no_key")
def test_without_a_key_the_run_is_offline_and_goes_on_as_itself(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    for step in (1, 2):  # a second start of the same stage
        with Tracker(TrackingConfig(), tmp_path, "pack", "group", {"seed": 0}) as tracker:
            tracker.log(step, {"loss": 1.0})
            tracker.images(step, "samples", [("a caption", picture)])
            tracker.finish({"loss": 1.0})
    run_id = (tmp_path / "wandb" / "run_id").read_text()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    # wandb numbers the folders of two starts within one second: …-<id>, …-<id>-1
    assert folders and all(f"-{run_id}" in folder.name for folder in folders)
    assert all(list(folder.glob("*.wandb")) for folder in folders)


@pytest.mark.usefixtures("no_key")
def test_a_key_makes_it_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert wandb_run.choose_mode("auto") == "offline"
    (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password key")
    assert wandb_run.choose_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_run.choose_mode("auto") == "disabled"
    assert wandb_run.choose_mode("offline") == "offline"


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MachineError, match=r"pip install wandb, or set tracking\.mode=disabled"):
        Tracker(TrackingConfig(mode="offline"), tmp_path, "pack")


def test_figures_of_the_moment_reach_no_file(tmp_path: Path) -> None:
    with Tracker(OFF, tmp_path, "tokenize") as tracker:
        tracker.show(1, {"samples_per_s": 12.5})
        assert not tracker.has_run
    assert not (tmp_path / "metrics.jsonl").exists()


def test_of_processes_that_share_a_folder_one_has_the_run(tmp_path: Path) -> None:
    offline = TrackingConfig(mode="offline")
    with Tracker(offline, tmp_path, "tokenize", shared=True) as first:
        with Tracker(offline, tmp_path, "tokenize", shared=True) as second:
            assert first.has_run and not second.has_run
    with Tracker(offline, tmp_path, "tokenize", shared=True) as third:
        assert third.has_run, "the first has ended"
