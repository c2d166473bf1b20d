"""The pictures that a tokenised sample was made of, cut as they were for the VQGAN.

Evaluation shows and measures against these, not against what the VQGAN makes of them.

    truth = TruthPictures("held_out_tokens", raw="held_out_raw", dataset=dataset)
    truth(17, "depth").shape                    # (64, 64, 3), uint8
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from data_pipeline.raw.inputs import find_raw_shards
from data_pipeline.raw.shards import RawSample, RawShardReader, Rejected
from data_pipeline.tokenizing.fitting import Target, decode, fit_fields
from data_pipeline.tokenizing.job_settings import grid_px, read_settings
from mgpt.data.dataset import TokenisedDataset
from mgpt.errors import DataError
from mgpt.files.storage import Location, locate


class TruthPictures:
    """Calls give uint8 [H, W, 3] of (sample's index in the data set, field).

    Args:
        tokens: the tokenised output, whose settings say how pictures were cut.
        raw: the raw shards it was made of.
        dataset: one resolution of it.
    """

    def __init__(
        self, tokens: str | Location, raw: str | list[str], dataset: TokenisedDataset
    ) -> None:
        self._settings = read_settings(locate(tokens))
        self._dataset = dataset
        self._shards = find_raw_shards(raw)
        self._samples = lru_cache(maxsize=8)(self._read_shard)
        self._pictures = lru_cache(maxsize=256)(self._fit)

    def __call__(self, index: int, field: str) -> np.ndarray:
        return self._pictures(index)[field]

    def _fit(self, index: int) -> dict[str, np.ndarray]:
        shard, key = self._dataset.identity(index)
        sample = self._samples(shard).get(key)
        if sample is None:
            raise DataError(f"raw={shard} holds no sample {key!r}; give the raw shards of input=")
        settings = self._settings
        pictures = decode(
            sample,
            settings["rotate_exif"],
            settings["max_pixels"],
            settings.get("convert_palette", False),
        )
        if not isinstance(pictures, Rejected):
            side_px = self._dataset.resolution_px
            target = Target(side_px, grid_px(settings), settings["enlarge"])
            fitted = fit_fields(pictures, target, f"{shard}/{key}", settings["seed"])
            if not isinstance(fitted, Rejected):
                return fitted.levels
        raise DataError(f"{shard}: sample {key!r} is not the one that was tokenised; give its own")

    def _read_shard(self, name: str) -> dict[str, RawSample]:
        if name not in self._shards:
            raise DataError(
                f"raw= holds no shard {name!r}, of which input= was made; it holds "
                f"{', '.join(sorted(self._shards)[:5])}"
            )
        with RawShardReader.open(self._shards[name]) as reader:
            return {item.key: item for item in reader if isinstance(item, RawSample)}
