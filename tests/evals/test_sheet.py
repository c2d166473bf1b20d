"""The sheet shows the best answer of each task, untouched, with its question."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mgpt.evals.sheet import answer_sheet, best_entry

METRIC = {"unit": "IoU", "higher_is_better": True, "model": 0.25}


def entry(number: int, score: float, level: int, folder: Path) -> dict:
    names = {"question": [f"{number}_q.png"], "model": [f"{number}_m.png"], "truth": []}
    for role, value in (("question", 200), ("model", level)):
        picture = np.full((64, 64, 3), value, np.uint8)
        Image.fromarray(picture).save(folder / names[role][0])
    return {"question": "Where?", "model": "", "images": names, "metrics": {"mean_iou": score}}


def test_the_best_answer_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "segmentation"
    folder.mkdir()
    entries = [entry(0, 0.2, 10, folder), entry(1, 0.9, 77, folder)]
    (folder / "gallery.json").write_text(json.dumps(entries))
    sheet = answer_sheet(tmp_path, {"segmentation": {"metrics": {"mean_iou": METRIC}}})
    levels = np.asarray(sheet)
    assert (levels == 77).all(-1).sum() >= 90 * 90, "the picture of the better answer"
    assert not (levels == 10).all(-1).sum() > 1000, "not that of the worse one"


def test_lower_is_better_where_the_metric_says_so() -> None:
    figures = {"depth_error": {"higher_is_better": False}}
    entries = [{"metrics": {"depth_error": error}, "name": error} for error in (0.3, 0.1, 0.2)]
    assert best_entry(entries, figures)["name"] == 0.1
