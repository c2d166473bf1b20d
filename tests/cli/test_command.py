"""The command line itself: options before and beside a stage's fields."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgpt.cli import command

PRETRAIN = [
    *("pretrain", "vocabulary=v", "output=out", "steps=9", "parallel=fsdp2"),
    *("parallel.micro_rows=4", "data.sources.a.path=p", "data.sources.a.tasks.image_text=1"),
]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert command.main(words) == 0
    return capsys.readouterr().out


def test_the_version_names_package_and_torch(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    line = shown(capsys, "--version")
    assert line.startswith("mgpt ") and f"torch {torch.__version__}" in line


def test_a_configuration_file_takes_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    text = shown(capsys, *PRETRAIN, "--cfg", "job")
    file.write_text(text.replace("eps: 1.0e-05", "eps: 1e-5"))
    words = ["--config", str(file), "--cfg", "job", "parallel=single", "optim.lr=1e-3", "steps=5"]
    before = yaml.safe_load(file.read_text())
    after = yaml.safe_load(shown(capsys, "pretrain", *words))
    assert (after["steps"], after["optim"]["lr"]) == (5, 1e-3)
    assert after["parallel"]["name"] == "single", "the group's own values"
    assert after["parallel"]["micro_rows"] == 4, "what the group leaves open is the file's"
    after |= {"steps": 9, "optim": before["optim"], "parallel": before["parallel"]}
    assert after == before


def test_a_resolved_file_needs_no_hydra(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"source: photos\noutput: {tmp_path}\n")
    code = f"""
import sys
from mgpt.cli import command
command.main(["pack", "--config", {str(file)!r}, "--cfg", "job"])
assert not {{"hydra", "omegaconf"}} & sys.modules.keys()
command.main(["pack", "--config", {str(file)!r}, "--cfg", "job", "workers=3"])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("source: photos") == 2 and "workers: 3" in run.stdout


def test_a_group_without_a_package_goes_over_the_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fp_sft", "init_from=w", *PRETRAIN[2:], "resolution=64"]
    file = tmp_path / "config.yaml"
    file.write_text(shown(capsys, *words, "--cfg", "job"))
    words = ["fp_sft", "--config", str(file), "resolution=512", "--cfg", "job"]
    after = yaml.safe_load(shown(capsys, *words))
    assert (after["resolution_px"], after["steps"]) == (512, 9)
    assert after["data"]["row_tokens"] > yaml.safe_load(file.read_text())["data"]["row_tokens"]


def test_text_of_a_configuration_file_means_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    prompts = ["${HOME} \\${x}", "it's \\ {a}"]
    file.write_text(yaml.safe_dump({"prompt": prompts, "ckpt": "c", "vq": "v", "output": "o"}))
    again = yaml.safe_load(shown(capsys, "generate", "--config", str(file), "--cfg", "job", "n=2"))
    # What is shown is yaml for a person; `${` is escaped in it as in any configuration.
    assert again["n"] == 2 and again["prompt"] == prompts


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["pretrain", "--config", "FILE", "step=3"], "step: no such field; did you mean 'steps'"),
        (["pretrain", "--config", "FILE", "parallel=dpp"], "parallel is one of fsdp2"),
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["pipeline", "--config", "FILE"], "recipe=FILE"),
        (["pipeline", "--config", "FILE", "seed=1"], "takes no fields beside --config"),
        (["submit", "--config", "FILE", "pack"], "mgpt submit takes no --config"),
    ],
)
def test_mistakes_beside_a_file_are_named(
    words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("output: out\n")
    words = [str(file) if word == "FILE" else word for word in words]
    assert command.main(words) == 2
    assert problem in capsys.readouterr().err
