"""A tokenising job in Weights & Biases while it runs: how far, how fast, what is refused, pictures.

    view = JobView(job, tracker, bar.advance)
    run_units(job, workers=4, advance=view.advance)
    view.look()                                   # what finished since the last look

Looked at are the finished shards themselves, so the figures are those of the whole job, whoever
does it. Samples a second are those of this call's processes. Nothing here reaches a file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.tokenizing.decoding import CodeDecoder
from data_pipeline.tokenizing.shard_audit import spread
from data_pipeline.views.contact_sheet import Tile, contact_sheet
from mgpt.data.shards import Shard, read_manifests
from mgpt.tracking.tracker import Tracker

if TYPE_CHECKING:
    from data_pipeline.tokenize import TokenizeJob

LOOK_EVERY_S = 30.0
SHEET_EVERY_S = 600.0  # decoding a picture of 1024 px takes seconds on a CPU
_SHEET_TILES = 8


class JobView:
    """Looks at a job now and then; does nothing where the tracker has no run.

    Args:
        advance: is told of every count first, the progress bar's.
    """

    def __init__(self, job: TokenizeJob, tracker: Tracker, advance: Callable[[int], None]) -> None:
        self._job, self._tracker, self._advance = job, tracker, advance
        self._counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._samples = 0
        self._looked_at_s = time.monotonic()
        self._sheet_at_s = -SHEET_EVERY_S

    def advance(self, samples: int) -> None:
        """Samples that this call's processes have done since."""
        self._advance(samples)
        self._samples += samples
        if time.monotonic() - self._looked_at_s >= LOOK_EVERY_S:
            self.look()

    def look(self) -> None:
        """Show what the job has come to, and pictures of a shard that is new."""
        if not self._tracker.has_run:
            return
        now_s = time.monotonic()
        new = sorted(self._job.finished().intersection(self._job.units()) - self._seen)
        self._seen.update(new)
        for place, px in enumerate(self._job.cfg.resolution):
            for manifest in read_manifests(self._job.folder(px), new):
                self._counts["inputs"] += 0 if place else manifest.raw["inputs"]
                self._counts[f"written.{px}"] += manifest.samples
                self._counts.update(f"rejected.{px}.{why}" for _, why in manifest.rejected)
        rate = self._samples / max(now_s - self._looked_at_s, 1e-9)
        figures = {"shards": len(self._seen), "samples_per_s": rate, **self._counts}
        self._tracker.show(len(self._seen), figures)
        self._samples, self._looked_at_s = 0, now_s
        if new and now_s - self._sheet_at_s >= SHEET_EVERY_S:
            self._show_sheets(new[-1])
            self._sheet_at_s = now_s

    def _show_sheets(self, unit: str) -> None:
        job = self._job
        decode = CodeDecoder(job.cfg.vq, job.vq_fingerprint, unit, job.device)
        for px in job.cfg.resolution:
            shard = Shard(job.folder(px), unit)
            tiles = []
            for number in spread(range(len(shard)), _SHEET_TILES):
                sample = shard.sample(number)
                name = min(sample.codes, key=lambda name: (name != "image", name), default=None)
                if name is not None:
                    tiles.append(Tile(decode(sample.codes[name]), f"{unit}/{sample.key}"))
            if tiles:
                sheet = [(f"decoded from {unit}", np.asarray(contact_sheet(tiles)))]
                self._tracker.images(len(self._seen), f"contact_sheet.{px}", sheet)
