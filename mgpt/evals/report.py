"""A pipeline's results as `report.html` to read and `report.json` to compare.

It collects what the stages left in their folders and computes nothing anew: measures and galleries
of the evaluation, `metrics.jsonl` of the training stages, the decoded photographs, and the record
of what ran. In report.json, `measures` holds what must come out the same of every undisturbed or
interrupted run on one machine; times, versions and machine stand apart under `conditions`.

    build_report(ReportInputs("quickstart", evaluation=root / "evaluate", ...), root)
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mgpt.evals.metrics import ALL_TASKS, MEASURES, read_gallery, read_measures
from mgpt.evals.page import Section, cards, curve, gallery_card, page, picture, table
from mgpt.evals.sheet import answer_sheet
from mgpt.files.atomic import atomic_write

SHEET = "answers.png"
SCENES_LEAD = (
    "Every picture and answer below comes from the model that this run trained, on held-out "
    "samples whose combinations of attributes it has never seen, read back by a checker that "
    "looks at pixels and text alone."
)


LEAD = (
    "Every picture and answer below comes from the model that this run trained, on held-out "
    "samples, measured against their true answers by text and pixels alone."
)


@dataclass(frozen=True)
class ReportInputs:
    """Where the parts of a report lie.

    `training` maps a stage's name to its metrics.jsonl; `photographs` is the folder of a round
    trip (roundtrip.json beside its pictures); `conditions` is printed and stored as it is, with
    `stages` as a list of {name, seconds}.
    """

    title: str
    evaluation: Path
    training: Mapping[str, Path]
    photographs: Path | None = None
    conditions: Mapping[str, object] = field(default_factory=dict)


def build_report(inputs: ReportInputs, output: Path) -> Path:
    """Write report.html, report.json and answers.png into `output`; returns the page's path."""
    own = {file.parent.name for file in inputs.evaluation.glob(f"*/{MEASURES}")} - {*ALL_TASKS}
    evaluated = {name: inputs.evaluation / name / MEASURES for name in (*ALL_TASKS, *sorted(own))}
    tasks = {name: read_measures(file) for name, file in evaluated.items() if file.exists()}
    photographs = _photographs(inputs.photographs)
    curves = {name: _record(file) for name, file in inputs.training.items()}
    measures = {
        "tasks": tasks,
        "photographs": photographs,
        "training": {name: rows[-1]["loss"] for name, rows in curves.items() if rows},
    }
    report = {"measures": measures, "conditions": inputs.conditions}
    atomic_write(output / "report.json", json.dumps(report, indent=1).encode())
    if tasks:
        stream = io.BytesIO()
        answer_sheet(inputs.evaluation, tasks).save(stream, format="PNG")
        atomic_write(output / SHEET, stream.getvalue())
    sections = [
        Section("What it learned", _measures_table(tasks), _measures_note(tasks)),
        *([Section("One answer per task", picture(output / SHEET))] if tasks else []),
        *_galleries(inputs.evaluation, tasks),
        Section("How it learned", f"<div class='curves'>{_curves(curves)}</div>"),
        *_photograph_section(inputs.photographs, photographs),
        Section("What ran", _conditions(inputs.conditions)),
        *_shortfalls(tasks),
    ]
    file = output / "report.html"
    atomic_write(file, page(inputs.title, _lead(tasks), sections).encode())
    return file


def _lead(tasks: Mapping[str, dict]) -> str:
    """What was measured: only the built-in scenes come with goals, and hold out combinations."""
    metrics = [metric for measured in tasks.values() for metric in measured["metrics"].values()]
    is_scenes = not metrics or any("goal" in metric for metric in metrics)
    return SCENES_LEAD if is_scenes else LEAD


def _record(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _photographs(folder: Path | None) -> list[dict]:
    return json.loads((folder / "roundtrip.json").read_text()) if folder else []


def _measures_table(tasks: Mapping[str, dict]) -> str:
    rows = []
    for task, measured in tasks.items():
        for name, metric in measured["metrics"].items():
            goal = f"{metric['goal']:.2f}" if "goal" in metric else ""
            rows.append(
                (
                    _plain(task),
                    f"{_plain(name)} ({metric['unit']})",
                    "more" if metric["higher_is_better"] else "less",
                    float(metric["model"]),
                    float(metric["constant"]),
                    float(metric["ceiling"]),
                    metric["cases"],
                    f"{metric['gain_low']:+.3f} … {metric['gain_high']:+.3f}",
                    metric["better_than_constant"],
                    goal,
                    metric["goal_reached"] if "goal" in metric else "",
                )
            )
    columns = (
        "task",
        "metric",
        "better is",
        "model",
        "best constant answer",
        "truth through the VQGAN",
        "cases",
        "model − constant, 95 %",
        "clearly better",
        "goal",
        "reached",
    )
    return table(columns, rows)


def _measures_note(tasks: Mapping[str, dict]) -> str:
    """How many goals were reached; the last section says which were not, and by how much."""
    reached = [
        metric["goal_reached"]
        for measured in tasks.values()
        for metric in measured["metrics"].values()
        if "goal" in metric
    ]
    return f"{sum(reached)} of {len(reached)} goals were reached." if reached else ""


def _shortfalls(tasks: Mapping[str, dict]) -> list[Section]:
    """What fell short and by how much, in words; silence would be read as success."""
    missed = [
        f"{_plain(task)}: {_plain(name)} {metric['model']:.3f}, goal {metric['goal']:.3f}"
        for task, measured in tasks.items()
        for name, metric in measured["metrics"].items()
        if not metric.get("goal_reached", True)
    ]
    missed += [
        f"{_plain(task)}: {_plain(name)} is not clearly better than the best constant answer"
        for task, measured in tasks.items()
        for name, metric in measured["metrics"].items()
        if not metric["better_than_constant"]
    ]
    if not missed:
        return []
    items = "".join(f"<li>{html.escape(each)}</li>" for each in missed)
    return [Section("What falls short", f"<ul>{items}</ul>")]


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _galleries(evaluation: Path, tasks: Mapping[str, dict]) -> list[Section]:
    sections = []
    for task, measured in tasks.items():
        folder = evaluation / task
        body = cards(gallery_card(entry, folder) for entry in read_gallery(folder))
        note = str(measured.get("caveat", ""))
        if (drawn := measured.get("candidates", 1)) > 1:
            chosen = (
                f"Of {drawn} pictures drawn, the one from which the model reads the caption best."
            )
            note = f"{chosen} {note}".strip()
        sections.append(Section(_plain(task).capitalize(), body, note))
    return sections


def _curves(curves: Mapping[str, Sequence[dict]]) -> str:
    drawn = []
    for stage, rows in curves.items():
        names = sorted({name for row in rows for name in row if name.startswith("loss")})
        overall = [name for name in names if "/task/" not in name]
        by_task = [name for name in names if "/task/" in name]
        for title, chosen in ((stage, overall), (f"{stage}, by task", by_task)):
            series = {
                name.rsplit("/", 1)[-1]: [(row["step"], row[name]) for row in rows if name in row]
                for name in chosen
            }
            drawn.append(curve(title, series))
    return "".join(drawn)


def _photograph_section(folder: Path | None, photographs: Sequence[dict]) -> list[Section]:
    if folder is None:
        return []
    items = []
    for each in photographs:
        words = f"{each['key']} at {each['resolution_px']} px: {each['psnr_db']:.1f} dB PSNR"
        original, decoded = (folder / each[role] for role in ("original", "decoded"))
        pair = picture(original, "as tokenised") + picture(decoded, "decoded")
        items.append(f"<div class='card'>{words}<div class='row'>{pair}</div></div>")
    mean = sum(each["psnr_db"] for each in photographs) / len(photographs)
    note = f"{len(photographs)} round trips through the VQGAN, {mean:.1f} dB PSNR on average."
    return [Section("Real photographs", cards(items, wide=True), note)]


def _conditions(conditions: Mapping[str, object]) -> str:
    stages: list[Mapping[str, object]] = list(conditions.get("stages", []))  # type: ignore[call-overload]
    rest = {name: value for name, value in conditions.items() if name not in ("stages", "estimate")}
    columns = ["name", "seconds", *(["expected_s"] if "estimate" in conditions else [])]
    ran = table(
        [{"name": "stage", "expected_s": "expected, s"}.get(name, name) for name in columns],
        [["" if each.get(name) is None else each[name] for name in columns] for each in stages],
    )
    return ran + "<h3>Conditions</h3>" + table(("what", "value"), list(rest.items()))
