"""Captioned photographs of one's own with a task of one's own: packed, trained, asked, evaluated.

Nothing in the package knows the task, which is the one that data_pipeline/README.md shows, its text
field `count` or its picture field `own_sketch`.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgpt.cli import command

ROOT = Path(__file__).parents[2]
NUMBERS = ("one", "two", "three")
SCORER = """
from mgpt.evals.metrics import Metric, Scorer


def first_letter(case, reply):
    return {"first_letter": float(reply.text[:1] == case.truth.text[:1])}


FIRST_LETTER = Scorer((Metric("first_letter", "share of answers", True),), first_letter)
"""


def write_photographs(folder: Path) -> None:
    """Twelve captioned pictures; all have a sketch and the number of circles in it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for index in range(12):
        for name in (f"{index}.png", f"{index}_sketch.png"):
            levels = rng.integers(0, 256, (5, 5, 3), np.uint8)
            Image.fromarray(levels).resize((48, 40)).save(folder / name)
        records.append(
            {
                "file": f"{index}.png",
                "caption": f"a photograph of {NUMBERS[index % 3]} cats on a chair, number {index}",
                "own_sketch": f"{index}_sketch.png",
                "count": NUMBERS[index % 3],
                "tasks": ["caption", "text_to_image", "counting.py"],
            }
        )
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "captions.jsonl").write_text(lines)


@pytest.fixture
def mgpt(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """Runs a command in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        found = command.main(list(words))
        said = capsys.readouterr()
        assert found == status, said.out + said.err
        return str(said.out + said.err)

    return run


def test_a_task_from_outside_trains_generates_and_is_evaluated(
    mgpt: Any, vq: str, tmp_path: Path
) -> None:
    pytest.importorskip("torchmetrics", reason="pip install -e .[metrics]")
    write_photographs(tmp_path / "mine")
    page = (ROOT / "data_pipeline" / "README.md").read_text()
    (counting,) = re.findall(r"```python\n(\"\"\"counting.py.*?)```", page, re.S)
    counting = counting.replace("exact_match", "my_scorer.py:FIRST_LETTER")
    (tmp_path / "counting.py").write_text(counting)
    (tmp_path / "my_scorer.py").write_text(SCORER)
    mgpt("pack", "source=folder", "input=mine", "output=raw", "tracking=disabled")
    mgpt("tokenize", "input=raw", "output=tokens", f"vq={vq}", "resolution=[32]",
         "tracking=disabled")  # fmt: skip
    mgpt("train_text", "input=tokens", "output=text", "num_pieces=330", "tracking=disabled")
    train = (
        *("pretrain", "model=debug", "parallel=single", "tracking=disabled", "vocabulary=text"),
        *("resolution_px=32", "save_every=1", "output=run", "data.row_tokens=256"),
        *("data.step_rows=2", "data.window_documents=16", "data.sources.mine.path=tokens"),
        "data.sources.mine.tasks={counting.py: 1, caption: 1}",
        *("held_out.sources.mine.path=tokens", "held_out.rows=1", "validate_every=1"),
        "held_out.sources.mine.tasks={counting.py: 1}",
    )
    mgpt(*train, "steps=3")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    seen = {name for row in rows for name in row}
    assert {"loss/task/counting", "loss/task/caption"} <= seen, sorted(seen)

    mgpt("generate", "ckpt=run", f"vq={vq}", "task=counting.py", "image=mine/0_sketch.png",
         "size=32x32", "max_new_tokens=4", "output=asked", "tracking=disabled")  # fmt: skip
    (answer,) = json.loads((tmp_path / "asked" / "answers.json").read_text())
    assert answer["tokens"] > 0 and not answer["images"]

    evaluate = (
        *("evaluate", "ckpt=run", f"vq={vq}", "input=tokens", "raw=raw", "resolution_px=32"),
        *("samples=4", "gallery=2", "max_new_tokens=24", "procs=1", "tracking=disabled"),
        "samples_of={text_to_image: 2}",
    )
    said = mgpt(*evaluate, "tasks=[caption,text_to_image,counting.py]", "output=measured")
    assert "no one right answer" in said
    measured = {
        name: json.loads((tmp_path / "measured" / name / "measures.json").read_text())
        for name in ("caption", "text_to_image", "counting")
    }
    for name, metrics in {
        "caption": ["edit_distance", "exact_match"],
        "text_to_image": ["psnr_db", "ssim"],
        "counting": ["first_letter"],
    }.items():
        assert list(measured[name]["metrics"]) == metrics
        for metric in measured[name]["metrics"].values():
            assert metric["gain_low"] <= metric["gain_high"] and "goal" not in metric
        entries = json.loads((tmp_path / "measured" / name / "gallery.json").read_text())
        assert len(entries) == 2 and set(entries[0]["metrics"]) == set(metrics)
    assert measured["caption"]["metrics"]["exact_match"]["ceiling"] == 1.0
    assert measured["caption"]["metrics"]["edit_distance"]["ceiling"] == 0.0
    assert "no one right answer" in measured["text_to_image"]["caveat"]
    mgpt("report", "evaluation=measured", "output=page", "tracking=disabled")
    assert "Counting" in (tmp_path / "page" / "report.html").read_text()

    # What makes rows from text is part of their order.
    text = counting.replace("How many circles", "How many rings")
    (tmp_path / "counting.py").write_text(text)
    refused = mgpt(*train, "steps=4", status=2)
    assert "sources.mine.task_file.counting was" in refused, refused
