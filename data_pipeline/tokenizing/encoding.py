"""Fitted pictures to codes in batches of equal size, and samples to a shard in their own order.

Pictures of one size wait until a batch is full; a sample is written once all its fields have codes
and every sample before it is written. Batches form within one raw shard and one resolution, so
they, and with them every bit of the codes, do not depend on who works on what.

    encoder = ShardEncoder(writer, encode, batch_pixels=2**16)
    encoder.add("cat", meta, fitted)              # or encoder.reject(Rejected(…))
    encoder.finish()                              # flushes the batches that are not full
    encoder.rejected                              # [(key, reason), …]
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.raw.shards import Rejected
from data_pipeline.tokenizing.fitting import Fitted
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.tokenizers.protocol import PictureTokenizer, exact_fp32
from mgpt.tokens.codes import code_dtype

BATCHES_AHEAD = 2
MOST_PROGRAMS = 1024  # of machine code in one process
COMPARED_PICTURES = 64

_log = logging.getLogger(__name__)
Levels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.unsignedinteger[Any]]  # 16 bits where the codebook fits, else 32


def vq_codes(model: PictureTokenizer, levels_BHWC: Levels) -> Codes:
    """uint8 pictures [B, H, W, 3] to codes [B, h, w], on the model's device."""
    with torch.inference_mode():
        return _to_codes(model, model.encode(_pixels(model, levels_BHWC)))


class FastCodes:
    """`vq_codes` in other ways: faster on a GPU, and some codes are others.

    Args:
        bf16: the layers before the codebook in bfloat16.
        compiled: these layers as machine code, of which there is one for each size of picture: a
            batch that is not full is filled up, so that its shape is no new one.
        batch_pixels: what a batch is filled up to.
    """

    def __init__(
        self, model: PictureTokenizer, bf16: bool, compiled: bool, batch_pixels: int
    ) -> None:
        self._model, self._bf16 = model, bf16
        self._latents = torch.compile(model.latents, dynamic=False) if compiled else model.latents
        self._batch_pixels = batch_pixels if compiled else 0

    def __call__(self, levels_BHWC: Levels) -> Codes:
        num, height, width = levels_BHWC.shape[:3]
        lacking = -(-self._batch_pixels // (height * width)) - num
        if lacking > 0:
            more_BHWC = np.broadcast_to(levels_BHWC[-1:], (lacking, *levels_BHWC.shape[1:]))
            levels_BHWC = np.concatenate([levels_BHWC, more_BHWC])
        pixels_B3HW = _pixels(self._model, levels_BHWC)
        with torch.inference_mode(), exact_fp32(pixels_B3HW.device), self._many_programs():
            with torch.autocast(pixels_B3HW.device.type, torch.bfloat16, enabled=self._bf16):
                latents_BDhw = self._latents(pixels_B3HW)
            codes_Bhw = self._model.quantize(latents_BDhw.float())
            return _to_codes(self._model, codes_Bhw)[:num]

    def _many_programs(self) -> AbstractContextManager[None]:
        """Torch gives up after eight shapes; a resolution has up to a hundred."""
        if not self._batch_pixels:
            return nullcontext()
        limits: dict[str, Any] = {
            "recompile_limit": MOST_PROGRAMS,
            "accumulated_recompile_limit": MOST_PROGRAMS,
        }
        return torch._dynamo.config.patch(**limits)


def _pixels(model: PictureTokenizer, levels_BHWC: Levels) -> torch.Tensor:
    return model.pixels.normalise(levels_BHWC).to(model.device)


def _to_codes(model: PictureTokenizer, codes_Bhw: torch.Tensor) -> Codes:
    return codes_Bhw.cpu().numpy().astype(code_dtype(model.num_codes))


class Agreement:
    """Encodes in another way than the exact one, and says once how many codes of the first
    pictures are the exact ones."""

    def __init__(self, encode: Callable[[Levels], Codes], exact: Callable[[Levels], Codes]) -> None:
        self._encode, self._exact = encode, exact
        self._same = self._all = self._pictures = 0

    def __call__(self, levels_BHWC: Levels) -> Codes:
        codes_Bhw = self._encode(levels_BHWC)
        if self._pictures < COMPARED_PICTURES:
            self._same += int((codes_Bhw == self._exact(levels_BHWC)).sum())
            self._all += codes_Bhw.size
            self._pictures += len(codes_Bhw)
            if self._pictures >= COMPARED_PICTURES:
                share = 100 * self._same / self._all
                _log.warning("%.2f %% of %d codes are those of the exact mode", share, self._all)
        return codes_Bhw


@dataclass
class _Waiting:
    """A sample some of whose fields are still without codes."""

    key: str
    meta: dict[str, Any]
    codes: dict[str, Codes]
    num_missing: int


class ShardEncoder:
    """One raw shard at one resolution, on its way into one tokenised shard.

    Args:
        thread: where batches are encoded while the next ones fill; None for here.
    """

    def __init__(
        self,
        writer: ShardWriter,
        encode: Callable[[Levels], Codes],
        batch_pixels: int,
        thread: Executor | None = None,
    ) -> None:
        self.rejected: list[tuple[str, str]] = []
        self._writer = writer
        self._encode = encode
        self._batch_pixels = batch_pixels
        self._thread = thread
        self._encoding: deque[tuple[list[tuple[_Waiting, str]], Future[Codes]]] = deque()
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
        self._take_codes(most_left=0)
        self._write_complete()
        assert not self._order

    def _encode_batch(self, shape: tuple[int, ...]) -> None:
        batch = self._batches.pop(shape)
        levels_BHWC = np.stack([levels_HWC for _, _, levels_HWC in batch])
        names = [(waiting, name) for waiting, name, _ in batch]
        if self._thread is None:
            self._set_codes(names, self._encode(levels_BHWC))
            return
        self._encoding.append((names, self._thread.submit(self._encode, levels_BHWC)))
        self._take_codes(most_left=BATCHES_AHEAD)

    def _take_codes(self, most_left: int) -> None:
        """Wait for batches that are being encoded until at most so many are left."""
        while len(self._encoding) > most_left:
            names, codes = self._encoding.popleft()
            self._set_codes(names, codes.result())

    @staticmethod
    def _set_codes(names: list[tuple[_Waiting, str]], codes_Bhw: Codes) -> None:
        for (waiting, name), codes_HW in zip(names, codes_Bhw, strict=True):
            waiting.codes[name] = codes_HW
            waiting.num_missing -= 1

    def _write_complete(self) -> None:
        while self._order and not self._order[0].num_missing:
            done = self._order.popleft()
            self._writer.add(TokenisedSample(done.key, done.meta, done.codes))
