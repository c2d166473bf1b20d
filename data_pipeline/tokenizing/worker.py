"""The work of `mgpt tokenize`: one raw shard at a time, in one process.

    worker = job.open(slot=0)                     # loads the VQ model
    worker.work("00000", claim, advance)          # <output>/<px>/00000.tar, index and manifest

Decode, filter, choose a bucket, fit, encode in batches, write; with threads, decoding runs ahead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from data_pipeline.raw.shards import RawSample, RawShardReader, Rejected
from data_pipeline.tokenizing.claims import Claim
from data_pipeline.tokenizing.details import Details
from data_pipeline.tokenizing.encoding import (
    Agreement,
    Codes,
    FastCodes,
    Levels,
    ShardEncoder,
    vq_codes,
)
from data_pipeline.tokenizing.filters import Filters
from data_pipeline.tokenizing.fitting import Fitted, Pictures, Target, fit_fields
from data_pipeline.tokenizing.overlap import in_order
from data_pipeline.tokenizing.reject_log import RejectLog
from mgpt.allocator import keep_freed_memory
from mgpt.data.shards import ShardWriter
from mgpt.errors import DataError
from mgpt.tokenizers.folder import load_tokenizer

if TYPE_CHECKING:
    from data_pipeline.tokenize import TokenizeJob

GPU_DECODERS = 8
_Item = RawSample | Rejected


class TokenizeWorker:
    """Tokenises one raw shard at a time, in one process."""

    def __init__(self, job: TokenizeJob, slot: int) -> None:
        self._job = job
        keep_freed_memory()
        torch.set_num_threads(job.cfg.threads)
        device = torch.device(job.device)
        if device.type == "cuda":
            device = torch.device("cuda", slot % torch.cuda.device_count())
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        vq = load_tokenizer(job.cfg.vq).to(device)
        if vq.fingerprint() != job.vq_fingerprint:
            raise DataError(f"{job.cfg.vq}: the VQ model changed while it was in use; run again")
        exact = partial(vq_codes, vq)
        self._encode: Callable[[Levels], Codes] = exact
        is_bf16, is_compiled = job.cfg.dtype == "bfloat16", job.cfg.compile
        if is_bf16 or is_compiled:
            fast = FastCodes(vq, is_bf16, is_compiled, job.cfg.batch_pixels)
            self._encode = Agreement(fast, exact)
        self._decoders = self._encoder = None
        ahead = job.cfg.decoders
        self._ahead = (GPU_DECODERS if device.type == "cuda" else 0) if ahead is None else ahead
        if self._ahead:
            self._decoders = ThreadPoolExecutor(self._ahead, "decoder")
            # A thread's own number of OpenMP threads is that of the machine until it is told.
            self._encoder = ThreadPoolExecutor(
                1, "encoder", torch.set_num_threads, (job.cfg.threads,)
            )
        self._log = RejectLog()

    def work(self, unit: str, claim: Claim, advance: Callable[[int], None]) -> None:
        """Write the unit at every resolution at which it is missing."""
        job = self._job
        encoders: dict[int, ShardEncoder] = {}
        writers: dict[int, ShardWriter] = {}
        with ExitStack() as stack:
            for px in job.missing(unit):
                writers[px] = stack.enter_context(ShardWriter(job.folder(px), unit))
                encoders[px] = ShardEncoder(
                    writers[px], self._encode, job.cfg.batch_pixels, self._encoder
                )
            reader = stack.enter_context(RawShardReader.open(job.paths[unit], job.cfg.members))
            filters = job.admission.filters(job.known and job.known(unit))
            details = Details()
            for item, outcomes in self._fitted(unit, reader, filters, list(encoders)):
                if isinstance(item, RawSample):
                    details.count(item)
                self._add(unit, item, outcomes, encoders, details)
                advance(1)
            raw = {
                "name": unit,
                "sha256": reader.sha256,
                "bytes": reader.num_bytes,
                "inputs": reader.inputs,
                "damaged": reader.damaged,
                "ignored": dict(sorted(reader.ignored.items())),
            }
            details.write(job.output, unit, list(encoders), claim.check)
            for px, encoder in encoders.items():
                encoder.finish()
                writers[px].close(
                    {
                        "raw": raw,
                        "rejected": encoder.rejected,
                        "resolution_px": px,
                        "latent_px": job.latent_px,
                        "num_codes": job.num_codes,
                        "vq_fingerprint": job.vq_fingerprint,
                        "settings_fingerprint": job.settings_fingerprint,
                    },
                    before_publish=claim.check,
                )

    def _fitted(
        self, unit: str, items: Iterable[_Item], filters: Filters, resolutions: list[int]
    ) -> Iterator[tuple[_Item, Rejected | dict[int, Fitted | Rejected]]]:
        """Each item with what it is at each resolution, or why it is at none, in order."""
        job = self._job
        admission, cfg = job.admission, job.cfg

        def decode(item: _Item) -> tuple[_Item, Pictures | Rejected]:
            return item, admission.decode(item, filters)

        def fit(
            both: tuple[_Item, Pictures | Rejected],
        ) -> tuple[_Item, Rejected | dict[int, Fitted | Rejected]]:
            item, pictures = both
            if isinstance(pictures, Rejected):
                return item, pictures
            fitted = {}
            for px in resolutions:
                target = Target(px, job.grid_px, cfg.enlarge)
                fitted[px] = fit_fields(pictures, target, f"{unit}/{item.key}", cfg.seed)
            return item, fitted

        threads, ahead = self._decoders, self._ahead
        decoded = in_order(threads, decode, items, ahead)
        kept = ((item, admission.compare(item, found, filters)) for item, found in decoded)
        return in_order(threads, fit, kept, ahead)

    def _add(
        self,
        unit: str,
        item: _Item,
        outcomes: Rejected | dict[int, Fitted | Rejected],
        encoders: dict[int, ShardEncoder],
        details: Details,
    ) -> None:
        """One sample, or one refusal, into every encoder."""
        if isinstance(outcomes, Rejected):
            for encoder in encoders.values():
                encoder.reject(outcomes)
            details.reject(outcomes)
            self._log.note(unit, outcomes)
            return
        assert isinstance(item, RawSample)
        for px, encoder in encoders.items():
            fitted = outcomes[px]
            if isinstance(fitted, Rejected):
                fitted = dataclasses.replace(fitted, key=item.key)
                encoder.reject(fitted)
                details.reject(fitted, px)
            else:
                encoder.add(item.key, item.meta, fitted)
