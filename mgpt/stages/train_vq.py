"""mgpt train_vq: a VQGAN on the pictures of raw shards.

Every picture field of every sample is taken (image, depth, normals, …), so that whatever a task
shows can be coded. Some samples, chosen by key, are held out for the figures. The trained model is
`<output>/model`, a folder that `vq=` takes. `quantizer=` trains the same network with other codes
than those of a nearest row.

Reads: raw shards
Writes: a VQGAN folder

    mgpt train_vq recipe=scenes_f8 input=outputs/raw output=outputs/vq
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipeline.raw.inputs import find_raw_shards, raw_identities
from data_pipeline.raw.shards import RawSample, RawShardReader
from mgpt.errors import DataError
from mgpt.files.storage import Location
from mgpt.images.pixels import open_image, whiten
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.identity import input_identities
from mgpt.lifecycle.rehearsal import Estimate, Scale, silent_tracker, timed
from mgpt.lifecycle.run import run_stage
from mgpt.stages.build import pick_device
from mgpt.tokenizers.folder import load_vqgan
from mgpt.tokenizers.vqgan_config import Quantizer, VqganConfig
from mgpt.tracking.tracker import Tracker, TrackingConfig
from mgpt.train.train_vqgan import (
    BatchConfig,
    VqTrainConfig,
    picture_batches,
    train_vqgan,
    training_dtype,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt train_vq` can be given."""

    CHANGEABLE: ClassVar[Changeable] = Changeable(
        free=("train.log_every_steps", "train.save_every_steps")
    )

    input: str | list[str]
    """Raw shards: a folder, a glob, a tar, or a list of these."""
    output: str
    """Folder for the checkpoint and, at the end, model/."""
    model: VqganConfig = field(default_factory=VqganConfig)
    quantizer: Quantizer | None = None
    """vq, ibq, fsq or lfq with about as many codes as `model` has; null: what `model` says."""
    train: VqTrainConfig = field(default_factory=VqTrainConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    init_from: str = ""
    """A trained VQGAN of the same sizes to go on from: a folder, or the name of a shipped one."""
    max_pictures: int = 30_000
    """Pictures kept in memory, evenly from all shards."""
    held_out_percent: int = 3
    """Share of the samples that is measured and not trained on."""
    held_out_pictures: int = 64
    """Pictures of each field that are measured at most."""
    device: str = "auto"
    """auto, cpu, cuda."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    return {**raw_identities(cfg.input), **input_identities(cfg.init_from or None)}


def main(cfg: Config) -> None:
    run_stage("train_vq", cfg, inputs(cfg), _train)


def _train(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    device = pick_device(cfg.device)
    dtype = training_dtype(cfg.train, device)
    dtype.announce(tracker.print)
    pictures, held_out = _read(cfg, tracker)
    with tracker.progress(cfg.train.steps, "steps", "train_vq") as bar:
        figures = train_vqgan(
            cfg.train,
            sizes(cfg),
            lambda first_step: picture_batches(pictures, cfg.batch, first_step),
            _logger(tracker, bar.advance, cfg.train.log_every_steps),
            Path(cfg.output),
            held_out,
            str(device),
            load_vqgan(cfg.init_from) if cfg.init_from else None,
        )
    tracker.finish(figures)
    return {**figures, "dtype": str(dtype)}


def sizes(cfg: Config) -> VqganConfig:
    """The model that is trained."""
    return cfg.model if cfg.quantizer is None else cfg.model.with_quantizer(cfg.quantizer)


def _logger(
    tracker: Tracker, advance: Callable[..., None], every: int
) -> Callable[[int, dict[str, float]], None]:
    last = [0]

    def on_log(step: int, values: dict[str, float]) -> None:
        tracker.log(step, values)
        shown = {name: values[name] for name in ("loss", "psnr_db") if name in values}
        advance(step - last[0] if last[0] else min(step, every), **shown)
        last[0] = step

    return on_log


def _read(cfg: Config, tracker: Tracker) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """uint8 pictures [H, W, 3] to train on, and held-out ones by field."""
    shards = list(find_raw_shards(cfg.input).values())
    budget = -(-cfg.max_pictures // len(shards))
    pictures: list[np.ndarray] = []
    held_out: dict[str, list[np.ndarray]] = defaultdict(list)
    with tracker.progress(len(shards), "shards", "reading pictures") as bar:
        for shard in shards:
            room = len(pictures) + budget
            for name, is_held_out, picture in _pictures(shard, cfg.held_out_percent):
                if is_held_out and len(held_out[name]) < cfg.held_out_pictures:
                    held_out[name].append(_whole(picture, cfg.model.downsample))
                elif not is_held_out and len(pictures) < room:
                    pictures.append(picture)
            bar.advance()
    return pictures, {name: held_out[name] for name in sorted(held_out) if held_out[name]}


def _pictures(shard: Location, held_out_percent: int) -> Iterator[tuple[str, bool, np.ndarray]]:
    """(field without its number, held out?, uint8 [H, W, 3]) of every picture that decodes."""
    with RawShardReader.open(shard) as reader:
        for sample in reader:
            if not isinstance(sample, RawSample):
                continue
            draw = int(hashlib.sha256(sample.key.encode()).hexdigest()[:8], 16) % 100
            for name, picture in sorted(sample.pictures.items()):
                try:
                    image = whiten(open_image(picture.data))
                except DataError:  # pack and tokenize count these; here one less is no loss
                    continue
                yield name.rstrip("0123456789_"), draw < held_out_percent, np.array(image)


def _whole(picture_HW3: np.ndarray, downsample: int) -> np.ndarray:
    """The picture cut to sides that the VQGAN can code."""
    height, width = (side - side % downsample for side in picture_HW3.shape[:2])
    return picture_HW3[:height, :width]


def is_long(cfg: Config) -> bool:
    return cfg.train.steps > 100


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """A few steps of each kind: without the codebook, then with it."""
    logged: list[dict[str, float]] = []
    pictures, held_out = _read(cfg, silent_tracker())
    train = replace(cfg.train, steps=9, quantise_from_step=3, log_every_steps=3)
    seconds = timed(
        lambda: train_vqgan(
            train,
            sizes(cfg),
            lambda first_step: picture_batches(pictures, cfg.batch, first_step),
            lambda step, values: logged.append(values),
            Path(cfg.output),
            held_out,
            str(pick_device(cfg.device)),
        )
    )
    steps = [cfg.batch.batch_pictures / values["pictures_per_s"] for values in logged]
    plain = real.train.quantise_from_step
    left = plain * steps[1] + (real.train.steps - plain) * steps[2]
    return Estimate(left + max(0.0, seconds - 3 * sum(steps)))
