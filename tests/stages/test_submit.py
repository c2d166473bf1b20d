"""mgpt submit, status and cancel, down to the scripts, without Slurm."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml

from mgpt.cli import command
from mgpt.cli.config import Composed, read_config, validate
from mgpt.errors import ConfigError, MachineError
from mgpt.launching import slurm
from mgpt.launching.slurm import Job
from mgpt.stages import pipeline, submit
from mgpt.stages.status import look, read_submission
from mgpt.stages.train import Config as TrainingConfig

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import make_corpus


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny training's command, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    corpus = make_corpus(tmp_path / "corpus")
    return [
        *("pretrain", "model=debug", f"vocabulary={corpus}/vocab", "steps=6", "parallel=fsdp2"),
        *(f"data.sources.a.path={corpus}/32", "data.sources.a.tasks.image_text=1"),
        *("data.row_tokens=256", "data.step_rows=4", "output=out", "launcher.gpus_per_node=0"),
        "schedule.warmup_steps=1",
    ]


class Queue:
    """Stands for Slurm: ids from 1, every job waiting until a test says otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.submitted: list[tuple[str, str]] = []
        self.states: dict[str, str] = {}
        self.cancelled: list[str] = []
        monkeypatch.setattr(slurm, "is_here", lambda: True)
        monkeypatch.setattr(slurm, "version", lambda: "slurm of this test")
        monkeypatch.setattr(slurm, "submit", self._submit)
        monkeypatch.setattr(slurm, "look", self._look)
        monkeypatch.setattr(slurm, "cancel", self.cancelled.extend)

    def _submit(self, script: Path, dependency: str = "") -> str:
        assert script.exists()
        self.submitted.append((script.parents[1].name, dependency))
        self.states[str(len(self.submitted))] = "PENDING"
        return str(len(self.submitted))

    def _look(self, job_id: str) -> list[Job]:
        state = self.states.get(job_id)
        return [Job(job_id, state, "Priority", 0, "", "", "", "")] if state else []


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(monkeypatch)


def configured(*words: str) -> submit.Config:
    return submit.configure(submit.compose(words))


def test_a_training_is_frozen_and_queued(training: list[str], queue: Queue) -> None:
    assert command.main(["submit", *training, "launcher.nodes=2"]) == 0
    assert queue.submitted == [("out", "")]
    launch = Path("out/launch")
    script = (launch / "job.sbatch").read_text()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=2\n" in script
    assert f"--config {Path.cwd()}/out/launch/config.yaml" in script
    code = json.loads((launch / "code.json").read_text())
    assert code.keys() >= {"version", "commit", "dirty", "python", "torch"}
    assert (launch / "job").read_text() == "1\n"
    frozen = yaml.safe_load((launch / "config.yaml").read_text())
    (work,) = configured(*training).works
    assert validate(TrainingConfig, frozen) == work.config


def test_a_live_folder_is_refused_and_a_cancelled_one_is_not(
    training: list[str], queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["submit", *training]) == 0
    assert command.main(["submit", *training]) == 2
    said = capsys.readouterr().err
    assert "out: job 1 (PENDING) works in this folder" in said and "mgpt cancel output=" in said
    assert command.main(["cancel", "output=out"]) == 0
    assert queue.cancelled == ["1"] and Path("out/launch/cancelled").exists()
    queue.states["1"] = "CANCELLED"
    (report,) = look(read_submission("out"))
    assert report.state == "cancelled" and not report.is_live
    assert command.main(["submit", *training]) == 0
    assert not Path("out/launch/cancelled").exists()


def test_dry_run_prints_the_script_and_writes_nothing(
    training: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["submit", *training, "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert "#!/usr/bin/env bash\n#SBATCH --job-name=pretrain" in shown
    assert "scontrol requeue" in shown and not Path("out").exists()
    assert command.main(["submit", *training, "dry_run=true", "launcher=local"]) == 0
    assert "exec " in capsys.readouterr().out and not Path("out").exists()


def test_a_pipeline_runs_here_from_its_frozen_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "g")
    monkeypatch.setattr(submit, "own_children", lambda: None)
    monkeypatch.setattr(submit, "run_child", lambda command: 0)
    words = ["pipeline", "recipe=tiny", f"output={tmp_path / 'o'}", "launcher=local"]
    words += ["fp_sft.64.steps=5", "until=omni_sft", "title=it's ${this}"]
    assert command.main(["submit", *words]) == 0
    launch = tmp_path / "o" / "launch"
    assert f" pipeline --config {launch / 'config.yaml'}" in (launch / "local.sh").read_text()
    again = pipeline.configure(Composed(read_config(launch / "config.yaml")))
    assert again == configured(*words).config
    assert [e.config.steps for e in again.entries if e.name == "fp_sft/64"] == [5]


def test_all_that_is_missing_is_said_at_once(
    training: list[str], queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("corpus/32/00000.json").write_text("{}")
    words = [word for word in training if not word.startswith("vocabulary")]
    assert command.main(["submit", *words, "vocabulary=gone", "keep=9999999"]) == 2
    said = capsys.readouterr().err
    assert "its checkpoints need" in said
    assert "gone: there is no such file or folder" in said
    assert "00000" in said, "the shard whose manifest is no manifest"
    assert queue.submitted == [] and not Path("out").exists()


def test_ranks_that_a_late_stage_cannot_divide_are_said_before_the_first_is_queued(
    tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", "pipeline", "recipe=tiny", f"output={tmp_path / 'o'}", "launcher.nodes=2"]
    words += ["launcher.gpus_per_node=0", "launcher.procs_per_node=2"]
    assert command.main([*words, "omni_sft.parallel.shard_ranks=3"]) == 2
    said = capsys.readouterr().err
    assert "omni_sft: parallel.shard_ranks=3: 4 ranks cannot be divided" in said
    assert "pretrain" not in said and queue.submitted == []


def test_without_slurm_that_is_said(
    training: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert command.main(["submit", *training]) == 2
    assert "sbatch is not on PATH; launcher=slurm needs Slurm's commands" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "takes one stage or pipeline"),
        (["pretrain", "verify"], "takes one stage or pipeline"),
        (["status"], "mgpt submit status: give one of"),
        (["pack", "output=o", "source=photos", "launcher.stages.tokenise.array=2"],
         "launcher.stages.tokenise: no stage and no entry"),
        (["pack", "output=o", "source=photos", "launcher.nods=2"], "launcher.nods: no such field"),
        (["pack", "output=o", "source=photos", "launcher.time=soon"], "is no time limit"),
        (["pack", "outptu=o", "source=photos"], "outptu: no such field"),
    ],
)  # fmt: skip
def test_mistakes_are_named(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(*words)


def test_a_recipe_is_a_chain_in_which_verify_decides(tmp_path: Path) -> None:
    cfg = configured("pipeline", "recipe=tiny", f"output={tmp_path / 'o'}")
    needs = {work.name: [f"{n.how}:{n.name}" for n in work.needs] for work in cfg.works}
    assert needs["scenes_raw"] == [] and needs["train_vq"] == ["afterok:scenes_raw"]
    assert needs["scenes_tokens"] == ["afterok:train_vq"], "which has waited for the raw shards"
    assert needs["scenes_tokens.verify"] == ["afterany:scenes_tokens", "afterok:train_vq"]
    assert needs["text"] == ["afterok:scenes_tokens.verify"]
    assert needs["pretrain"] == ["afterok:text"]
    assert needs["fp_sft/32"] == ["afterok:pretrain"]
    assert needs["fp_sft/64"] == ["afterok:fp_sft/32"]
    assert needs["omni_sft"] == ["afterok:fp_sft/64", "afterok:held_out_tokens.verify"]
    assert needs["evaluate"] == ["afterok:omni_sft"]
    assert needs["report"] == ["afterok:evaluate", "afterok:roundtrip"]


def test_resources_of_a_chain(tmp_path: Path) -> None:
    cfg = configured(
        "pipeline", "recipe=tiny", f"output={tmp_path / 'o'}", "launcher.nodes=4",
        "launcher.gpus_per_node=4", "launcher.stages.held_out_tokens.array=2",
        "launcher.stages.omni_sft.nodes=8", "launcher.stages.fp_sft.time=60",
    )  # fmt: skip
    works = {work.name: work for work in cfg.works}
    asked = {name: submit._resources(cfg, work) for name, work in works.items()}
    nodes = [asked[name].nodes for name in ("pretrain", "omni_sft", "text", "report")]
    assert nodes == [4, 8, 1, 1]
    assert asked["scenes_tokens"].array == 4 and asked["held_out_tokens"].array == 2
    assert asked["fp_sft/64"].time == "60" and asked["pretrain"].time is None
    assert asked["text"].gpus_per_node == 0 and asked["evaluate"].gpus_per_node == 1
    assert submit._ranks(cfg, works["pretrain"]) == 4
    assert works["scenes_tokens"].kind == "shared" and works["text"].kind == "alone"


def test_a_chain_is_submitted_with_its_dependencies_and_shown(
    tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o"
    words = ["submit", "pipeline", "recipe=tiny", f"output={output}", "launcher.gpus_per_node=0"]
    assert command.main(words) == 0
    ids = {name: str(number) for number, (name, _) in enumerate(queue.submitted, start=1)}
    dependency = dict(queue.submitted)
    assert dependency["pretrain"] == f"afterok:{ids['text']}"
    verify = "scenes_tokens.verify"
    assert dependency[verify] == f"afterany:{ids['scenes_tokens']},afterok:{ids['train_vq']}"
    (output / "scenes_raw" / "launch" / "state").write_text("failed\t1\t0\tno space left\n")
    queue.states = {ids["scenes_raw"]: "FAILED"}  # and Slurm has forgotten the others
    capsys.readouterr()
    assert command.main(["status", f"output={output}"]) == 0
    shown = capsys.readouterr().out
    assert "scenes_raw: failed: no space left" in shown
    assert "pretrain: not started: text did not succeed" in shown


def test_the_lines_of_the_page_do_what_it_says(
    tmp_path: Path,
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "launch" / "README.md").read_text()
    section = page.split("\n## Submit a job\n")[1].split("\n## ")[0]
    given = {line.split()[1]: shlex.split(line, comments=True)[1:]
             for line in section.splitlines() if line.startswith("mgpt ")}  # fmt: skip
    assert command.main(given["submit"]) == 0
    ids = [str(number) for number, _ in enumerate(queue.submitted, start=1)]
    script = Path("outputs/quickstart/pretrain/launch/job.sbatch").read_text()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n" in script
    assert "#SBATCH --time=24:00:00\n#SBATCH --partition=gpu\n" in script
    assert command.main(given["cancel"]) == 0 and queue.cancelled == ids[::-1]
    queue.states.clear()
    capsys.readouterr()
    assert command.main(given["status"]) == 0
    assert capsys.readouterr().out.count(" cancelled ") >= len(ids)


def test_where_a_job_of_a_chain_is_not_taken_none_of_it_stays(
    tmp_path: Path,
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(script: Path, dependency: str = "") -> str:
        if script.parents[1].name == "scenes_tokens":
            raise MachineError("sbatch failed with status 1: Invalid job array specification")
        return queue._submit(script, dependency)

    monkeypatch.setattr(slurm, "submit", refuse)
    words = ["submit", "pipeline", "recipe=tiny", f"output={tmp_path / 'o'}"]
    assert command.main([*words, "launcher.gpus_per_node=0"]) == 2
    assert "Invalid job array specification" in capsys.readouterr().err
    assert [name for name, _ in queue.submitted] == ["scenes_raw", "train_vq"]
    assert queue.cancelled == ["1", "2"]


def test_what_slurm_says_stands_in_the_table(
    training: list[str], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main(["submit", *training]) == 0
    assert look(read_submission("out"))[0].state == "PENDING (Priority)"
    Path("out/metrics.jsonl").write_text('{"step": 3, "loss": 2.5}\n')
    long_ago = time.time() - 125
    os.utime("out/metrics.jsonl", (long_ago, long_ago))
    assert look(read_submission("out"))[0].state == "PENDING (Priority), last step 2:05 ago"

    def no_answer(job_id: str) -> list[Job]:
        raise MachineError("slurm_load_jobs error: Unable to contact slurm controller")

    monkeypatch.setattr(slurm, "look", no_answer)
    (report,) = look(read_submission("out"))
    assert (report.state, report.reason) == ("unknown", "Slurm does not answer")
    Path("out/DONE").write_text("{}")
    assert look(read_submission("out"))[0].state == "complete"


def test_status_of_a_folder_that_nothing_was_submitted_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was submitted here"):
        read_submission(str(tmp_path))
