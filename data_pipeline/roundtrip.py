"""mgpt roundtrip: tokenised pictures decoded back, beside the originals, with their PSNR.

Compared are the decoded picture and the fitted one, the cropped and resized pixels that the codes
were made of: what resizing costs is no fault of the codes. Both are written as PNG, next to each
other, as `<px>/<shard>.<key>.<field>.original.png` and `….decoded.png`. The figures say nothing of
pictures the VQ model was not trained on, if it was trained on these.

Reads: raw and tokenised shards, a VQGAN
Writes: PNGs in pairs, roundtrip.json

    mgpt roundtrip input=tokens raw=raw vq=photos_f16 output=roundtrip
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.raw.inputs import find_raw_shards, raw_identities
from data_pipeline.raw.shards import RawSample, RawShardReader, Rejected
from data_pipeline.tokenizing.decoding import CodeDecoder
from data_pipeline.tokenizing.fitting import Fitted, Target, decode, fit_fields
from data_pipeline.tokenizing.job_settings import grid_px, read_settings
from mgpt.allocator import keep_freed_memory
from mgpt.data.dataset import open_dataset, resolution_folders
from mgpt.data.shards import Shard, TokenisedSample
from mgpt.dtypes import PIXELS, Dtype, DtypeChoice, choose_dtype
from mgpt.errors import DataError
from mgpt.files.atomic import atomic_write
from mgpt.files.storage import Location, locate
from mgpt.images.png import png_bytes
from mgpt.images.psnr import psnr_db
from mgpt.lifecycle.identity import dataset_identity, vq_input
from mgpt.lifecycle.rehearsal import Estimate, Scale, silent_tracker, timed
from mgpt.lifecycle.run import run_stage
from mgpt.tracking.tracker import Tracker, TrackingConfig

_MAX_PRINTED = 50  # rows; all are returned
Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to decode, and what it is compared with."""

    input: str
    """Output folder of `mgpt tokenize`."""
    raw: str | list[str]
    """The raw shards it was made of."""
    vq: str
    """The VQ model it was made with: a folder, or the name of a shipped one."""
    output: str
    """Folder of the pictures."""
    samples_per_resolution: int | None = None
    """Decode the first so many samples at each resolution; null is all."""
    threads: int = 1
    """Torch threads."""
    dtype: Dtype = "auto"
    """Of the VQ model's layers. auto is float32 on every device: bfloat16 moves pixels by a few
    levels."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""

    @property
    def chosen_dtype(self) -> DtypeChoice:
        """The type that this machine decodes in."""
        return choose_dtype(self.dtype, torch.device("cpu"), keep_float32=PIXELS)


def inputs(cfg: Config) -> dict[str, str]:
    tokens = {cfg.input: dataset_identity(cfg.input)}
    return {**raw_identities(cfg.raw), **tokens, **vq_input(cfg.vq)}


def main(cfg: Config) -> None:
    run_stage("roundtrip", cfg, inputs(cfg), _measure)


def _measure(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    rows = roundtrip(cfg, tracker)
    by_resolution = {
        f"psnr_db/{px}": fmean(row["psnr_db"] for row in rows if row["resolution_px"] == px)
        for px in sorted({row["resolution_px"] for row in rows})
    }
    tracker.log(0, by_resolution)
    figures = {"pictures": len(rows), **by_resolution}
    tracker.finish(figures)
    return {**figures, "dtype": str(cfg.chosen_dtype)}


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """Decodes two samples of each resolution; time goes with pixels."""
    rows = []
    some = replace(cfg, samples_per_resolution=2)
    seconds = timed(lambda: rows.extend(roundtrip(some, silent_tracker())))
    megapixels = sum(row["width"] * row["height"] for row in rows) / 1e6
    limit, expected = real.samples_per_resolution, 0.0
    for folder in resolution_folders([cfg.input]):
        there = len(open_dataset(folder)) * scale(real.input)
        samples = there if limit is None else min(limit, there)
        expected += samples * int(folder.name) ** 2 / 1e6
    return Estimate(seconds * expected / max(megapixels, 1e-6))


def roundtrip(cfg: Config, tracker: Tracker) -> list[dict[str, Any]]:
    """Decode, compare, write pictures, print a table.

    Returns:
        A row a picture, by resolution, shard and key: `shard`, `key`, `field`, `resolution_px`,
        `width`, `height`, `tokens` (codes), `psnr_db`, `caption`, `original` and `decoded` (PNG
        files, relative to the output). The same rows stand in `roundtrip.json` there.

    Raises:
        DataError: no tokenised output, another VQ model, or raw shards that are not its own.
    """
    settings = read_settings(locate(cfg.input))
    dtype = cfg.chosen_dtype
    dtype.announce(tracker.print)
    fingerprint = settings.get("vq_fingerprint", "none")
    decoder = CodeDecoder(cfg.vq, fingerprint, cfg.input, dtype=dtype.torch)
    comparison = _Comparison(cfg, settings, decoder)
    rows = []
    threads_before = torch.get_num_threads()
    keep_freed_memory()
    torch.set_num_threads(cfg.threads)
    try:
        with tracker.progress(comparison.total, "samples", "decode back") as bar:
            for unit, path in find_raw_shards(cfg.raw).items():
                for sample_rows in comparison.of_shard(unit, path):
                    rows += sample_rows
                    bar.advance(1)
    finally:
        torch.set_num_threads(threads_before)
    rows.sort(key=lambda row: (row["resolution_px"], row["shard"], row["key"], row["field"]))
    atomic_write(Path(cfg.output) / "roundtrip.json", json.dumps(rows, indent=1).encode())
    _print(rows, tracker)
    return rows


class _Comparison:
    """What is decoded, and how: the state of one `roundtrip`."""

    def __init__(self, cfg: Config, settings: dict[str, Any], decode: CodeDecoder) -> None:
        self._cfg, self._settings, self._decode = cfg, settings, decode
        self._folders = {px: locate(cfg.input) / str(px) for px in settings["resolution"]}
        limit = cfg.samples_per_resolution
        self._left = {
            px: len(one) if limit is None else min(limit, len(one))
            for px, one in ((px, open_dataset(folder)) for px, folder in self._folders.items())
        }
        self.total = sum(self._left.values())

    def of_shard(self, unit: str, path: Location) -> Iterator[list[dict[str, Any]]]:
        """The rows of each sample of one raw shard, in its order."""
        shards = {px: Shard(folder, unit) for px, folder in self._folders.items()}
        for shard in shards.values():
            if shard.manifest.raw["bytes"] != path.stat().st_size:
                raise DataError(
                    f"{path}: {path.stat().st_size} bytes, but {shard.folder} was made of "
                    f"{shard.manifest.raw['bytes']}; give the raw shards it was made of"
                )
        numbers = {
            px: {shard.key(number): number for number in range(len(shard))}
            for px, shard in shards.items()
        }
        with RawShardReader.open(path) as reader:
            for item in reader:
                if not any(self._left.values()):
                    return
                if isinstance(item, RawSample):
                    found = [px for px in shards if item.key in numbers[px] and self._left[px]]
                    for px in found:
                        self._left[px] -= 1
                        yield self._rows(shards[px].sample(numbers[px][item.key]), item, unit, px)

    def _rows(
        self, sample: TokenisedSample, raw: RawSample, unit: str, px: int
    ) -> list[dict[str, Any]]:
        settings = self._settings
        target = Target(px, grid_px(settings), settings["enlarge"])
        pictures = decode(
            raw,
            settings["rotate_exif"],
            settings["max_pixels"],
            settings.get("convert_palette", False),
        )
        fitted: Fitted | Rejected = (
            pictures
            if isinstance(pictures, Rejected)
            else fit_fields(pictures, target, f"{unit}/{raw.key}", settings["seed"])
        )
        geometry = sample.meta.get("geometry", {})
        if isinstance(fitted, Rejected) or geometry != {
            name: crop.to_json() for name, crop in fitted.crops.items()
        }:
            raise DataError(
                f"{unit}: sample {raw.key!r} is not the picture that was encoded at {px} px; give "
                "the raw shards the codes were made of"
            )
        return [
            self._row(sample, field, fitted.levels[field], unit, px)
            for field in sorted(sample.codes)
        ]

    def _row(
        self, sample: TokenisedSample, field: str, original_HWC: Levels, unit: str, px: int
    ) -> dict[str, Any]:
        decoded_HWC = self._decode(sample.codes[field])
        name = f"{unit}.{sample.key.replace('/', '_')}.{field}"
        return {
            "shard": unit,
            "key": sample.key,
            "field": field,
            "resolution_px": px,
            "width": decoded_HWC.shape[1],
            "height": decoded_HWC.shape[0],
            "tokens": sample.codes[field].size,
            "psnr_db": psnr_db(original_HWC, decoded_HWC),
            "caption": sample.meta.get("caption", ""),
            "original": self._save(f"{px}/{name}.original.png", original_HWC),
            "decoded": self._save(f"{px}/{name}.decoded.png", decoded_HWC),
        }

    def _save(self, name: str, levels_HWC: Levels) -> str:
        atomic_write(Path(self._cfg.output) / name, png_bytes(levels_HWC))
        return name


def _print(rows: list[dict[str, Any]], tracker: Tracker) -> None:
    columns = ["px", "picture", "field", "size", "PSNR dB"]
    shown = [
        [
            row["resolution_px"],
            row["key"],
            row["field"],
            f"{row['width']} x {row['height']}",
            round(row["psnr_db"], 2),
        ]
        for row in rows[:_MAX_PRINTED]
    ]
    tracker.table("decoded back", columns, shown)
    mean_db = sum(row["psnr_db"] for row in rows) / max(len(rows), 1)
    tracker.print(f"{len(rows)} pictures, mean PSNR {mean_db:.2f} dB")
