"""mgpt tokenize: raw shards become shards of picture codes, one folder a resolution.

mgpt tokenize input=raw output=tokens vq=scenes_f8 'resolution=[32,48,64]' workers=2
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.tokenize_shards import TokenizeConfig, tokenize
from data_pipeline.workers import Place
from mgpt.stages.build import vq_input
from mgpt.stages.folder import StageFolder, flatten, input_fingerprints
from mgpt.stages.open_tracker import open_tracker
from mgpt.tracking.tracker import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config(TokenizeConfig):
    """What `mgpt tokenize` can be given."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    paths = [cfg.input] if isinstance(cfg.input, str) else cfg.input
    return {**input_fingerprints(*paths), **vq_input(cfg.vq)}


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
