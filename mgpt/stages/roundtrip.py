"""mgpt roundtrip: tokenised pictures decoded back, beside the originals, with their PSNR.

mgpt roundtrip input=tokens raw=raw vq=photos_f16 output=roundtrip
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import fmean

from data_pipeline.roundtrip import RoundtripConfig, roundtrip
from mgpt.data.dataset import open_dataset, resolution_folders
from mgpt.lifecycle.folder import StageFolder
from mgpt.lifecycle.identity import dataset_identity, raw_identities
from mgpt.lifecycle.open_tracker import open_tracker
from mgpt.stages.build import vq_input
from mgpt.stages.rehearsal import Estimate, Scale, silent_tracker, timed
from mgpt.tracking.tracker import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config(RoundtripConfig):
    """What `mgpt roundtrip` can be given."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    tokens = {cfg.input: dataset_identity(cfg.input)}
    return {**raw_identities(cfg.raw), **tokens, **vq_input(cfg.vq)}


def main(cfg: Config) -> None:
    folder = StageFolder.open("roundtrip", cfg, inputs(cfg))
    if folder.is_complete:
        return
    with open_tracker(cfg, "roundtrip") as tracker:
        rows = roundtrip(cfg, tracker)
        by_resolution = {
            f"psnr_db/{px}": fmean(row["psnr_db"] for row in rows if row["resolution_px"] == px)
            for px in sorted({row["resolution_px"] for row in rows})
        }
        tracker.log(0, by_resolution)
        figures = {"pictures": len(rows), **by_resolution}
        tracker.finish(figures)
    folder.finish({**figures, "dtype": str(cfg.chosen_dtype)})


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """Decodes two samples of each resolution; time goes with pixels."""
    rows = []
    some = replace(cfg, samples_per_resolution=2)
    seconds = timed(lambda: rows.extend(roundtrip(some, silent_tracker(cfg.output))))
    megapixels = sum(row["width"] * row["height"] for row in rows) / 1e6
    limit, expected = real.samples_per_resolution, 0.0
    for folder in resolution_folders([cfg.input]):
        there = len(open_dataset(folder)) * scale(real.input)
        samples = there if limit is None else min(limit, there)
        expected += samples * int(folder.name) ** 2 / 1e6
    return Estimate(seconds * expected / max(megapixels, 1e-6))
