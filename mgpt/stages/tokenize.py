"""mgpt tokenize: raw shards become shards of picture codes, one folder a resolution.

mgpt tokenize input=raw output=tokens vq=scenes_f8 'resolution=[32,48,64]' workers=2
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from data_pipeline.pack import write_some
from data_pipeline.raw.inputs import estimate_samples, find_raw_shards
from data_pipeline.raw.shards import RawShardReader
from data_pipeline.tokenize import TokenizeConfig, tokenize
from data_pipeline.tokenizing.workers import Place
from mgpt.files.storage import locate
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.folder import StageFolder, flatten
from mgpt.lifecycle.identity import raw_identities
from mgpt.lifecycle.open_tracker import open_tracker
from mgpt.stages.build import vq_input
from mgpt.stages.rehearsal import Estimate, Scale, shares, silent_tracker, timed
from mgpt.tracking.tracker import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config(TokenizeConfig):
    """What `mgpt tokenize` can be given."""

    # More raw shards are more work; the job itself compares those it has done with their manifests.
    CHANGEABLE: ClassVar[Changeable] = Changeable(resumed=("input",), extends=("input",))

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    return {**raw_identities(cfg.input), **vq_input(cfg.vq)}


def main(cfg: Config) -> None:
    folder = StageFolder.open("tokenize", cfg, inputs(cfg), may_be_remote=True)
    if folder.is_complete:
        return
    is_main = Place.of_environment().number == 0
    with open_tracker(cfg, "tokenize", is_main, shared=True) as tracker:
        figures = tokenize(cfg, tracker)
        counts = {name: value for name, value in flatten(figures) if value not in ({}, [])}
        tracker.log(figures["shards"], counts)
        tracker.finish({"shards": figures["shards"], "samples": figures["inputs"]})
    folder.finish(figures)


def is_long(cfg: Config) -> bool:
    paths = [cfg.input] if isinstance(cfg.input, str) else cfg.input
    is_there = all(locate(path).exists() for path in paths)
    return is_there and sum(estimate_samples(find_raw_shards(cfg.input)).values()) > 200


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """Tokenises the stand-in's samples, or the first ones of shards that are there."""
    is_there = cfg.input == real.input
    if is_there:
        shards = find_raw_shards(real.input)
        items = itertools.chain.from_iterable(
            reader for path in shards.values() for reader in [RawShardReader.open(path)]
        )
        some = f"{cfg.output}.raw"
        times = sum(estimate_samples(shards).values()) / write_some(locate(some), items, 0.5)
        cfg = replace(cfg, input=some)
    else:
        paths = [real.input] if isinstance(real.input, str) else real.input
        times = max(scale(path) for path in paths)
    cfg = replace(cfg, workers=1)
    seconds = timed(lambda: tokenize(cfg, silent_tracker(cfg.output)))
    left = 1.0
    if is_there:
        done = {
            px: {p.stem for p in Path(real.output, str(px)).glob("*.json")} for px in cfg.resolution
        }
        left = 1 - len(set.intersection(*done.values()) & set(shards)) / len(shards)
    starts = 1 if real.workers == 1 else 2
    return Estimate(seconds * times * left / shares(real.workers), times, starts)
