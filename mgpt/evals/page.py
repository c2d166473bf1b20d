"""One self-contained HTML page: pictures and curves inline, no script, no network.

It knows how things look, not what they mean: the report of a pipeline, the view of a sample and
the summary of a data set hand it what to show.

    html = page("mgpt quickstart", [Section("What it learned", table(("task",), [("vqa",)]))])
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CURVE_WIDTH, CURVE_HEIGHT = 420, 190
CURVE_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568", "#b7791f")
MAX_CURVE_POINTS = 160

STYLE = """
:root { color-scheme: light; --ink: #1a202c; --soft: #64748b; --line: #e2e8f0; --good: #2f855a;
  --bad: #c53030; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink);
  max-width: 1080px; margin: 0 auto; padding: 32px 20px 80px; background: #fff; }
h1 { font-size: 30px; margin: 0 0 4px; } h2 { margin: 48px 0 8px; font-size: 22px; }
h3 { margin: 28px 0 6px; font-size: 16px; } p, .note { color: var(--soft); margin: 4px 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.yes { color: var(--good); } .no { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; font-size: 13px; }
.card .row { display: flex; gap: 10px; margin-top: 6px; flex-wrap: wrap; }
figure { margin: 0; } figcaption { font-size: 11px; color: var(--soft); }
figure img { height: 96px; border-radius: 4px; display: block; background: #f1f5f9; }
.wide figure img { height: 180px; }
.label { color: var(--soft); font-size: 11px; text-transform: uppercase; letter-spacing: .04em; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.curves { display: flex; flex-wrap: wrap; gap: 22px; }
.plain figure img { height: auto; max-width: 100%; }
.ids { line-height: 1.9; font-size: 13px; } .ids span { padding: 1px 4px; border-radius: 3px; }
.trained { background: #c6f6d5; } .given { background: #edf2f7; color: var(--soft); }
svg text { font-size: 10px; fill: #64748b; } .legend span { margin-right: 12px; font-size: 11px; }
"""


@dataclass(frozen=True)
class Section:
    """One heading of the page with its body, already HTML."""

    title: str
    body: str
    note: str = ""


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """The whole document. `lead` is plain text; the sections' bodies are HTML."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>",
    ]
    for section in sections:
        note = f"<p>{html.escape(section.note)}</p>" if section.note else ""
        parts.append(f"<h2>{html.escape(section.title)}</h2>{note}{section.body}")
    return "".join(parts) + "</body></html>\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers are set in figures of one width; a bool becomes a coloured yes or no."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f"<td class='{'yes' if value else 'no'}'>{'yes' if value else 'no'}</td>"
    if isinstance(value, float):
        return f"<td class='number'>{value:.3f}</td>"
    if isinstance(value, int):
        return f"<td class='number'>{value:,}</td>"
    return f"<td>{html.escape(str(value))}</td>"


def picture(file: Path, caption: str = "") -> str:
    """A PNG file within the page."""
    return inline_picture(file.read_bytes(), caption)


def inline_picture(png: bytes, caption: str = "") -> str:
    """The bytes of a PNG as a data URI, so that the page stays one file."""
    data = base64.b64encode(png).decode()
    words = html.escape(caption)
    return (
        f"<figure><img src='data:image/png;base64,{data}' alt='{words}'>"
        f"<figcaption>{words}</figcaption></figure>"
    )


def gallery_card(entry: Mapping[str, object], folder: Path) -> str:
    """Question, the model's answer and the truth of one case, side by side."""
    blocks = []
    for role, label in (("question", "question"), ("model", "model"), ("truth", "truth")):
        text = html.escape(str(entry[role]))
        names = entry["images"][role]  # type: ignore[index]
        pictures = "".join(picture(folder / name) for name in names)
        row = f"<div class='row'>{pictures}</div>" if pictures else ""
        blocks.append(f"<div><span class='label'>{label}</span><div class='text'>{text}</div>{row}")
        blocks.append("</div>")
    return f"<div class='card'>{''.join(blocks)}</div>"


def cards(items: Iterable[str], wide: bool = False) -> str:
    """Cards in as many columns as fit; `wide` ones hold larger pictures."""
    return f"<div class='cards{' wide' if wide else ''}'>{''.join(items)}</div>"


def curve(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a shared axis as an SVG: `{name: [(step, value), ...]}`, averaged to be drawn."""
    drawn = {name: _averaged(points) for name, points in series.items() if len(points) > 1}
    if not drawn:
        return ""
    every = [point for points in drawn.values() for point in points]
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low_y, high_y = min(0.0, *(y for _, y in every)), max(y for _, y in every)
    lines, legend = [], []
    for (name, points), colour in zip(drawn.items(), _cycle(len(drawn)), strict=True):
        path = " ".join(
            f"{40 + (x - low_x) / (high_x - low_x or 1) * (CURVE_WIDTH - 50):.1f},"
            f"{10 + (high_y - y) / (high_y - low_y or 1) * (CURVE_HEIGHT - 35):.1f}"
            for x, y in points
        )
        lines.append(
            f"<polyline fill='none' stroke='{colour}' stroke-width='1.6' points='{path}'/>"
        )
        legend.append(
            f"<span style='color:{colour}'>{html.escape(name)} {points[-1][1]:.3g}</span>"
        )
    bottom = CURVE_HEIGHT - 25
    axes = (
        f"<path d='M40 10V{bottom}H{CURVE_WIDTH - 10}' fill='none' stroke='#cbd5e0'/>"
        f"<text x='36' y='16' text-anchor='end'>{high_y:.3g}</text>"
        f"<text x='36' y='{bottom}' text-anchor='end'>{low_y:.3g}</text>"
        f"<text x='40' y='{CURVE_HEIGHT - 8}'>{low_x:g}</text>"
        f"<text x='{CURVE_WIDTH - 10}' y='{CURVE_HEIGHT - 8}' text-anchor='end'>"
        f"{high_x:g} steps</text>"
    )
    return (
        f"<div><h3>{html.escape(title)}</h3>"
        f"<svg width='{CURVE_WIDTH}' height='{CURVE_HEIGHT}'>{axes}{''.join(lines)}</svg>"
        f"<div class='legend' style='max-width:{CURVE_WIDTH}px'>{''.join(legend)}</div></div>"
    )


def _averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS points, each the mean of its neighbours."""
    width = -(-len(points) // MAX_CURVE_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _cycle(count: int) -> list[str]:
    return [CURVE_COLOURS[index % len(CURVE_COLOURS)] for index in range(count)]
