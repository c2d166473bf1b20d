"""mgpt pack: samples of a source become raw shards, ordinary webdataset tars.

The layout is img2dataset's. Each shard is `<name>.tar`, and `<name>.json` with its counts, sha256
and refusals, written last: a shard that has it is finished, and a rerun skips it. Bytes of the tars
depend on the source and its settings alone, not on the number of workers or on interruptions. What
is new in the input becomes further shards, and so do records whose pictures have arrived since.

Reads: a folder, tars, records, or a built-in corpus
Writes: raw shards (webdataset tars)

    mgpt pack source=scenes output=raw/train scenes.num_scenes=4000 workers=2
    mgpt pack source=folder input=my_pictures output=raw/mine
"""

import dataclasses
import importlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from data_pipeline.raw.inputs import counted
from data_pipeline.raw.shards import RawSample, RawShardWriter, Rejected, try_add, write_some
from data_pipeline.sources.pack_config import SOURCES, PackConfig
from data_pipeline.sources.packed import (
    arrived,
    check_older_output,
    input_files,
    names_of,
    passed_over,
    read_again,
)
from data_pipeline.sources.part import Part, SourceFile
from data_pipeline.sources.plan import FOLDER, Plan, encode_read_files
from data_pipeline.tokenizing.claims import Claim
from data_pipeline.tokenizing.details import Details, rows, share_of_captions
from data_pipeline.tokenizing.job_settings import settle_settings
from data_pipeline.tokenizing.reject_log import RejectLog
from data_pipeline.tokenizing.workers import run_units
from mgpt.data.shards import canonical_json
from mgpt.errors import ConfigError, DataError
from mgpt.files.storage import Location, locate, read_all, write_new
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.identity import input_identity, listing_identity
from mgpt.lifecycle.rehearsal import Estimate, Scale, shares, timed
from mgpt.lifecycle.run import run_stage
from mgpt.nested import leaves
from mgpt.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config(PackConfig):
    """What `mgpt pack` can be given."""

    # New files are more work; the job itself compares those it has packed with what they were.
    CHANGEABLE: ClassVar[Changeable] = Changeable(
        resumed=("input", "pictures"), extends=("input", "pictures")
    )

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    """Files of the input by size and modification time, and a source of one's own by content."""
    given = {} if cfg.input is None else {cfg.input: listing_identity(input_files(cfg))}
    if cfg.source not in SOURCES:
        given[cfg.source] = input_identity(cfg.source)
    return given


def main(cfg: Config) -> None:
    check_older_output(cfg)
    if cfg.input is not None and locate(cfg.input).is_dir():
        print(f"pack: listing {cfg.input}", file=sys.stderr, flush=True)
    given, more = inputs(cfg), ""
    if (locate(cfg.output) / FOLDER).exists():
        num = sum(map(len, PackJob(cfg).arrived().values()))
        more = f"{num} rejected records whose pictures are there now" if num else ""
    run_stage("pack", cfg, given, _pack_some, shared=True, more=more)


def _pack_some(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    """Raises DataError if nothing at all was written."""
    figures = pack(cfg, tracker)
    if not figures["samples"]:
        raise DataError(
            f"{cfg.input or cfg.source}: not one sample was written, and "
            f"{sum(figures['rejected'].values())} were rejected; why stands in the table above"
        )
    return figures


def pack(cfg: PackConfig, tracker: Tracker) -> dict[str, Any]:
    """Write every raw shard that is not there yet.

    Returns:
        `shards`, `samples`, `bytes`, and `rejected`: counts by reason, of the whole output; of one
        with pictures `captions`; `skipped`, if files that look like data were not packed.

    Raises:
        ConfigError: the output folder holds shards of other settings.
        DataError, MachineError: what the source or the disk says; a file that was packed and has
            changed since.
    """
    job = PackJob(cfg)
    settle_settings(job.output, _settings(cfg), "mgpt pack")
    job = job.planned()
    parts = job.parts
    done = job.finished()
    finished = sum(part.num_samples for part in parts.values() if part.name in done)
    total = sum(part.num_samples for part in parts.values())
    with tracker.progress(total, "samples", f"pack {cfg.source}", done=finished) as bar:
        run_units(job, cfg.workers, bar.advance)
    figures = summarise(job, tracker)
    counts = dict(leaves(figures, into_lists=True))
    tracker.log(0, counts)
    tracker.finish(counts)
    return figures


def summarise(job: "PackJob", tracker: Tracker) -> dict[str, Any]:
    """The counts of the whole output, and a table of what was rejected."""
    texts = read_all([job.output / f"{name}.json" for name in job.parts])
    stats = [json.loads(text or b"") for text in texts]
    again = {(of, key) for of, key in job.again()}
    rejected = Counter(
        reason
        for one in stats
        for key, reason in one["rejected"]
        if (one["shard"], key) not in again
    )
    if rejected:
        tracker.table("rejected while packing", ["reason", "samples", "meaning"], rows(rejected))
        tracker.print(f"each with what was seen: {job.output}/<shard>.json")
    details = [Details(one.get("pictures", 0), one.get("captions", 0)) for one in stats]
    if words := share_of_captions(details):
        tracker.print(words)
    missed, others = passed_over(job.cfg, job.parts)
    if missed:
        tracker.print(f"SKIPPED in {job.cfg.input}, though it looks like data: {counted(missed)}")
    if others:
        tracker.print(f"not read in {job.cfg.input}: {counted(others)}")
    figures = {
        "shards": len(stats),
        "samples": sum(one["samples"] for one in stats),
        "bytes": sum(one["bytes"] for one in stats),
        "rejected": dict(sorted(rejected.items())),
    }
    if any(one.pictures for one in details):
        figures["captions"] = sum(one.captions for one in details)
    return figures | ({"skipped": missed.total()} if missed else {})


def source_parts(cfg: PackConfig) -> list[Part]:
    """The parts of the source that `cfg` names, one of the table or a Python file.

    Raises:
        ConfigError: a file that is missing, imports what is missing, or has no function `parts`.
    """
    if cfg.source not in SOURCES:
        file = Path(cfg.source).resolve()
        if not file.is_file():
            raise ConfigError(f"source={cfg.source}: no such file")
        # As `python my_source.py` does it; a process that is started later finds it there too.
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))
    try:
        module = importlib.import_module(SOURCES.get(cfg.source, Path(cfg.source).stem))
    except ModuleNotFoundError as error:
        name = str(error.name)
        raise ConfigError(
            f"source={cfg.source} imports {name}, which is not there: pip install {name}"
        ) from error
    if not hasattr(module, "parts"):
        raise ConfigError(f"source={cfg.source}: {module.__file__} has no function parts(cfg)")
    found: list[Part] = module.parts(cfg)
    return found


def _settings(cfg: PackConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"job": "pack", "source": Path(cfg.source).stem}
    usual: dict[str, Any] = {
        "image_column": None,
        "caption_column": None,
        "caption_choice": "first",
        "members": {},
    }
    settings |= {k: getattr(cfg, k) for k, value in usual.items() if getattr(cfg, k) != value}
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
        """By shard: what the source has, and records that are read again."""
        parts = {part.name: part for part in source_parts(self.cfg)}
        if not parts:
            raise ConfigError(f"source={self.cfg.source} has no samples to pack")
        for name, piece in Plan.read(self.output).pieces.items():
            if isinstance(piece, dict):
                parts[name] = read_again(name, piece, parts)
        return parts

    def planned(self) -> "PackJob":
        """This job, with every shard settled; what was packed is compared with what is there.

        Raises DataError for a file that has changed.
        """
        job = self
        while True:
            plan = Plan.read(job.output)
            plan.check_files(job.parts.values())
            new = [
                part
                for part in job.parts.values()
                if part.piece is not None and part.name not in plan.pieces
            ]
            job.check_same_input(plan, new)
            for place, (of, keys) in enumerate(sorted(job.arrived().items()), len(new)):
                piece = {"again": of, "keys": keys}
                new.append(read_again(plan.next_name(place), piece, job.parts))
            if not new:
                return job
            plan.extend(job.output, new)
            job = PackJob(job.cfg)  # if another process was first, its plan counts

    def again(self) -> Iterator[tuple[str, str]]:
        """(shard, key) of rejected records that are in a later shard again."""
        for part in self.parts.values():
            if isinstance(part.piece, dict):
                yield from ((part.piece["again"], key) for key in part.piece["keys"])

    def arrived(self) -> dict[str, list[str]]:
        """Shard → keys of records that were rejected without a picture that is there now.

        Raises DataError for a file that was packed and has changed.
        """
        return arrived(self.cfg, self.parts, self.finished(), set(self.again()))

    def check_same_input(self, plan: Plan, new: list[Part]) -> None:
        """Raises ConfigError if the input has nothing of what the output was packed from."""
        known = [one for name, part in self.parts.items() for one in names_of(part.piece)
                 if name in plan.pieces]  # fmt: skip
        if not new or not known or self.cfg.input is None:
            return
        folder = locate(self.cfg.input)
        folder = folder if folder.is_dir() else folder.parent
        if not any((folder / name).exists() for name in known):
            raise ConfigError(
                f"{self.output} was packed from {known[0]} and others, of which {self.cfg.input} "
                "has none; give another output="
            )

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
        files: list[SourceFile] = []
        details = Details()
        with RawShardWriter(output / f"{unit}.tar") as writer:
            for item in part.read():
                if isinstance(item, SourceFile):
                    files.append(item)
                    continue
                refused = item if isinstance(item, Rejected) else try_add(writer, item)
                if isinstance(refused, Rejected):
                    rejected.append(refused)
                    details.reject(refused)
                    self._log.note(unit, refused)
                elif isinstance(item, RawSample):
                    details.count(item)
                advance(1)
            stats = writer.close(before_publish=claim.check)
        if files:
            write_new(output / FOLDER / f"{unit}.json", encode_read_files(files), claim.check)
        record = {
            "shard": unit,
            **dataclasses.asdict(stats),
            "rejected": sorted((one.key, one.reason) for one in rejected),
            **details.as_json(),
        }
        write_new(output / f"{unit}.json", canonical_json(record) + b"\n", claim.check)


def is_long(cfg: Config) -> bool:
    return cfg.source == "scenes" and cfg.scenes.num_scenes > 200


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """Packs the first samples of the source, of whichever kind it is."""
    job = PackJob(real)
    parts, done = job.parts, job.finished()
    read = itertools.chain.from_iterable(part.read() for part in parts.values())
    items = (item for item in read if not isinstance(item, SourceFile))
    counts: list[int] = []
    seconds = timed(lambda: counts.append(write_some(locate(cfg.output), items, seconds=1.5)))
    total = sum(part.num_samples for part in parts.values())
    left = sum(part.num_samples for part in parts.values() if part.name not in done)
    workers = shares(min(cfg.workers, len(parts)))
    starts = 1 if cfg.workers == 1 else 2
    return Estimate(seconds * left / counts[0] / workers, total / counts[0], starts)
