"""The documented commands from a folder of pictures to shards and to a fine-tuned model."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TOKENIZE = ("data_pipeline/README.md", "## Tokenize your own pictures")
FINE_TUNE = ("README.md", "## Your own pictures")


def blocks_of(page: str, heading: str, language: str) -> list[str]:
    """The blocks of a section in one language."""
    section = (ROOT / page).read_text().split(f"\n{heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.M | re.S)


def commands(page: str, heading: str) -> list[list[str]]:
    """The commands of each block of a section."""
    blocks = blocks_of(page, heading, "bash")
    return [re.sub(r"\\\n\s*", "", block).strip().splitlines() for block in blocks]


def write_pictures(folder: Path) -> None:
    """Four good pictures in a folder and a subfolder, one too small, one that is no picture."""
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in {
        "cat.jpg": (400, 300),
        "dog.png": (300, 300),
        "more/tree.webp": (280, 420),
        "more/house.v2.jpg": (512, 256),
        "icon.png": (16, 16),
    }.items():
        levels = rng.integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "cat.txt").write_text("a grey cat on a chair")


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command, *arguments = shlex.split(line, comments=True)
    assert command == "mgpt"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "mgpt", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_three_commands_lead_from_pictures_to_verified_shards(tmp_path: Path) -> None:
    write_pictures(tmp_path / "my_pictures")
    three, looks = commands(*TOKENIZE)
    assert len(three) == 3
    for line in three:
        done = run(line, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    proof = json.loads(done.stdout.splitlines()[-1])
    assert proof["ok"] and (proof["inputs"], proof["written"], proof["rejected"]) == (6, 4, 2)
    assert proof["reasons"] == {"too_small": 1, "undecodable": 1}
    with Image.open(tmp_path / "tokens" / "verify" / "256.png") as sheet:
        assert sheet.width > 500
    for line in looks:
        done = run(line, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "a grey cat on a chair" in (tmp_path / "inspected" / "cat.html").read_text()
    assert (tmp_path / "summary" / "summary.html").exists()


def make_quickstart_weights(folder: Path) -> None:
    """`outputs/quickstart/omni_sft` as if a quickstart had run: a small model, hardly trained."""
    source = "data.sources.scenes.path=tokens data.sources.scenes.tasks.image_text=1"
    for line in (
        "mgpt pack source=scenes scenes.num_scenes=20 output=raw",
        "mgpt tokenize input=raw output=tokens vq=scenes_f8 resolution=[64]",
        "mgpt train_text input=tokens output=text num_pieces=400",
        "mgpt pretrain vocabulary=text model=debug resolution_px=64 steps=2 data.row_tokens=512 "
        f"data.step_rows=2 schedule.warmup_steps=1 parallel=single {source} output=omni_sft",
    ):
        done = run(f"{line} tracking=disabled", folder)
        assert done.returncode == 0, done.stdout + done.stderr
    (folder / "outputs" / "quickstart").mkdir(parents=True)
    (folder / "omni_sft").rename(folder / "outputs" / "quickstart" / "omni_sft")


@pytest.mark.timeout(900)
def test_four_commands_lead_from_pictures_to_one_that_a_fine_tuned_model_draws(
    tmp_path: Path,
) -> None:
    make_quickstart_weights(tmp_path)
    write_pictures(tmp_path / "my_pictures")
    (four,) = commands(*FINE_TUNE)
    assert [line.split()[1] for line in four] == ["pack", "tokenize", "fp_sft", "generate"]
    for line in four:
        done = run(line, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    record = (tmp_path / "mine" / "fp_sft" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in record]
    assert len(losses) == 100 and losses[-1] < losses[0] - 1, "it learns the one caption there is"
    (answer,) = json.loads((tmp_path / "mine" / "pictures" / "answers.json").read_text())
    with Image.open(tmp_path / "mine" / "pictures" / answer["images"][0]) as picture:
        assert picture.size == (64, 64)


@pytest.mark.timeout(900)
def test_the_readmes_python_draws_a_picture(tmp_path: Path) -> None:
    make_quickstart_weights(tmp_path)
    (text,) = blocks_of("README.md", "## Python", "python")
    (tmp_path / "draw.py").write_text(text)
    subprocess.run(
        [sys.executable, "draw.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=200,
        check=True,
    )
    with Image.open(tmp_path / "cone.png") as picture:
        assert picture.size == (64, 64)
