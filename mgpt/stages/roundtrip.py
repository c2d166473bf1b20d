"""mgpt roundtrip: tokenised pictures decoded back, beside the originals, with their PSNR.

mgpt roundtrip input=tokens raw=raw vq=photos_f16 output=roundtrip
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from data_pipeline.roundtrip import RoundtripConfig, roundtrip
from mgpt.stages.build import vq_input
from mgpt.stages.folder import StageFolder, input_fingerprints
from mgpt.stages.open_tracker import open_tracker
from mgpt.tracking.tracker import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config(RoundtripConfig):
    """What `mgpt roundtrip` can be given."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    raw = [cfg.raw] if isinstance(cfg.raw, str) else cfg.raw
    return {**input_fingerprints(cfg.input, *raw), **vq_input(cfg.vq)}


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
