"""mgpt reindex: indexes and lengths of tokenised shards, rebuilt from tars and manifests.

An index that is there and right is left alone. Lengths are counted for every task that a sample can
serve, and the text is kept as ids with them; a count that was stopped is resumed. Without a
vocabulary the old ones are deleted, and training counts at its next start.

Reads: tokenised shards; a vocabulary if given
Writes: indexes and lengths, beside the shards

    mgpt reindex input=tokens
    mgpt reindex input=tokens vocabulary=text
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mgpt.data.dataset import open_dataset, resolution_folders, shard_names
from mgpt.data.lengths import forget_lengths, load_lengths
from mgpt.data.reindex import rebuild_index
from mgpt.files.storage import Location
from mgpt.lifecycle.weights import load_vocabulary
from mgpt.tasks.registry import READINGS
from mgpt.tokens.vocab import Vocabulary
from mgpt.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt reindex` can be given."""

    input: str
    """The output of mgpt tokenize, or the folder of one resolution in it, local or remote."""
    vocabulary: str | None = None
    """The output of mgpt train_text, or weights: whose tokens are counted; null counts none."""
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(mode="disabled"))


def main(cfg: Config) -> None:
    vocabulary = None if cfg.vocabulary is None else load_vocabulary(cfg.vocabulary)
    with Tracker(cfg.tracking, Path("."), "reindex", record=False) as tracker:
        rows = []
        for folder in resolution_folders([cfg.input]):
            names, rebuilt = shard_names(folder), 0
            with tracker.progress(len(names), "shards", f"reindex {folder}") as bar:
                for name in names:
                    rebuilt += rebuild_index(folder, name)
                    bar.advance(1)
            forget_lengths(folder, vocabulary)
            counted = 0 if vocabulary is None else _count(folder, vocabulary, tracker)
            rows.append([str(folder), len(names), rebuilt, counted])
        tracker.table("reindexed", ["folder", "shards", "indexes rebuilt", "tasks counted"], rows)


def _count(folder: Location, vocabulary: Vocabulary, tracker: Tracker) -> int:
    """Count every task of a folder; how many have samples."""
    dataset, counted = open_dataset(folder), 0
    with tracker.progress(len(dataset), "samples", f"count {folder}") as bar:

        def show(done: int, total: int) -> None:
            nonlocal counted
            bar.advance(done - counted)
            counted = done

        lengths = load_lengths(dataset, vocabulary, READINGS, show)
    return sum(bool(len(one)) for one in lengths.values())
