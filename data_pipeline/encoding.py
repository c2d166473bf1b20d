"""Fitted pictures to codes in batches of equal size, and samples to a shard in their own order.

Pictures of one size wait until a batch is full; a sample is written once all its fields have codes
and every sample before it is written. Batches form within one raw shard and one resolution, so
they, and with them every bit of the codes, do not depend on who works on what.

    encoder = ShardEncoder(writer, Target(512, grid_px=32), vq_codes, batch_pixels=2**16)
    encoder.add("cat", meta, fitted)              # or encoder.reject(Rejected(…))
    encoder.finish()                              # flushes the batches that are not full
    encoder.rejected                              # [(key, reason), …]
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.fitting import Fitted
from data_pipeline.raw_shards import Rejected
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.images.pixels import normalise
from mgpt.models.vqgan import Vqgan

Levels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint16]


def vq_codes(model: Vqgan, levels_BHWC: Levels) -> Codes:
    """uint8 pictures [B, H, W, 3] to codes [B, h, w], on the model's device."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        codes_Bhw = model.encode(torch.from_numpy(normalise(levels_BHWC)).to(device))
    return codes_Bhw.cpu().numpy().astype(np.uint16)


@dataclass
class _Waiting:
    """A sample some of whose fields are still without codes."""

    key: str
    meta: dict[str, Any]
    codes: dict[str, Codes]
    num_missing: int


class ShardEncoder:
    """One raw shard at one resolution, on its way into one tokenised shard."""

    def __init__(
        self, writer: ShardWriter, encode: Callable[[Levels], Codes], batch_pixels: int
    ) -> None:
        self.rejected: list[tuple[str, str]] = []
        self._writer = writer
        self._encode = encode
        self._batch_pixels = batch_pixels
        self._order: deque[_Waiting] = deque()
        self._batches: dict[tuple[int, ...], list[tuple[_Waiting, str, Levels]]] = {}

    def reject(self, rejected: Rejected) -> None:
        """Note that this sample will not be in the shard."""
        self.rejected.append((rejected.key, rejected.reason))

    def add(self, key: str, meta: dict[str, Any], fitted: Fitted) -> None:
        """Take a sample; one without pictures is complete as it is."""
        geometry = {name: crop.to_json() for name, crop in fitted.crops.items()}
        meta = {**meta, "geometry": geometry} if geometry else meta
        waiting = _Waiting(key, meta, {}, len(fitted.levels))
        self._order.append(waiting)
        for name, levels_HWC in fitted.levels.items():
            batch = self._batches.setdefault(levels_HWC.shape, [])
            batch.append((waiting, name, levels_HWC))
            if len(batch) * levels_HWC.shape[0] * levels_HWC.shape[1] >= self._batch_pixels:
                self._encode_batch(levels_HWC.shape)
        self._write_complete()

    def finish(self) -> None:
        """Encode what is left; afterwards every sample that was added is written."""
        for shape in list(self._batches):
            self._encode_batch(shape)
        self._write_complete()
        assert not self._order

    def _encode_batch(self, shape: tuple[int, ...]) -> None:
        batch = self._batches.pop(shape)
        codes_Bhw = self._encode(np.stack([levels_HWC for _, _, levels_HWC in batch]))
        for (waiting, name, _), codes_HW in zip(batch, codes_Bhw):
            waiting.codes[name] = codes_HW
            waiting.num_missing -= 1

    def _write_complete(self) -> None:
        while self._order and not self._order[0].num_missing:
            done = self._order.popleft()
            self._writer.add(TokenisedSample(done.key, done.meta, done.codes))
