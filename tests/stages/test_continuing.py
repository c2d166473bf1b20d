"""Training stages as a person starts them: resumed, continued, changed on the way, refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import make_corpus

from mgpt.cli import command
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.train.trainer import Trainer

FAST = [
    *("model=debug", "tracking=disabled", "parallel=single", "save_every=1", "async_save=false"),
    *("schedule.warmup_steps=0", "schedule.kind=constant"),
    *("data.row_tokens=128", "data.step_rows=2", "data.window_documents=16", "optim.lr=1e-3"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture
def mgpt(corpus: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """Runs a command in an empty folder beside `shards` and `text`; what it printed."""
    shutil.copytree(corpus / "32", tmp_path / "shards")
    shutil.copytree(corpus / "vocab", tmp_path / "text")
    monkeypatch.chdir(tmp_path)

    def run(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        found = command.main([words[0], *FAST, *words[1:]])
        said = capsys.readouterr()
        assert found == status, said.out + said.err
        return str(said.out + said.err)

    return run


SOURCE = ("data.sources.a.path=shards", "data.sources.a.tasks.caption=1")
PRETRAIN = ("pretrain", "vocabulary=text", "output=run", *SOURCE)


@pytest.fixture
def killed_after(monkeypatch: Any) -> Any:
    """Ends the process's run, as a kill would, before the step after so many."""
    whole = Trainer._train_step

    def at(steps: int | None) -> None:
        def train_step(self: Trainer, step: int, signals: Any) -> Any:
            if step == steps:
                raise KeyboardInterrupt
            return whole(self, step, signals)

        monkeypatch.setattr(Trainer, "_train_step", train_step)

    return at


def rows(run: str = "run") -> list[dict[str, Any]]:
    measured = ("tokens_per_s", "data_wait_s", "step_s", "memory_mb")
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [{key: row[key] for key in row if key not in measured} for row in lines]


def figures(run: str = "run") -> dict[str, Any]:
    return json.loads(Path(run, "DONE").read_text())["figures"]


def with_codes_of(vq: str, folder: str) -> None:
    """Shards of another VQGAN, as `shards` otherwise."""
    with ShardWriter(Path(folder), "00000") as writer:
        for number in range(24):
            codes = np.random.default_rng(number).integers(0, 64, (2, 2)).astype(np.uint16)
            meta = {"caption": f"a small red cube on the left {number}"}
            writer.add(TokenisedSample(f"{number:06d}", meta, {"image": codes}))
        raw = {"name": "00000.tar", "sha256": "0" * 64}
        sizes = {"resolution_px": 32, "latent_px": 8, "num_codes": 64}
        prints = {"vq_fingerprint": vq, "settings_fingerprint": "0" * 16}
        writer.close({"raw": raw, "rejected": [], **sizes, **prints})


def test_the_same_command_resumes_when_caches_were_written_beside_the_shards(
    mgpt: Any, killed_after: Any
) -> None:
    mgpt(*PRETRAIN, "steps=4", "output=whole")
    shutil.rmtree("shards/lengths")
    killed_after(2)
    mgpt(*PRETRAIN, "steps=4", status=130)  # its own lengths are there now
    killed_after(None)
    Path("shards/lengths/of-another-vocabulary.npy").write_bytes(b"")
    Path("shards/.DS_Store").write_bytes(b"")
    assert "resuming from run/step_00000002" in mgpt(*PRETRAIN, "steps=4")
    assert rows() == rows("whole") and figures() == figures("whole")
    assert "is complete" in mgpt(*PRETRAIN, "steps=4")


def test_a_checkpoint_of_the_version_that_hashed_every_file(mgpt: Any, killed_after: Any) -> None:
    killed_after(2)
    mgpt(*PRETRAIN, "steps=4", status=130)
    killed_after(None)
    record = json.loads(Path("run/stage.json").read_text())
    record["inputs"]["shards"] = "folder:0123456789abcdef"  # without the lengths written since
    del record["config"]["z_loss"]  # of a later version, say
    Path("run/stage.json").write_text(json.dumps(record))
    assert "resuming from run/step_00000002" in mgpt(*PRETRAIN, "steps=4")


def test_a_run_needs_its_parent_no_more(mgpt: Any, killed_after: Any) -> None:
    child = ("omni_sft", "init_from=run/step_00000001", "vocabulary=text", "output=child", *SOURCE)
    mgpt(*PRETRAIN, "steps=1")
    killed_after(1)
    mgpt(*child, "steps=2", status=130)
    killed_after(None)
    mgpt(*PRETRAIN, "steps=3", "keep=1")  # its step_00000001 goes
    assert "resuming from child/step_00000001" in mgpt(*child, "steps=2")
    shutil.rmtree("run")
    shutil.rmtree("text")
    assert "resuming from child/step_00000002" in mgpt(*child, "steps=3")


def test_other_weights_to_start_from_are_named(mgpt: Any, killed_after: Any) -> None:
    mgpt(*PRETRAIN, "steps=2")
    child = ("omni_sft", "output=child", *SOURCE)
    killed_after(1)
    mgpt(*child, "init_from=run/step_00000001", "steps=2", status=130)
    killed_after(None)
    said = mgpt(*child, "init_from=run/model", "steps=2", status=2)
    assert "init_from run/step_00000001 → run/model" in said and "give another output=" in said


def test_more_steps_continue_a_finished_run_as_if_it_had_never_ended(mgpt: Any) -> None:
    mgpt(*PRETRAIN, "steps=4", "output=whole")
    mgpt(*PRETRAIN, "steps=2")
    said = mgpt(*PRETRAIN, "steps=4")
    assert "steps 2 → 4" in said and "resuming from run/step_00000002" in said
    assert rows() == rows("whole")
    assert figures() == figures("whole")
    whole, run = (Path(name, "model/model.safetensors") for name in ("whole", "run"))
    assert whole.read_bytes() == run.read_bytes()
    assert "steps 4 → 3" in mgpt(*PRETRAIN, "steps=3", status=2)
    assert Path("run/DONE").exists() and Path("run/model/config.json").exists()


def test_the_model_of_fewer_steps_is_gone_once_more_are_made(mgpt: Any, killed_after: Any) -> None:
    mgpt(*PRETRAIN, "steps=2")
    mgpt(*PRETRAIN, "steps=4", "data.sources.a.max_epochs=50", status=2)
    assert Path("run/model/config.json").exists()  # refused: nothing was made
    killed_after(3)
    mgpt(*PRETRAIN, "steps=4", status=130)
    assert not Path("run/model/config.json").exists()
    child = ("omni_sft", "init_from=run", "output=child", "steps=1", *SOURCE)
    killed_after(None)
    assert "weights of run/step_00000003" in mgpt(*child)


def test_a_changed_learning_rate_is_recorded_with_its_step(mgpt: Any, killed_after: Any) -> None:
    killed_after(2)
    mgpt(*PRETRAIN, "steps=4", status=130)
    changed = (*PRETRAIN, "steps=4", "optim.lr=5e-4", "log_every=1")
    killed_after(2)
    mgpt(*changed, status=130)  # killed before its first step: nothing is forgotten, or doubled
    killed_after(3)
    said = mgpt(*changed, status=130)
    assert "after step 2: optim.lr 0.001 → 0.0005" in said
    killed_after(None)
    assert "optim.lr" not in mgpt(*changed)
    assert [row["lr"] for row in rows()] == [1e-3, 1e-3, 5e-4, 5e-4]
    noted = json.loads(Path("run/changes.json").read_text())
    assert {"after_step": 2, "setting": "optim.lr", "old": 1e-3, "new": 5e-4} in noted
    assert [one["setting"] for one in noted] == ["log_every", "optim.lr"]
    trainer = json.loads(Path("run/step_00000004/trainer.json").read_text())
    assert trainer["changes"] == noted


def test_more_steps_stretch_the_schedule_and_say_so(mgpt: Any) -> None:
    cosine = (*PRETRAIN, "schedule.kind=cosine", "optim.lr=1e-3")
    mgpt(*cosine, "steps=2")
    said = mgpt(*cosine, "steps=4")
    assert "learning rate of step 3: 0 → 0.0005 (4 steps)" in said
    assert [row["lr"] for row in rows()] == pytest.approx([1e-3, 5e-4, 5e-4, 1.4645e-4], rel=1e-3)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("data.row_tokens=256", "data.row_tokens 128 → 256"),
        ("seed=1", "seed 0 → 1"),
        ("model.max_positions=128", "model.max_positions None → 128"),
        ("data.guidance_drop=0.3", "data.guidance_drop 0.0 → 0.3"),
    ],
)
def test_what_was_learned_from_does_not_change(
    mgpt: Any, killed_after: Any, word: str, named: str
) -> None:
    killed_after(1)
    mgpt(*PRETRAIN, "steps=2", status=130)
    assert named in mgpt(*PRETRAIN, "steps=2", word, status=2)
    assert Path("run/step_00000001/COMPLETE").exists()


def test_the_mix_changes_in_a_run_under_way(mgpt: Any, killed_after: Any) -> None:
    killed_after(2)
    mgpt(*PRETRAIN, "steps=4", status=130)
    killed_after(None)
    with_codes_of("0" * 16, "more")
    later = ["data.sources.b.path=more", "data.sources.b.tasks.caption=0"]
    change = "data.changes={3: {b: {caption: 1.0}}}"
    said = mgpt(*PRETRAIN, "steps=4", *later, change)
    assert "data.changes.3.b.caption absent → 1.0" in said
    said = mgpt(*PRETRAIN, "steps=6", "data.sources.a.tasks.caption=2", *later, change, status=2)
    assert "sources.a.tasks.caption was 1.0, is 2.0" in said


def test_other_shards_are_refused_unless_allowed(mgpt: Any, killed_after: Any) -> None:
    killed_after(1)
    mgpt(*PRETRAIN, "steps=2", status=130)
    killed_after(None)
    shutil.rmtree("shards")
    with_codes_of("0" * 16, "shards")
    said = mgpt(*PRETRAIN, "steps=2", status=2)
    assert "sources.a.shards was" in said and "data.allow_changed" in said
    assert "resuming from" in mgpt(*PRETRAIN, "steps=2", "data.allow_changed=[a]")


def test_sources_of_two_vqgans_are_not_mixed(mgpt: Any) -> None:
    with_codes_of("f" * 16, "other")
    mixed = ("data.sources.b.path=other", "data.sources.b.tasks.text_to_image=1")
    said = mgpt(*PRETRAIN, "steps=2", *mixed, status=2)
    assert f"source a (shards) was encoded with VQ model {'0' * 16}" in said
    assert f"source b (other) with {'f' * 16}" in said


def test_weights_know_the_codes_of_one_vqgan(mgpt: Any) -> None:
    mgpt(*PRETRAIN, "steps=1")
    with_codes_of("f" * 16, "other")
    for start in ("run", "run/step_00000001"):
        for source in ("data.sources.a.path=other", "held_out.sources.h.path=other"):
            words = ["held_out.sources.h.tasks.caption=1"] if "held_out" in source else []
            said = mgpt(
                *("omni_sft", "output=child", f"init_from={start}", "steps=1"),
                *(*SOURCE, source, *words),
                status=2,
            )
            assert "vq_mismatch" in said and "0" * 16 in said and "f" * 16 in said
    drawn = mgpt(*PRETRAIN, "steps=1", "output=x", "samples.vq=scenes_f8", "pictures_every=1",
                 status=2)  # fmt: skip
    assert "vq_mismatch" in drawn and "samples.vq=scenes_f8" in drawn


def test_weights_of_before_vqgans_were_written_down(mgpt: Any) -> None:
    mgpt(*PRETRAIN, "steps=1")
    config = json.loads(Path("run/model/config.json").read_text())
    assert config.pop("vq_fingerprint") == "0" * 16
    Path("run/model/config.json").write_text(json.dumps(config))
    Path("run/model/SHA256SUMS").unlink()
    said = mgpt("omni_sft", "output=child", "init_from=run/model", "steps=1", *SOURCE)
    assert said.count("does not say which VQGAN") == 1
    assert json.loads(Path("child/model/config.json").read_text())["vq_fingerprint"] == "0" * 16


CAPPED = (*PRETRAIN, "data.sources.a.max_epochs=2")


def test_more_steps_than_the_data_last_are_refused_before_the_first(mgpt: Any) -> None:
    said = mgpt(*CAPPED, "steps=100", status=2)
    steps = int(said.split("the data last ")[1].split()[0])
    assert "steps=100" in said and f"give steps={steps}" in said
    assert not list(Path("run").glob("step_*")) and not Path("run/metrics.jsonl").exists()
    mgpt(*CAPPED, f"steps={steps}")
    documents = sum(2 for _ in range(36))  # two passes over what make_corpus writes
    assert rows()[-1]["documents"] == documents and len(rows()) == steps


def test_epochs_instead_of_steps(mgpt: Any, killed_after: Any) -> None:
    said = mgpt(*PRETRAIN, "epochs=2", "output=whole")
    steps = int(said.split("epochs=2: ")[1].split()[0])
    assert rows("whole")[-1]["documents"] == 72 and len(rows("whole")) == steps
    assert "is complete" in mgpt(*PRETRAIN, "epochs=2", "output=whole")
    killed_after(2)
    mgpt(*PRETRAIN, "epochs=2", status=130)
    killed_after(None)
    assert "resuming from run/step_00000002" in mgpt(*PRETRAIN, "epochs=2")
    assert rows() == rows("whole")
    assert "give one of the two" in mgpt(*PRETRAIN, "epochs=2", "steps=2", "output=x", status=2)
    assert "give one of the two" in mgpt(*PRETRAIN, "output=x", status=2)


def test_a_source_with_a_cap_of_its_own_is_passed_as_often(mgpt: Any) -> None:
    with_codes_of("0" * 16, "more")
    more = ("data.sources.b.path=more", "data.sources.b.tasks.caption=1")
    mgpt(*PRETRAIN, "epochs=2", *more, "data.sources.b.max_epochs=1")
    assert rows()[-1]["documents"] == 2 * 36 + 24


def test_data_that_end_where_that_could_not_be_foreseen(mgpt: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("mgpt.data.forecast.FORETOLD_DOCUMENTS", 10)
    said = mgpt(*CAPPED, "steps=100")
    ended = len(rows())
    assert f"the data end after step {ended}" in said and rows()[-1]["documents"] == 72
    assert figures()["steps"] == ended < 100
    assert Path("run/model/config.json").exists()
    assert Path(f"run/step_{ended:08d}/COMPLETE").exists()
    assert "is complete" in mgpt(*CAPPED, "steps=100")


def test_redo_starts_again_and_spares_what_is_not_the_runs(mgpt: Any) -> None:
    mgpt(*PRETRAIN, "steps=2")
    Path("run/thesis.tex").write_text("years of work")
    Path("run/model/README.md").write_text("notes of a person")
    said = mgpt(*PRETRAIN, "steps=1", "redo=true")
    assert "2 files that mgpt pretrain did not write stay: model/README.md, thesis.tex" in said
    assert "starting from fresh weights" in said and len(rows()) == 1
    assert not Path("run/step_00000002").exists()
    assert Path("run/thesis.tex").read_text() == "years of work"
    assert Path("run/model/README.md").exists() and Path("run/model/config.json").exists()


def test_more_epochs_continue_a_run_that_ended_with_its_data(mgpt: Any, killed_after: Any) -> None:
    mgpt(*PRETRAIN, "epochs=2")
    before, ended = rows(), len(rows())
    said = mgpt(*PRETRAIN, "epochs=3")
    assert "epochs 2.0 → 3.0" in said and f"resuming from run/step_{ended:08d}" in said
    assert rows()[:ended] == before and rows()[-1]["documents"] == 3 * 36
    assert figures()["steps"] == len(rows())
    killed_after(len(rows()) + 1)
    mgpt(*PRETRAIN, "epochs=4", status=130)
    killed_after(None)
    mgpt(*PRETRAIN, "epochs=4")
    assert rows()[-1]["documents"] == 4 * 36
