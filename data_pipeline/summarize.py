"""mgpt summarize: histograms of a tokenised output: sizes, lengths, tasks, what was rejected.

At each resolution: sizes of the encoded pictures and of the files they were made of, characters of
the captions, tokens of the pictures, what tasks the samples can serve, why others were rejected;
each as a PNG, all on one page, the numbers in summary.json. With a vocabulary the lengths of every
task are counted as training counts them.

Reads: tokenised shards; a vocabulary if given
Writes: summary.html, PNGs, summary.json

    mgpt summarize input=tokens output=summary
    mgpt summarize input=tokens output=summary vocabulary=text
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.tokenizing.job_settings import read_settings
from data_pipeline.views.contact_sheet import png
from data_pipeline.views.histogram import bins, draw_bars, most_frequent
from mgpt.data.dataset import TokenisedDataset, open_dataset
from mgpt.data.lengths import TOKENS, TRAINED, load_lengths
from mgpt.evals.page import Section, inline_picture, page
from mgpt.files.storage import locate, write_whole
from mgpt.lifecycle.weights import load_vocabulary
from mgpt.tasks.registry import READINGS, can_serve
from mgpt.tokens.unirep import grid_length
from mgpt.tokens.vocab import Vocabulary
from mgpt.tracking.tracker import Tracker, console_tracker

SHOWN = ("tasks", "sizes in pixels", "characters of captions", "rejected")  # on the console
_SIDE_STEP_PX = 64  # sizes of source files are told apart in such steps


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to summarise."""

    input: str
    """Output folder of `mgpt tokenize`."""
    output: str
    """Folder of summary.html, summary.json and the PNGs."""
    vocabulary: str | None = None
    """A vocabulary, or weights that have one, to count the tokens of every task; null: none."""


Histograms = dict[str, list[tuple[str, int]]]


def main(cfg: Config) -> None:
    vocabulary = None if cfg.vocabulary is None else load_vocabulary(cfg.vocabulary)
    with console_tracker("summarize") as tracker:
        found = summarize(cfg, vocabulary, tracker)
        for px, histograms in found.items():
            rows = [(title, *bar) for title in SHOWN for bar in histograms[title] if bar[1]]
            tracker.table(f"{px} px", ["", "value", "samples"], rows)
        tracker.print(f"page: {Path(cfg.output) / 'summary.html'}")


def summarize(
    cfg: Config, vocabulary: Vocabulary | None, tracker: Tracker
) -> dict[str, Histograms]:
    """Write the histograms of every resolution; they are returned by resolution and title.

    Raises:
        DataError: no tokenised output, or one that cannot be read.
    """
    output = locate(cfg.output)
    datasets = {
        str(px): open_dataset(locate(cfg.input) / str(px))
        for px in read_settings(locate(cfg.input))["resolution"]
    }
    found: dict[str, Histograms] = {}
    sections = []
    with tracker.progress(sum(map(len, datasets.values())), "samples", "summarize") as bar:
        for px, dataset in datasets.items():
            counts = _Counts()
            for index in range(len(dataset)):
                counts.add(dataset, index)
                bar.advance(1)
            found[px] = counts.histograms(dataset)
            if vocabulary is not None:
                found[px] |= _task_lengths(dataset, vocabulary, counts.tasks)
            figures = []
            for title, bars in found[px].items():
                data = png(draw_bars(title, bars))
                write_whole(output / px / f"{title.replace(' ', '_')}.png", data)
                figures.append(inline_picture(data))
            body = f"<div class='plain row'>{''.join(figures)}</div>"
            sections.append(Section(f"{px} px", body, f"{len(dataset):,} samples"))
    lead = f"{cfg.input}: {', '.join(datasets)} px"
    write_whole(output / "summary.html", page("Summary", lead, sections).encode())
    text = json.dumps(found, indent=1, ensure_ascii=False)
    write_whole(output / "summary.json", text.encode())
    return found


class _Counts:
    """What is counted of one resolution, sample by sample; memory does not grow with them."""

    def __init__(self) -> None:
        self.tasks: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._characters: Counter[int] = Counter()
        self._picture_tokens: Counter[int] = Counter()

    def add(self, dataset: TokenisedDataset, index: int) -> None:
        shard, number = dataset.locate(index)
        meta, shapes = shard.meta(number), shard.shapes(number)
        self.tasks.update(name for name in READINGS if can_serve(name, meta, shapes))
        self._fields.update(shapes.keys())
        side = dataset.latent_px
        self._sizes.update(f"{width * side} x {height * side}" for height, width in shapes.values())
        for crop in meta.get("geometry", {}).values():
            width, height = (
                crop[name] // _SIDE_STEP_PX * _SIDE_STEP_PX
                for name in ("source_width", "source_height")
            )
            self._sources[f"from {width} x {height}"] += 1
        if isinstance(meta.get("caption"), str):
            self._characters[len(meta["caption"])] += 1
        if shapes:
            self._picture_tokens[sum(grid_length(*shape) for shape in shapes.values())] += 1

    def histograms(self, dataset: TokenisedDataset) -> Histograms:
        rejected = Counter(why for manifest in dataset.manifests for _, why in manifest.rejected)
        return {
            "tasks": most_frequent(self.tasks, len(READINGS)),
            "picture fields": most_frequent(self._fields),
            "sizes in pixels": most_frequent(self._sizes),
            "source sizes in pixels": most_frequent(self._sources),
            "characters of captions": bins(self._characters),
            "picture tokens of samples": bins(self._picture_tokens),
            "rejected": most_frequent(rejected),
        }


def _task_lengths(
    dataset: TokenisedDataset, vocabulary: Vocabulary, tasks: Counter[str]
) -> Histograms:
    """Tokens and trained tokens of each task, in its first variant."""
    histograms: Histograms = {}
    for name, lengths in load_lengths(dataset, vocabulary, tasks).items():
        for what, column in (("tokens", TOKENS), ("trained tokens", TRAINED)):
            counts = Counter(lengths.counts_NVC[:, 0, column].tolist())
            histograms[f"{what} of {name}"] = bins(counts)
    return histograms
