"""README's "Tokenise your own images": exactly its commands, on a small folder of pictures."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
HEADING = "## Tokenise your own images"


def commands() -> tuple[list[str], list[str]]:
    """The three commands, and those that look at what they made."""
    section = (ROOT / "README.md").read_text().split(HEADING)[1].split("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```", section, re.M | re.S)
    first, then = (block.strip().splitlines() for block in blocks)
    return first, then


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
        timeout=200,
    )


def test_three_commands_lead_from_pictures_to_verified_shards(tmp_path: Path) -> None:
    write_pictures(tmp_path / "my_pictures")
    three, looks = commands()
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
