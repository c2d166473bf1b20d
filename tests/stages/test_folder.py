"""When a stage is complete, when it is refused, and what a fingerprint covers."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mgpt.errors import ConfigError, MachineError
from mgpt.stages import folder as stage_folder
from mgpt.stages.folder import (
    StageFolder,
    check_machine,
    input_fingerprint,
    input_fingerprints,
    is_complete,
)
from mgpt.storage import locate, write_whole


@dataclass(frozen=True)
class Config:
    output: str
    input: str
    steps: int = 3
    lr: float = 1.0
    redo: bool = False
    workers: int = 1


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    return Config(str(tmp_path / "out"), str(tmp_path / "in"))


def opened(cfg: Config, stage: str = "pack") -> StageFolder:
    return StageFolder.open(stage, cfg, input_fingerprints(cfg.input))


def finished(cfg: Config) -> None:
    opened(cfg).finish({"samples": 1})


def test_a_finished_stage_is_complete(cfg: Config) -> None:
    assert not opened(cfg).is_complete
    finished(cfg)
    assert opened(cfg).is_complete
    assert is_complete("pack", cfg, input_fingerprints(cfg.input))


def test_how_fast_and_where_do_not_count(cfg: Config, tmp_path: Path) -> None:
    finished(cfg)
    assert opened(replace(cfg, workers=7)).is_complete
    os.rename(cfg.output, tmp_path / "moved")
    os.rename(cfg.input, tmp_path / "moved_in")
    moved = replace(cfg, output=str(tmp_path / "moved"), input=str(tmp_path / "moved_in"))
    assert opened(moved).is_complete


def test_another_configuration_is_refused_by_name(cfg: Config) -> None:
    finished(cfg)
    with pytest.raises(ConfigError, match=r"finished pack .*lr 1\.0 → 2\.0.*redo=true"):
        opened(replace(cfg, lr=2.0))


def test_another_input_is_refused(cfg: Config) -> None:
    finished(cfg)
    (Path(cfg.input) / "a.txt").write_text("b")
    with pytest.raises(ConfigError, match="input folder:"):
        opened(cfg)


def test_another_stage_is_refused(cfg: Config) -> None:
    finished(cfg)
    with pytest.raises(ConfigError, match="output of mgpt pack"):
        opened(cfg, "tokenize")


def test_redo_makes_it_anew(cfg: Config) -> None:
    finished(cfg)
    (Path(cfg.output) / "old.tar").write_text("old")
    folder = opened(replace(cfg, lr=2.0, redo=True))
    assert not folder.is_complete
    assert not (folder.path / "old.tar").exists()
    assert json.loads((folder.path / "stage.json").read_text())["config"]["lr"] == 2.0
    assert [entry.name for entry in Path(cfg.output).parent.iterdir() if "old" in entry.name] == []


def test_redo_leaves_the_same_configuration_alone(cfg: Config) -> None:
    finished(cfg)
    assert opened(replace(cfg, redo=True)).is_complete


def test_an_unfinished_stage_goes_on_with_other_steps_only(cfg: Config) -> None:
    opened(cfg)
    (Path(cfg.output) / "step_1").mkdir()
    assert not opened(replace(cfg, steps=5)).is_complete
    with pytest.raises(ConfigError, match="unfinished pack"):
        opened(replace(cfg, steps=5, lr=2.0))


def test_a_stage_that_ended_before_its_work_gives_way(cfg: Config) -> None:
    """Its input was not there, say, and the next start names another."""
    opened(cfg)
    (Path(cfg.output) / "metrics.jsonl").write_text("")
    folder = opened(replace(cfg, lr=2.0))
    assert [item.name for item in folder.path.iterdir() if item.name == "metrics.jsonl"] == []
    assert json.loads((folder.path / "stage.json").read_text())["config"]["lr"] == 2.0


def test_inputs_made_by_a_stage_count_by_its_fingerprint(cfg: Config) -> None:
    finished(cfg)
    inside = Path(cfg.output) / "64"
    inside.mkdir()
    whole = input_fingerprint(cfg.output)
    assert whole.startswith("stage:") and input_fingerprint(inside) == f"{whole}64"
    (inside / "anything").write_text("x")
    assert input_fingerprint(inside) == f"{whole}64"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        check_machine(tmp_path / "file" / "below", 0)


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"MB are free where this stage needs"):
        check_machine(tmp_path, min_free_mb=1e12)


def test_another_rank_of_a_shared_job_waits_for_the_first(cfg, monkeypatch):
    monkeypatch.setattr(stage_folder, "_BEGIN_S", 0.3)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(MachineError, match="rank 0 has not begun"):
        StageFolder.open("pack", cfg, {}, may_be_remote=True)
    monkeypatch.setenv("RANK", "0")
    StageFolder.open("pack", cfg, {}, may_be_remote=True)
    monkeypatch.setenv("RANK", "1")
    StageFolder.open("pack", cfg, {}, may_be_remote=True)


def test_on_an_object_store_a_stage_begins_is_complete_and_is_made_anew(s3):
    cfg = Config("s3://corpus/out", "in")
    folder = StageFolder.open("pack", cfg, {}, may_be_remote=True)
    write_whole(folder.output / "00000.tar", b"of the old configuration")
    folder.finish({"shards": 1})
    assert StageFolder.open("pack", cfg, {}, may_be_remote=True).is_complete
    assert input_fingerprint("s3://corpus/out").startswith("stage:")
    other = replace(cfg, steps=4)
    with pytest.raises(ConfigError, match="redo=true"):
        StageFolder.open("pack", other, {}, may_be_remote=True)
    StageFolder.open("pack", replace(other, redo=True), {}, may_be_remote=True)
    assert not (folder.output / "00000.tar").exists()
    with pytest.raises(ConfigError, match="writes to local folders"):
        StageFolder.open("fp_sft", cfg, {})


def test_an_input_on_a_store_is_told_by_its_versions(s3):
    path = locate("s3://corpus/raw/00000.tar")
    write_whole(path, b"one")
    first = input_fingerprint("s3://corpus/raw")
    assert first == input_fingerprint("s3://corpus/raw/") and first.startswith("folder:")
    write_whole(path, b"two")
    assert input_fingerprint("s3://corpus/raw") != first
