"""One picture with an answer for every task: what a person looks at before any table.

Of the cases in each task's gallery it shows the one with the best score, as the model gave it, and
writes under it the metric of that task over all its cases, so that a good example does not pass for
the rule.

    answer_sheet(root / "evaluate", measures_by_task).save("answers.png")
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mgpt.evals.metrics import read_gallery

COLUMNS = 4
_CELL_PX = (330, 190)
_MARGIN_PX = 12
_PICTURE_PX = 96
_LINE_CHARS = 50
_INK, _FAINT = (26, 32, 44), (96, 108, 128)


def answer_sheet(evaluation: Path, tasks: Mapping[str, dict]) -> Image.Image:
    """The best gallery entry of every task in a grid.

    Args:
        evaluation: output of the evaluation, with a gallery.json and its pictures in each task's
            folder.
        tasks: the measures of each task, as report.json holds them under `measures.tasks`.
    """
    rows = -(-len(tasks) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * _CELL_PX[0], max(1, rows) * _CELL_PX[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (task, measured) in enumerate(tasks.items()):
        corner = (place % COLUMNS * _CELL_PX[0], place // COLUMNS * _CELL_PX[1])
        entries = read_gallery(evaluation / task)
        if entries:
            _draw_entry(sheet, draw, corner, task, measured["metrics"], entries, evaluation / task)
    return sheet


def best_entry(entries: list[dict[str, Any]], metrics: Mapping[str, dict]) -> dict[str, Any]:
    """The entry with the best score of the task's metrics; the first of equal ones."""

    def badness(entry: dict[str, Any]) -> float:
        total = 0.0
        for name, value in entry["metrics"].items():
            if name in metrics:
                total += -value if metrics[name]["higher_is_better"] else value
        return total

    return min(entries, key=badness)


def _draw_entry(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    task: str,
    metrics: Mapping[str, dict],
    entries: list[dict[str, Any]],
    folder: Path,
) -> None:
    entry = best_entry(entries, metrics)
    small, bold = ImageFont.load_default(11), ImageFont.load_default(13)
    x, y = corner[0] + _MARGIN_PX, corner[1] + _MARGIN_PX
    draw.text((x, y), task.replace("_", " "), fill=_INK, font=bold)
    question = str(entry["question"]).replace("<|image|>", "").strip()
    y = _draw_lines(draw, (x, y + 18), question, small, _FAINT, lines=2)
    shown = [*entry["images"]["question"], *entry["images"]["model"]]
    for number, name in enumerate(shown):
        with Image.open(folder / name) as picture:
            scaled = _scaled(picture, 72 if len(shown) > 3 else _PICTURE_PX)
        if number == len(entry["images"]["question"]) > 0:
            middle = y + scaled.height // 2
            draw.polygon([(x, middle - 6), (x, middle + 6), (x + 8, middle)], fill=_FAINT)
            x += 18
        sheet.paste(scaled, (x, y))
        x += scaled.width + 6
    if entry["model"]:
        _draw_lines(draw, (x + 4, y + 4), str(entry["model"]), small, _INK, 5, width=24)
    words = "; ".join(_metric(name, metric) for name, metric in metrics.items())
    draw.text(
        (corner[0] + _MARGIN_PX, corner[1] + _CELL_PX[1] - 24), words, fill=_FAINT, font=small
    )


def _metric(name: str, metric: Mapping[str, Any]) -> str:
    value = metric["model"]
    shown = f"{100 * value:.0f} %" if metric["unit"].startswith("share of") else f"{value:.2f}"
    if metric["unit"] in ("degrees",):
        shown = f"{value:.1f} degrees"
    return f"{name.replace('_', ' ')}: {shown}"


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    font: Any,
    fill: tuple[int, int, int],
    lines: int,
    width: int = _LINE_CHARS,
) -> int:
    """Wrapped text of at most `lines` lines; returns the y below it."""
    x, y = corner
    wrapped = textwrap.wrap(text, width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], textwrap.shorten(" ".join(wrapped[lines - 1 :]), width)]
    for line in wrapped:
        draw.text((x, y), line, fill=fill, font=font)
        y += 14
    return y + 4


def _scaled(picture: Image.Image, side_px: int) -> Image.Image:
    scale = side_px / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
