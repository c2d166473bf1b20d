"""The report says what fell short, holds its pictures, and keeps conditions out of the measures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgpt.evals.report import ReportInputs, build_report


def write_inputs(root: Path, metrics: str = "metrics") -> ReportInputs:
    task = root / "evaluate" / "caption"
    task.mkdir(parents=True)
    metric = {
        "unit": "share of answers",
        "higher_is_better": True,
        "cases": 4,
        "model": 0.5,
        "constant": 0.1,
        "ceiling": 1.0,
        "gain_low": 0.2,
        "gain_high": 0.6,
        "better_than_constant": True,
        "goal": 0.7,
        "goal_reached": False,
    }
    measures = {"cases": 4, metrics: {"attributes_right": metric}}
    (task / "measures.json").write_text(json.dumps(measures))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(task / "00_question_0.png")
    images = {"question": ["00_question_0.png"], "model": [], "truth": []}
    entry = {"question": "Describe <b>this</b>", "model": "a", "truth": "b", "images": images}
    entry[metrics] = {"attributes_right": 0.0}
    (task / "gallery.json").write_text(json.dumps([entry]))
    record = root / "metrics.jsonl"
    rows = [{"step": step, "loss": 5.0 / step, "loss/task/caption": 1.0} for step in range(1, 9)]
    record.write_text("".join(json.dumps(row) + "\n" for row in rows))
    conditions = {"stages": [{"name": "pretrain", "seconds": 12}], "torch": "2.13"}
    return ReportInputs("quickstart", root / "evaluate", {"pretrain": record}, None, conditions)


def test_page_names_shortfalls_and_is_self_contained(tmp_path: Path) -> None:
    page = build_report(write_inputs(tmp_path), tmp_path).read_text()
    assert "0 of 1 goals were reached." in page
    assert "caption: attributes right 0.500, goal 0.700" in page
    assert page.index("What it learned") < page.index("What ran") < page.index("What falls short")
    assert "data:image/png;base64," in page
    assert "Describe &lt;b&gt;this&lt;/b&gt;" in page, "text of samples must be escaped"
    assert "<polyline" in page
    assert "src='http" not in page and "<script" not in page


@pytest.mark.parametrize("metrics", ["metrics", "figures"])
def test_json_keeps_conditions_apart(tmp_path: Path, metrics: str) -> None:
    """Of an evaluation of an earlier version, too, which called metrics figures."""
    build_report(write_inputs(tmp_path, metrics), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["measures"]["training"] == {"pretrain": 5.0 / 8}
    assert report["measures"]["tasks"]["caption"]["metrics"]["attributes_right"]["model"] == 0.5
    assert report["conditions"]["torch"] == "2.13"


def test_pages_of_other_samples_say_what_their_metrics_are_worth(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    scenes = build_report(inputs, tmp_path).read_text()
    assert "combinations of attributes it has never seen" in scenes
    for task in ("caption", "counting"):  # one of them a task of the user's own
        folder = tmp_path / "evaluate" / task
        folder.mkdir(exist_ok=True)
        measures = json.loads((tmp_path / "evaluate" / "caption" / "measures.json").read_text())
        for name in ("goal", "goal_reached"):
            measures["metrics"]["attributes_right"].pop(name, None)
        (folder / "measures.json").write_text(json.dumps({**measures, "caveat": "Look at it."}))
        (folder / "gallery.json").write_text("[]")
    page = build_report(inputs, tmp_path).read_text()
    assert "combinations of attributes" not in page and "goals were reached" not in page
    assert page.count("Look at it.") == 2 and "<h2>Counting</h2>" in page
