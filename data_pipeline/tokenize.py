"""mgpt tokenize: raw shards become shards of picture codes, one folder a resolution.

A raw shard is the unit of work: decode, filter, choose a bucket, fit, encode in batches, write
`<output>/<px>/<shard>.tar` with index and manifest. Any number of runs on any number of machines
may share one output folder. Every key of a raw shard is, at every resolution, either written or
listed in the manifest with a reason. A rerun of a finished job changes nothing.

Reads: raw shards, a VQGAN
Writes: tokenised shards, a folder for each resolution

    mgpt tokenize input=raw output=tokens vq=scenes_f8 'resolution=[32,48,64]' workers=2
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from data_pipeline.raw.inputs import (
    UNPACK,
    counted,
    estimate_samples,
    find_raw_shards,
    passed_over,
    raw_identities,
)
from data_pipeline.raw.member_names import check_members
from data_pipeline.raw.shards import RawShardReader, write_some
from data_pipeline.tokenizing.admission import Admission
from data_pipeline.tokenizing.details import FOLDER as DETAILS
from data_pipeline.tokenizing.details import read_details, share_of_captions
from data_pipeline.tokenizing.details import rows as meanings
from data_pipeline.tokenizing.duplicates import Known, LookJob, find_job_duplicates
from data_pipeline.tokenizing.filters import FilterConfig
from data_pipeline.tokenizing.job_settings import (
    SETTINGS_FILE,
    list_finished,
    read_settings,
    settle_settings,
)
from data_pipeline.tokenizing.unit_stamps import Units
from data_pipeline.tokenizing.worker import TokenizeWorker
from data_pipeline.tokenizing.workers import run_units
from data_pipeline.views.job_view import JobView
from mgpt.data.shards import Manifest, canonical_json, read_manifests
from mgpt.dtypes import CODES, Dtype, choose_dtype
from mgpt.errors import ConfigError, DataError, MachineError
from mgpt.files.storage import Location, locate, modified_times
from mgpt.files.walk import stamp_of
from mgpt.images.buckets import bucket_sizes
from mgpt.images.pixels import MAX_PIXELS
from mgpt.lifecycle.comparison import Changeable
from mgpt.lifecycle.identity import vq_input
from mgpt.lifecycle.rehearsal import Estimate, Scale, shares, silent_tracker, timed
from mgpt.lifecycle.run import run_stage
from mgpt.nested import leaves
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.protocol import PictureTokenizer, float32_alone
from mgpt.tracking.tracker import Tracker, TrackingConfig

_log = logging.getLogger(__name__)
# Fields that decide bytes of the output, beside the VQ model, the device and the filters.
_DECISIVE = (
    "resolution",
    "seed",
    "threads",
    "batch_pixels",
    "enlarge",
    "rotate_exif",
    "max_pixels",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to tokenise, with which VQ model, at which resolutions."""

    # More raw shards are more work; the job itself compares those it has done with what they were.
    CHANGEABLE: ClassVar[Changeable] = Changeable(resumed=("input",), extends=("input",))

    input: str | list[str]
    """Raw shards: a folder, a glob, a tar, or a list of these."""
    output: str
    """Folder of the tokenised shards; one subfolder a resolution."""
    vq: str
    """Picture tokenizer: a folder of ours or a released one, or a shipped name, such as
    scenes_f8."""
    resolution: list[int]
    """Sides in pixels of the squares whose area pictures get; any aspect ratio in each."""
    workers: int = 1
    """Processes; the output does not depend on it."""
    decoders: int | None = None
    """Threads of a process that decode and fit pictures while another one encodes, to keep a GPU
    busy; 0 does one thing after the other; null is 8 with a GPU and 0 without. Twice as many
    pictures are in memory at once. The output does not depend on it."""
    dtype: Dtype = "auto"
    """Of the VQ model's layers. auto is float32 on every device; bfloat16 is for GPUs, and changes
    a few codes in a hundred: how many is printed once. Released tokenizers other than Chameleon's
    are float32 always."""
    compile: bool = False
    """Whether these layers run as machine code (torch.compile), made anew for each size of picture
    and worker: for GPUs, in jobs that outlast that. A few codes may be others; how many is said."""
    seed: int = 0
    """Decides, with a sample's key, where its pictures are cropped."""
    threads: int = 1
    """Torch threads a process; may change a code in rare ties."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the VQ model runs; auto is a GPU where there is one. May change a code in rare ties."""
    batch_pixels: int = 2**16
    """Pixels a batch is filled up to: 16 pictures of 64 x 64, one of 256 x 256. More serves a GPU;
    16 such pictures are the fastest on one CPU core (measured, 32 channels). May change a code in
    rare ties."""
    enlarge: bool = False
    """Whether pictures smaller than a resolution are scaled up instead of left out there."""
    rotate_exif: bool = True
    """Whether pictures are turned as their EXIF data says; false as in the published code."""
    convert_palette: bool = True
    """Whether palette and 1-bit pictures are converted before they are scaled; false as in the
    published code, by the nearest pixel. An output of an older version stays as it is."""
    max_pixels: int = MAX_PIXELS
    """Largest picture that is decoded, in pixels."""
    members: dict[str, str] = field(default_factory=dict)
    """Fields of members under other names, by the ending behind the key: 'members={input.jpg:
    image, output.jpg: edit_1, caption: txt}'."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """What to leave out on purpose."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", sorted(self.resolution))
        if not self.resolution or min(self.resolution) < 1:
            raise ValueError(f"resolution={self.resolution} must list sides in pixels")
        if len(set(self.resolution)) < len(self.resolution):
            raise ValueError(f"resolution={self.resolution} lists one twice")
        for name in ("workers", "threads", "batch_pixels", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_members(self.members)
        if self.decoders is not None and self.decoders < 0:
            raise ValueError(f"decoders={self.decoders} must be 0 or more")


def inputs(cfg: Config) -> dict[str, str]:
    return {**raw_identities(cfg.input, by_content=False), **vq_input(cfg.vq)}


def main(cfg: Config) -> None:
    run_stage("tokenize", cfg, inputs(cfg), _tokenize_some, shared=True)


def _tokenize_some(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    """Raises DataError if nothing at all was written."""
    figures = tokenize(cfg, tracker)
    if not any(figures["written"].values()):
        raise DataError(
            f"{cfg.input}: not one of {figures['inputs']} samples was written; why stands in the "
            "table above"
        )
    return figures


def tokenize(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    """Write every tokenised shard that is not there yet.

    Returns:
        `shards`, `inputs`, `damaged` (names of raw shards), and by resolution (as text)
        `written` and `rejected` (counts by reason), of the whole output; `dtype` and its reason.

    Raises:
        ConfigError: the output was made with another VQ model or other settings.
        DataError: no raw shards, or one that has changed since it was tokenised.
        MachineError: no GPU where one is asked for, a full disk, workers that keep being killed.
    """
    job = TokenizeJob.prepare(cfg)
    stamps = {name: stamp for name, path in job.paths.items() if (stamp := stamp_of(path))}
    counts = estimate_samples(job.paths)
    done = job.finished()
    finished = sum(counts[unit] for unit in job.units() if unit in done)
    threads_before = torch.get_num_threads()
    dtype = choose_dtype(job.cfg.dtype, torch.device(job.device), keep_float32=CODES)
    dtype.announce(tracker.print)
    try:
        if job.looks_across and finished < sum(counts.values()):
            with tracker.progress(sum(counts.values()), "samples", "find duplicates") as bar:
                looks = LookJob(cfg.output, job.paths, job.admission, cfg.members)
                known = find_job_duplicates(looks, cfg.workers, bar.advance)
                job = replace(job, known=known)
        with tracker.progress(sum(counts.values()), "samples", "tokenize", done=finished) as bar:
            view = JobView(job, tracker, bar.advance)
            run_units(job, cfg.workers, view.advance)
            view.look()
    finally:
        torch.set_num_threads(threads_before)
    list_finished(job.output, job.units())
    units = Units.read(job.output)
    units.stamps |= stamps
    units.keep(job.output)
    summary = _summarise(job)
    _print_summary(summary, _damage(job), tracker)
    if any(summary["rejected"].values()):
        tracker.print(f"each with what was seen: {job.output / DETAILS}/<shard>.json")
    if words := share_of_captions(read_details(job.output, job.units())):
        tracker.print(words)
    others = passed_over(cfg.input)
    skipped = Counter({kind: count for kind, count in others.items() if kind.endswith(UNPACK)})
    if skipped:
        tracker.print(f"SKIPPED in {cfg.input}, though it looks like data: {counted(skipped)}")
    if others - skipped:
        tracker.print(f"not read in {cfg.input}: {counted(others - skipped)}")
    figures = {**summary, "dtype": str(dtype)}
    counts = dict(leaves(figures, into_lists=True))
    tracker.log(summary["shards"], counts)
    ended = {"shards": summary["shards"], "samples": summary["inputs"]}
    tracker.finish(ended | ({"skipped": skipped.total()} if skipped else {}))
    return figures


@dataclass(frozen=True)
class TokenizeJob:
    """One unit a raw shard; see `data_pipeline.tokenizing.workers.Job`."""

    cfg: Config
    paths: dict[str, Location]
    device: str
    latent_px: int
    grid_px: int
    num_codes: int
    vq_fingerprint: str
    settings_fingerprint: str
    known: Known | None = None
    """Duplicates by raw shard, where they are found over the whole job."""

    @classmethod
    def prepare(cls, cfg: Config) -> TokenizeJob:
        """Find the raw shards and compare this run with what the output already holds."""
        paths = find_raw_shards(cfg.input)
        vq = load_tokenizer(cfg.vq)
        latent_px, num_codes = vq.downsample, vq.num_codes
        _check_largest(vq, cfg.resolution)
        if cfg.dtype == "bfloat16" and torch.bfloat16 not in vq.encode_dtypes:
            _log.warning(float32_alone(vq))
            cfg = replace(cfg, dtype="float32")
        for px in cfg.resolution:
            bucket_sizes(px, vq.grid_px)  # raises where not even one grid fits
        device = _device(cfg.device)
        vq_fingerprint = vq.fingerprint()
        settings = {
            "job": "tokenize",
            "vq_fingerprint": vq_fingerprint,
            "latent_px": latent_px,
            "num_codes": num_codes,
            "device": device,
            **{name: getattr(cfg, name) for name in _DECISIVE},
            **{f"filters.{name}": value for name, value in vars(cfg.filters).items()},
        }
        if vq.grid_px != 2 * latent_px:
            settings["grid_px"] = vq.grid_px
        if cfg.dtype == "bfloat16":
            settings["precision"] = "bf16"
        if cfg.compile:
            settings["compile"] = True
        output = locate(cfg.output)
        if cfg.convert_palette and (output / SETTINGS_FILE).exists():
            cfg = replace(cfg, convert_palette="convert_palette" in read_settings(output))
        if cfg.convert_palette:
            settings["convert_palette"] = True
        if cfg.members:
            settings["members"] = dict(sorted(cfg.members.items()))
        if cfg.filters.finds_duplicates and cfg.filters.duplicates_across == "job":
            settings["filters.duplicates_among"] = _names_and_sizes(paths)
        fingerprint = settle_settings(locate(cfg.output), settings, "mgpt tokenize")
        job = cls(cfg, paths, device, latent_px, vq.grid_px, num_codes, vq_fingerprint, fingerprint)
        job._check_unchanged()
        return job

    @property
    def output(self) -> Location:
        return locate(self.cfg.output)

    def folder(self, px: int) -> Location:
        """Where the shards of one resolution stand."""
        return self.output / str(px)

    def units(self) -> list[str]:
        return list(self.paths)

    def finished(self) -> set[str]:
        return set.intersection(*(self.finished_at(px) for px in self.cfg.resolution))

    def finished_at(self, px: int) -> set[str]:
        """Raw shards that are finished at one resolution, by one listing."""
        return {path.stem for path in self.folder(px).glob("*.json")}

    def is_done(self, unit: str) -> bool:
        return not self.missing(unit)

    def missing(self, unit: str) -> list[int]:
        """Resolutions at which the raw shard is not finished."""
        return [px for px in self.cfg.resolution if not (self.folder(px) / f"{unit}.json").exists()]

    @property
    def admission(self) -> Admission:
        """Which samples are used."""
        cfg = self.cfg
        smallest_px = 0 if cfg.enlarge else min(cfg.resolution)
        return Admission(
            cfg.filters, smallest_px, cfg.rotate_exif, cfg.max_pixels, cfg.convert_palette
        )

    @property
    def looks_across(self) -> bool:
        """Whether a sample may be left out for one in another raw shard."""
        filters = self.cfg.filters
        return filters.finds_duplicates and filters.duplicates_across == "job"

    def open(self, slot: int) -> TokenizeWorker:
        return TokenizeWorker(self, slot)

    def _check_unchanged(self) -> None:
        units = Units.read(self.output)
        for px in self.cfg.resolution:
            done = sorted(self.finished_at(px).intersection(self.paths))
            written_s = modified_times(self.folder(px)) if done else {}
            for unit, manifest in zip(done, read_manifests(self.folder(px), done), strict=True):
                at_s = written_s.get(f"{unit}.json", 0.0)
                units.check(unit, self.paths[unit], manifest, at_s)
        units.keep(self.output)


def _names_and_sizes(paths: Mapping[str, Location]) -> str:
    """16 hex digits over the raw shards: with another one among them, other samples are first."""
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    return hashlib.sha256(canonical_json(sizes)).hexdigest()[:16]


def _check_largest(vq: PictureTokenizer, resolutions: list[int]) -> None:
    most = vq.pixels.max_pixels
    if most is not None and max(resolutions) ** 2 > most:
        raise ConfigError(
            f"resolution={max(resolutions)} makes pictures of {max(resolutions) ** 2} pixels, and "
            f"{vq.title} encodes {most} at most; give smaller resolutions"
        )


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("device=cuda, but torch finds no GPU; use device=auto or device=cpu")
    return wanted


def _summarise(job: TokenizeJob) -> dict[str, Any]:
    manifests: dict[int, list[Manifest]] = {
        px: read_manifests(job.folder(px), job.units()) for px in job.cfg.resolution
    }
    first = manifests[job.cfg.resolution[0]]
    return {
        "shards": len(first),
        "inputs": sum(one.raw["inputs"] for one in first),
        "damaged": [one.shard for one in first if one.raw["damaged"]],
        "written": {str(px): sum(one.samples for one in ones) for px, ones in manifests.items()},
        "rejected": {
            str(px): dict(sorted(Counter(why for one in ones for _, why in one.rejected).items()))
            for px, ones in manifests.items()
        },
    }


def _damage(job: TokenizeJob) -> dict[str, str]:
    """Damaged raw shards, and what is wrong with them."""
    manifests = read_manifests(job.folder(job.cfg.resolution[0]), job.units())
    return {one.shard: one.raw["damaged"] for one in manifests if one.raw["damaged"]}


def _print_summary(summary: dict[str, Any], damage: dict[str, str], tracker: Tracker) -> None:
    rows = []
    for px, written in summary["written"].items():
        rows.append([px, "written", written, ""])
        rows += [[px, *row] for row in meanings(summary["rejected"][px])]
    columns = ["px", "outcome", "samples", "meaning"]
    tracker.table(f"tokenised {summary['inputs']} samples", columns, rows)
    for name, why in damage.items():
        tracker.print(f"damaged raw shard: {name} ({why}); only its whole samples are written")


def is_long(cfg: Config) -> bool:
    paths = [cfg.input] if isinstance(cfg.input, str) else cfg.input
    is_there = all(locate(path).exists() for path in paths)
    return is_there and sum(estimate_samples(find_raw_shards(cfg.input)).values()) > 200


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """Tokenises the stand-in's samples, or the first ones of shards that are there."""
    is_there = cfg.input == real.input
    if is_there:
        shards = find_raw_shards(real.input)
        items = itertools.chain.from_iterable(
            reader
            for path in shards.values()
            for reader in [RawShardReader.open(path, real.members)]
        )
        some = f"{cfg.output}.raw"
        times = sum(estimate_samples(shards).values()) / write_some(locate(some), items, 0.5)
        cfg = replace(cfg, input=some)
    else:
        paths = [real.input] if isinstance(real.input, str) else real.input
        times = max(scale(path) for path in paths)
    cfg = replace(cfg, workers=1)
    seconds = timed(lambda: tokenize(cfg, silent_tracker()))
    left = 1.0
    if is_there:
        done = {
            px: {p.stem for p in Path(real.output, str(px)).glob("*.json")} for px in cfg.resolution
        }
        left = 1 - len(set.intersection(*done.values()) & set(shards)) / len(shards)
    starts = 1 if real.workers == 1 else 2
    return Estimate(seconds * times * left / shares(real.workers), times, starts)
