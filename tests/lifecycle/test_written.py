"""Every stage's files are known as its own, and nobody else's."""

from pathlib import Path

import pytest

from mgpt.cli.stage_table import STAGES, load_stage
from mgpt.errors import ConfigError
from mgpt.lifecycle.written import _WRITTEN, remove_written

RECORDS = {"DONE": "{}", "stage.json": "{}", "config.yaml": "", "metrics.jsonl": ""}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_stage_with_a_record_has_a_row() -> None:
    recorded = {
        name for name in STAGES if name != "pipeline" and hasattr(load_stage(name), "inputs")
    }
    assert recorded == _WRITTEN.keys()


@pytest.mark.parametrize(
    ("stage", "own", "strange"),
    [
        (
            "pack",
            {"00000.tar": "", "00000.json": '{"shard": "00000"}', "settings.json": "{}",
             ".work/claims/00001": "", ".00001.tar.0123456789abcdef.tmp": ""},
            {"captions.json": '{"a": 1}', "notes/00000.tar": ""},
        ),
        (
            "tokenize",
            {"64/a.tar": "", "64/a.index.npy": "", "64/a.json": '{"shard": "a"}',
             "64/lengths/0.npy": "", "verify/64.png": "", "shards.json": "[]"},
            {"64/b.tar": "", "64/c.json": '{"shard": "d"}', "readme/64.png": ""},
        ),
        (
            "omni_sft",
            {"step_00000002/COMPLETE": "", "step_00000002/state/0.safetensors": "",
             ".step_00000004.attempt_1/state/0.safetensors": "", "model/config.json": "",
             "model/vocabulary/text.model": "", "changes.json": "", "wandb/run_id": ""},
            {"model/README.md": "", "step_00000002/notes.txt": "", "child/DONE": "",
             "slurm-17.out": "", "attempts/1": "", "launch/job.sbatch": ""},
        ),
        (
            "generate",
            {"answers.json": "", "000_0.png": "", "012_3_01.png": ""},
            {"cube.png": "", "2026_01_holiday.png": ""},
        ),
        (
            "evaluate",
            {"caption/measures.json": "", "depth/03_model_0.png": ""},
            {"figures/plot.png": "", "caption.png": "", "depth/003.png": ""},
        ),
    ],
)  # fmt: skip
def test_what_a_stage_wrote_goes_and_the_rest_stays(
    tmp_path: Path, stage: str, own: dict[str, str], strange: dict[str, str]
) -> None:
    fill(tmp_path, {**RECORDS, **own, **strange})
    said = remove_written(tmp_path, stage, ("DONE",), ("config.yaml", "stage.json"))
    assert left(tmp_path) == set(strange)
    assert said is not None and "stay: " in said
    empty = [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert empty == []


def test_a_removal_that_is_cut_short_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {**RECORDS, "model/config.json": "", "step_00000001/COMPLETE": ""})
    gone: list[str] = []
    unlink = Path.unlink

    def dying(path: Path, missing_ok: bool = False) -> None:
        if len(gone) == 3:
            raise KeyboardInterrupt
        gone.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(KeyboardInterrupt):
        remove_written(tmp_path, "pretrain", ("DONE",), ("config.yaml", "stage.json"))
    assert gone[0] == "DONE" and (tmp_path / "stage.json").exists()
    monkeypatch.setattr(Path, "unlink", unlink)
    assert remove_written(tmp_path, "pretrain", ("DONE",), ("config.yaml", "stage.json")) is None
    assert left(tmp_path) == set()


def test_a_tar_that_would_be_read_as_a_raw_shard_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {**RECORDS, "mine.tar": ""})
    with pytest.raises(ConfigError, match=r"mine\.tar would be read as raw shards"):
        remove_written(tmp_path, "pack", ("DONE",), ("stage.json",))
    assert left(tmp_path) == {*RECORDS, "mine.tar"}
