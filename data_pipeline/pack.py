"""`mgpt pack`: samples of a source become raw shards in img2dataset's layout.

    mgpt pack source=scenes output=raw/train scenes.num_scenes=4000 scenes.split=train workers=2
    mgpt pack source=folder input=my_pictures output=raw/mine

Each shard is `<name>.tar`, and `<name>.json` with its counts, sha256 and refusals, written last:
a shard that has it is finished, and a rerun passes over it. Bytes depend on the source and its
settings alone, not on the number of workers or on interruptions.
"""

import dataclasses
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.raw.shards import RawSample, RawShardWriter, RefusedSample, Rejected
from data_pipeline.sources.pack_config import SOURCES, PackConfig
from data_pipeline.sources.part import Part
from data_pipeline.tokenizing.claims import Claim
from data_pipeline.tokenizing.job_settings import exactly, settle_settings
from data_pipeline.tokenizing.reject_log import RejectLog
from data_pipeline.tokenizing.workers import run_units
from mgpt.data.shards import canonical_json
from mgpt.errors import ConfigError
from mgpt.files.storage import Location, locate, read_all, write_new
from mgpt.tracking.tracker import Tracker

_LEAST_SOME, _MOST_SOME, _MOST_SOME_BYTES = 16, 64, 3_000_000


def pack(cfg: PackConfig, tracker: Tracker) -> dict[str, Any]:
    """Write every raw shard that is not there yet.

    Returns:
        `shards`, `samples`, `bytes`, and `rejected`: counts by reason, of the whole output.

    Raises:
        ConfigError: the output folder holds shards of other settings.
        DataError, MachineError: what the source or the disk says.
    """
    job = PackJob(exactly(PackConfig, cfg))
    settle_settings(job.output, _settings(cfg), "mgpt pack")
    parts = job.parts
    done = job.finished()
    finished = sum(part.num_samples for part in parts.values() if part.name in done)
    total = sum(part.num_samples for part in parts.values())
    with tracker.progress(total, "samples", f"pack {cfg.source}", done=finished) as bar:
        run_units(job, cfg.workers, bar.advance)
    texts = read_all([job.output / f"{name}.json" for name in parts])
    stats = [json.loads(text or b"") for text in texts]
    rejected = Counter(reason for one in stats for _, reason in one["rejected"])
    if rejected:
        rows = [[reason, count] for reason, count in sorted(rejected.items())]
        tracker.table("rejected while packing", ["reason", "samples"], rows)
    return {
        "shards": len(stats),
        "samples": sum(one["samples"] for one in stats),
        "bytes": sum(one["bytes"] for one in stats),
        "rejected": dict(sorted(rejected.items())),
    }


def read_stats(output: Location, shard: str) -> dict[str, Any]:
    """The counts beside a finished raw shard: samples, bytes, sha256, rejected [[key, reason]]."""
    return dict(json.loads((output / f"{shard}.json").read_bytes()))


def source_parts(cfg: PackConfig) -> list[Part]:
    """The parts of the source that `cfg` names, one of the table or a Python file.

    Raises:
        ConfigError: a file that is not there, or without a function `parts`.
    """
    if cfg.source not in SOURCES:
        file = Path(cfg.source).resolve()
        if not file.is_file():
            raise ConfigError(f"source={cfg.source}: no such file")
        # As `python my_source.py` does it; a process that is started later finds it there too.
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))
    module = importlib.import_module(SOURCES.get(cfg.source, Path(cfg.source).stem))
    if not hasattr(module, "parts"):
        raise ConfigError(f"source={cfg.source}: {module.__file__} has no function parts(cfg)")
    found: list[Part] = module.parts(cfg)
    return found


def _settings(cfg: PackConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"job": "pack", "source": Path(cfg.source).stem}
    if cfg.source != "img2dataset":
        settings["samples_per_shard"] = cfg.samples_per_shard
    if cfg.source == "plain_text":
        settings["text_chars"] = cfg.text_chars
    if cfg.source == "scenes":
        settings |= {f"scenes.{k}": v for k, v in dataclasses.asdict(cfg.scenes).items()}
    return settings


@dataclass(frozen=True)
class PackJob:
    """One unit a shard; see `data_pipeline.tokenizing.workers.Job`."""

    cfg: PackConfig

    @property
    def output(self) -> Location:
        return locate(self.cfg.output)

    @cached_property
    def parts(self) -> dict[str, Part]:
        parts = source_parts(self.cfg)
        if not parts:
            raise ConfigError(f"source={self.cfg.source} has no samples to pack")
        return {part.name: part for part in parts}

    def units(self) -> list[str]:
        return list(self.parts)

    def finished(self) -> set[str]:
        return {path.stem for path in self.output.glob("*.json")}

    def is_done(self, unit: str) -> bool:
        return (self.output / f"{unit}.json").exists()

    def open(self, slot: int) -> "PackWorker":
        return PackWorker(self)


class PackWorker:
    """Writes one shard at a time."""

    def __init__(self, job: PackJob) -> None:
        self._job = job
        self._log = RejectLog()

    def work(self, unit: str, claim: Claim, advance: Callable[[int], None]) -> None:
        part, output = self._job.parts[unit], self._job.output
        rejected: list[Rejected] = []
        with RawShardWriter(output / f"{unit}.tar") as writer:
            for item in part.read():
                refused = item if isinstance(item, Rejected) else _add(writer, item)
                if refused is not None:
                    rejected.append(refused)
                    self._log.note(unit, refused)
                advance(1)
            stats = writer.close(before_publish=claim.check)
        record = {
            "shard": unit,
            **dataclasses.asdict(stats),
            "rejected": sorted((one.key, one.reason) for one in rejected),
        }
        write_new(output / f"{unit}.json", canonical_json(record) + b"\n", claim.check)


def _add(writer: RawShardWriter, sample: RawSample) -> Rejected | None:
    """The sample into the shard, or why it cannot be written."""
    try:
        writer.add(sample)
    except RefusedSample as refusal:
        return refusal.rejected
    return None


def write_some(output: Location, items: Iterable[RawSample | Rejected], seconds: float) -> int:
    """The first samples of a source or of other shards as one raw shard; returns their number.

    It ends after about so many seconds, or with 3 MB of pictures, but not before 16 samples; with
    64 in any case.
    """
    output.mkdir(parents=True, exist_ok=True)
    began, count, num_bytes = time.monotonic(), 0, 0
    with RawShardWriter(output / "00000.tar") as writer:
        for item in items:
            if isinstance(item, Rejected) or _add(writer, item) is not None:
                continue
            count += 1
            num_bytes += sum(len(picture.data) for picture in item.pictures.values())
            is_enough = time.monotonic() - began > seconds or num_bytes > _MOST_SOME_BYTES
            if count >= _MOST_SOME or (count >= _LEAST_SOME and is_enough):
                break
        writer.close()
    return count
