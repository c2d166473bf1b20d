"""When a stage is complete, when it is refused, and what a fingerprint covers."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from mgpt.errors import ConfigError, MachineError
from mgpt.files.storage import locate, write_whole
from mgpt.lifecycle import folder as stage_folder
from mgpt.lifecycle import identity
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.folder import StageFolder, check_machine, is_complete
from mgpt.lifecycle.identity import input_identities, input_identity


@dataclass(frozen=True)
class Config:
    output: str
    input: str
    steps: int = 3
    lr: float = 1.0
    redo: bool = False
    workers: int = 1


def saved(output: Path) -> dict[str, str] | None:
    """What the newest checkpoint of a Training knows: nothing of its inputs."""
    return {} if list(output.glob("step_*")) else None


@dataclass(frozen=True)
class Training(Config):
    """One that saves checkpoints and may be continued."""

    start: str | None = None
    seed: int = 0

    CHANGEABLE: ClassVar[Changeable] = Changeable(
        resumed=("steps", "lr"),
        extends=("steps",),
        starts=("start",),
        checkpoint=saved,
    )


@dataclass(frozen=True)
class WithMore(Config):
    """What a later version of mgpt has."""

    schedule: str = "constant"
    dtype: str = "auto"


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    return Config(str(tmp_path / "out"), str(tmp_path / "in"))


@pytest.fixture
def training(tmp_path: Path) -> Training:
    (tmp_path / "data").mkdir()
    return Training(str(tmp_path / "run"), str(tmp_path / "data"))


def opened(cfg: Config, stage: str = "pack") -> StageFolder:
    start = getattr(cfg, "start", None)
    return StageFolder.open(stage, cfg, input_identities(cfg.input, start))


def finished(cfg: Config, stage: str = "pack") -> None:
    opened(cfg, stage).finish({"samples": 1})


def with_checkpoint(cfg: Training) -> Path:
    opened(cfg, "pretrain")
    step = Path(cfg.output) / "step_00000002"
    step.mkdir()
    (step / "trainer.json").write_text("{}")
    return step


def test_a_finished_stage_is_complete(cfg: Config) -> None:
    assert not opened(cfg).is_complete
    finished(cfg)
    assert opened(cfg).is_complete
    assert is_complete("pack", cfg, input_identities(cfg.input))


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


def test_another_input_is_refused_with_both_values(cfg: Config) -> None:
    finished(cfg)
    (Path(cfg.input) / "a.txt").write_text("b")
    with pytest.raises(ConfigError, match=r"input \S+/in held folder:\w+, now holds folder:\w+"):
        opened(cfg)


def test_hidden_files_are_no_input(cfg: Config) -> None:
    finished(cfg)
    (Path(cfg.input) / ".DS_Store").write_text("of a file browser")
    assert opened(cfg).is_complete


def test_what_a_finished_stage_was_made_from_may_go(cfg: Config) -> None:
    finished(cfg)
    shutil.rmtree(cfg.input)
    assert opened(cfg).is_complete


def test_another_stage_is_refused(cfg: Config) -> None:
    finished(cfg)
    with pytest.raises(ConfigError, match="output of mgpt pack"):
        opened(cfg, "tokenize")


def test_a_version_with_more_settings_knows_what_an_older_one_made(cfg: Config) -> None:
    finished(cfg)
    later = WithMore(cfg.output, cfg.input)
    assert opened(later).is_complete
    with pytest.raises(ConfigError, match="schedule constant → cosine"):
        opened(replace(later, schedule="cosine"))
    assert opened(replace(later, dtype="float32")).is_complete  # auto chose it, or another


def test_a_record_of_the_version_that_hashed_every_file(cfg: Config) -> None:
    finished(cfg)
    (Path(cfg.input) / ".hidden").write_text("x")
    by_all_files = identity._by_files(Path(cfg.input), with_hidden=True)
    record_file, done_file = Path(cfg.output) / "stage.json", Path(cfg.output) / "DONE"
    record, done = json.loads(record_file.read_text()), json.loads(done_file.read_text())
    record |= {"fingerprint": "0123456789abcdef", "inputs": {cfg.input: by_all_files}}
    del record["config"]["steps"]
    record_file.write_text(json.dumps(record))
    done_file.write_text(json.dumps(done | {"fingerprint": "0123456789abcdef"}))
    assert opened(cfg).is_complete
    with pytest.raises(ConfigError, match="steps 3 → 4"):
        opened(replace(cfg, steps=4))


def test_redo_removes_what_the_stage_wrote_and_nothing_else(
    cfg: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(cfg)
    output = Path(cfg.output)
    (output / "00000.tar").write_text("old")
    (output / "00000.json").write_text('{"shard": "00000"}')
    (output / "thesis.tex").write_text("years of work")
    (output / "ablation").mkdir()
    (output / "ablation" / "DONE").write_text("another run")
    folder = opened(replace(cfg, lr=2.0, redo=True))
    assert not folder.is_complete
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert names == {"ablation/DONE", "thesis.tex", "stage.json", "config.yaml"}
    assert json.loads((output / "stage.json").read_text())["config"]["lr"] == 2.0
    assert "did not write stay: ablation/DONE, thesis.tex" in capsys.readouterr().out


def test_redo_leaves_the_same_configuration_alone(cfg: Config) -> None:
    finished(cfg)
    assert opened(replace(cfg, redo=True)).is_complete


@pytest.mark.parametrize("output", ["", " ", "/", str(Path.home())])
def test_outputs_that_cannot_be_meant(cfg: Config, output: str) -> None:
    with pytest.raises(ConfigError, match="give a folder"):
        opened(replace(cfg, output=output))


def test_an_output_must_not_take_an_input(cfg: Config, tmp_path: Path) -> None:
    for output, relation in ((cfg.input, "is"), (str(tmp_path), "holds")):
        with pytest.raises(ConfigError, match=f"{relation} the input"):
            opened(replace(cfg, output=output, redo=True))
    assert (Path(cfg.input) / "a.txt").exists()
    assert not opened(replace(cfg, output=f"{cfg.input}/inside")).is_complete


def test_a_stage_that_ended_before_its_work_gives_way(cfg: Config) -> None:
    """Its input was not there, say, and the next start names another."""
    opened(cfg)
    for name in ("metrics.jsonl", "settings.json", ".DS_Store"):
        (Path(cfg.output) / name).write_text("")
    folder = opened(replace(cfg, lr=2.0))
    assert [item.name for item in folder.path.iterdir() if item.name == "metrics.jsonl"] == []
    assert json.loads((folder.path / "stage.json").read_text())["config"]["lr"] == 2.0


def test_an_unfinished_run_is_resumed_with_what_only_says_how_to_go_on(training: Training) -> None:
    step = with_checkpoint(training)
    assert not opened(replace(training, steps=5, lr=2.0), "pretrain").is_complete
    with pytest.raises(ConfigError, match=r"unfinished pretrain .*seed 0 → 1.*to resume"):
        opened(replace(training, steps=5, lr=2.0, seed=1), "pretrain")
    assert step.exists()


def test_a_run_without_a_checkpoint_has_nothing_to_lose(training: Training) -> None:
    opened(training, "pretrain")
    (Path(training.output) / "attempts").mkdir()
    (Path(training.output) / "attempts" / "1").write_text("{}")
    folder = opened(replace(training, seed=1), "pretrain")
    assert json.loads((folder.path / "stage.json").read_text())["config"]["seed"] == 1
    assert (folder.path / "attempts" / "1").exists()  # an older start that lives must see it


def test_a_checkpoint_needs_no_more_what_it_started_from(
    training: Training, tmp_path: Path
) -> None:
    parent, other = tmp_path / "parent", tmp_path / "other"
    for folder in (parent, other):
        folder.mkdir()
        (folder / "weights").write_text(folder.name)
    started = replace(training, start=str(parent))
    with_checkpoint(started)
    began_with = json.loads((Path(training.output) / "stage.json").read_text())["inputs"]
    (parent / "weights").write_text("of more steps")
    assert not opened(started, "pretrain").is_complete
    record = json.loads((Path(training.output) / "stage.json").read_text())
    assert record["inputs"] == began_with
    with pytest.raises(ConfigError, match=r"start \S+/parent → \S+/other"):
        opened(replace(training, start=str(other)), "pretrain")
    shutil.rmtree(parent)
    assert not opened(started, "pretrain").is_complete
    assert not opened(training, "pretrain").is_complete


def test_a_finished_run_is_continued_where_more_is_asked_for(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    step = with_checkpoint(training)
    finished(training, "pretrain")
    with pytest.raises(ConfigError, match="raise steps= to continue it"):
        opened(replace(training, lr=2.0), "pretrain")
    with pytest.raises(ConfigError, match="steps 3 → 2"):
        opened(replace(training, steps=2), "pretrain")
    assert opened(training, "pretrain").is_complete
    folder = opened(replace(training, steps=6, lr=2.0), "pretrain")
    assert "steps 3 → 6" in capsys.readouterr().out
    assert not folder.is_complete and step.exists()
    assert not (folder.path / "DONE").exists()
    # Whoever read the old DONE beside the new record does not take it for complete.
    assert not is_complete("pretrain", replace(training, steps=6), {})


def test_inputs_made_by_a_stage_count_by_its_fingerprint(cfg: Config) -> None:
    finished(cfg)
    inside = Path(cfg.output) / "64"
    inside.mkdir()
    whole = input_identity(cfg.output)
    assert whole.startswith("stage:") and input_identity(inside) == f"{whole}64"
    (inside / "anything").write_text("x")
    assert input_identity(inside) == f"{whole}64"


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
    other = replace(cfg, steps=4)
    with pytest.raises(ConfigError, match=r"00000\.tar would be read as raw shards"):
        StageFolder.open("pack", replace(other, redo=True), {}, may_be_remote=True)
    write_whole(folder.output / "00000.json", b'{"shard": "00000"}')
    assert StageFolder.open("pack", cfg, {}, may_be_remote=True).is_complete
    assert input_identity("s3://corpus/out").startswith("stage:")
    with pytest.raises(ConfigError, match="redo=true"):
        StageFolder.open("pack", other, {}, may_be_remote=True)
    StageFolder.open("pack", replace(other, redo=True), {}, may_be_remote=True)
    assert not (folder.output / "00000.tar").exists()
    with pytest.raises(ConfigError, match="writes to local folders"):
        StageFolder.open("fp_sft", cfg, {})


def test_an_input_on_a_store_is_told_by_its_versions(s3):
    path = locate("s3://corpus/raw/00000.tar")
    write_whole(path, b"one")
    first = input_identity("s3://corpus/raw")
    assert first == input_identity("s3://corpus/raw/") and first.startswith("folder:")
    write_whole(path, b"two")
    assert input_identity("s3://corpus/raw") != first
