"""mgpt summarize: histograms of a tokenised output: sizes, lengths, tasks, what was rejected.

mgpt summarize input=tokens output=summary
mgpt summarize input=tokens output=summary vocabulary=text
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.summarize import SummarizeConfig, summarize
from mgpt.stages.build import load_vocabulary
from mgpt.tracking.tracker import Tracker, TrackingConfig

SHOWN = ("tasks", "sizes in pixels", "characters of captions", "rejected")  # on the console

Config = SummarizeConfig


def main(cfg: Config) -> None:
    vocabulary = None if cfg.vocabulary is None else load_vocabulary(cfg.vocabulary)
    unrecorded = TrackingConfig(mode="disabled")
    with Tracker(unrecorded, Path(cfg.output), "summarize", record=False) as tracker:
        found = summarize(cfg, vocabulary, tracker)
        for px, histograms in found.items():
            rows = [(title, *bar) for title in SHOWN for bar in histograms[title] if bar[1]]
            tracker.table(f"{px} px", ["", "value", "samples"], rows)
        tracker.print(f"page: {Path(cfg.output) / 'summary.html'}")
