"""Whole runs: interrupted, killed while saving, fenced, started from weights."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import Run, make_corpus, metrics_of, run_ranks

from mgpt.errors import CheckpointError, TrainingError, VocabularyError
from mgpt.files.atomic import file_sha256
from mgpt.train import checkpoint, trainer
from mgpt.train.step_folder import export_weights, newest_complete, seal
from mgpt.train.trainer import TrainConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run of seven steps."""
    run = Run(corpus, str(tmp_path_factory.mktemp("whole")), steps=7, dropout=0.1)
    run_ranks([run])
    return run


def outcome(run: Run) -> dict[str, object]:
    return json.loads((Path(run.folder) / "outcome.json").read_text())


def test_a_whole_run(whole: Run) -> None:
    made = outcome(whole)
    assert (made["kind"], made["step"]) == ("Finished", 7)
    rows = metrics_of(whole.folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert made["metrics"]["loss"] == pytest.approx(sum(row["loss"] for row in rows) / 7)
    assert made["metrics"]["documents"] == rows[-1]["documents"] > 7
    assert made["metrics"]["val/loss"] < 6
    assert newest_complete(Path(whole.folder)).step == 7


def test_every_figure_is_recorded(whole: Run) -> None:
    first = json.loads((Path(whole.folder) / "metrics.jsonl").read_text().splitlines()[0])
    wanted = "loss z lr grad_norm updated skipped spike rollbacks documents trained_tokens tokens"
    measured = "tokens_per_s data_wait_s step_s memory_mb"
    by_kind = "loss/task/caption loss/task/text_to_image loss/modality/text loss/modality/image"
    by_kind += " loss/source/scenes"
    assert set(f"{wanted} {measured} {by_kind}".split()) <= first.keys()
    split = sum(value for name, value in first.items() if name.startswith("tokens/task/"))
    assert split == first["trained_tokens"]


def test_a_signal_saves_and_ends_in_order(whole: Run, tmp_path: Path) -> None:
    run = dataclasses.replace(whole, folder=str(tmp_path), signal_at=5)
    run_ranks([run])
    assert outcome(run) == {"kind": "Interrupted", "step": 5, "signal": "SIGTERM"}
    assert newest_complete(tmp_path).step == 5
    run_ranks([dataclasses.replace(run, signal_at=0)])
    assert outcome(run) == outcome(whole)
    assert metrics_of(tmp_path) == metrics_of(whole.folder)


def test_killed_in_the_midst_of_a_save(whole: Run, tmp_path: Path) -> None:
    run = dataclasses.replace(whole, folder=str(tmp_path), die_in_save=6)
    with pytest.raises(AssertionError, match="-9"):
        run_ranks([run])
    assert newest_complete(tmp_path).step == 3
    assert list(tmp_path.glob(".step_00000006.attempt_1/state/*.safetensors"))
    run_ranks([dataclasses.replace(run, die_in_save=0)])
    assert not list(tmp_path.glob(".step_*"))
    assert outcome(run) == outcome(whole)
    assert metrics_of(tmp_path) == metrics_of(whole.folder)


def test_a_finished_run_says_the_same_again(whole: Run) -> None:
    before = outcome(whole)
    run_ranks([whole])
    assert outcome(whole) == before


def test_a_later_start_ends_an_older_one(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FENCE_EVERY_S", 0.0)
    start = trainer.Trainer._start

    def overtaken(self: trainer.Trainer) -> int:
        (tmp_path / "attempts" / "2").touch()
        return start(self)

    monkeypatch.setattr(trainer.Trainer, "_start", overtaken)
    with pytest.raises(TrainingError, match="a later start of this run has begun"):
        run_ranks([dataclasses.replace(whole, folder=str(tmp_path))])
    assert newest_complete(tmp_path) is None


def test_weights_of_another_run(whole: Run, tmp_path: Path) -> None:
    origin = Path(whole.folder) / "step_00000007"
    run = dataclasses.replace(
        whole, folder=str(tmp_path), steps=1, warmup_steps=1, init_from=str(origin), seed=5
    )
    run_ranks([run])  # the rate of step 0 is 0 in a warm-up: the weights stay what they were
    want, got = export_weights(origin), export_weights(tmp_path / "step_00000001")
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert metrics_of(tmp_path)[0]["lr"] == 0.0


def test_refusals_on_start(whole: Run, corpus: str, tmp_path: Path) -> None:
    step_3 = str(Path(whole.folder) / "step_00000003")
    run = dataclasses.replace(whole, continue_from=step_3)
    with pytest.raises(TrainingError, match="3 steps behind it and steps=2"):
        run_ranks([dataclasses.replace(run, folder=str(tmp_path / "few"), steps=2)])

    changed = tmp_path / "other" / "step_00000003"
    changed.mkdir(parents=True)
    for path in Path(step_3).rglob("*"):
        target = changed / path.relative_to(step_3)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    complete = json.loads((changed / "COMPLETE").read_text())
    rewrite(changed, complete, "trainer.json", json.dumps({"vocabulary": "0" * 16}))
    run = dataclasses.replace(run, continue_from="", folder=str(changed.parent))
    with pytest.raises(VocabularyError, match="0000000000000000"):
        run_ranks([run])
    text = (Path(step_3) / "trainer.json").read_text()
    (changed / "trainer.json").write_text(text.replace('"skipped": 0', '"skipped": 9'))
    with pytest.raises(CheckpointError, match=r"trainer\.json"):
        run_ranks([run])


def rewrite(step: Path, complete: dict[str, Any], name: str, text: str) -> None:
    """Another content for a file of a checkpoint, with the right hash of it."""
    (step / name).write_text(text)
    sums = {"sha256": file_sha256(step / name), "bytes": len(text)}
    files = {**complete["files"], name: sums}
    (step / "COMPLETE").write_bytes(seal(complete["step"], complete["attempt"], files))


def test_not_finite_for_too_long(whole: Run, tmp_path: Path) -> None:
    run = dataclasses.replace(whole, folder=str(tmp_path), poison=(1, 2), max_skipped=1)
    with pytest.raises(TrainingError, match=r"step 3: .* 2 steps in a row"):
        run_ranks([run])


@pytest.mark.parametrize(
    "field", [{"steps": 0}, {"save_every": 0}, {"z_loss": -1.0}, {"dropout": 1.0}]
)
def test_settings_are_checked(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        TrainConfig(**{"steps": 1, **field})
