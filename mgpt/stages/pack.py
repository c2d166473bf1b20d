"""mgpt pack: samples of a source become raw shards, ordinary webdataset tars.

mgpt pack source=scenes output=raw/train scenes.num_scenes=4000 workers=2
mgpt pack source=folder input=my_pictures output=raw/mine
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from data_pipeline.pack import PackConfig, PackJob, pack, write_some
from data_pipeline.tokenizing.workers import Place
from mgpt.files.storage import locate
from mgpt.lifecycle.folder import StageFolder, flatten
from mgpt.lifecycle.identity import input_identities
from mgpt.lifecycle.open_tracker import open_tracker
from mgpt.stages.rehearsal import Estimate, Scale, shares, timed
from mgpt.tracking.tracker import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config(PackConfig):
    """What `mgpt pack` can be given."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    return input_identities(cfg.input)


def main(cfg: Config) -> None:
    folder = StageFolder.open("pack", cfg, inputs(cfg), may_be_remote=True)
    if folder.is_complete:
        return
    with open_tracker(cfg, "pack", is_main=Place.of_environment().number == 0) as tracker:
        figures = pack(cfg, tracker)
        counts = {name: value for name, value in flatten(figures) if value != {}}
        tracker.log(0, counts)
        tracker.finish(counts)
    folder.finish(figures)


def is_long(cfg: Config) -> bool:
    return cfg.source == "scenes" and cfg.scenes.num_scenes > 200


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """Packs the first samples of the source, of whichever kind it is."""
    job = PackJob(real)
    parts, done = job.parts, job.finished()
    items = itertools.chain.from_iterable(part.read() for part in parts.values())
    counts: list[int] = []
    seconds = timed(lambda: counts.append(write_some(locate(cfg.output), items, seconds=1.5)))
    total = sum(part.num_samples for part in parts.values())
    left = sum(part.num_samples for part in parts.values() if part.name not in done)
    workers = shares(min(cfg.workers, len(parts)))
    starts = 1 if cfg.workers == 1 else 2
    return Estimate(seconds * left / counts[0] / workers, total / counts[0], starts)
