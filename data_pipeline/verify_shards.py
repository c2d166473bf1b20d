"""`mgpt verify`: proof that a tokenised output holds every sample of its raw shards, once.

    mgpt verify input=tokens
    mgpt verify input=tokens raw=raw/train        # counts the raw shards anew

Proven are: tar, index and manifest of every shard agree byte for byte; every shard is there at
every resolution, made of the same raw shard with the same settings; at each resolution each key of
the raw shard is written or rejected, none twice. Counted are identities (raw shard, key): one is
`written` when it is at every resolution asked.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.job_settings import read_settings
from data_pipeline.raw_inputs import find_raw_shards
from data_pipeline.raw_shards import RawSample, RawShardReader
from mgpt.data.dataset import NOT_MANIFESTS
from mgpt.data.shards import Manifest, Shard, read_manifest
from mgpt.data.verify import verify_shard
from mgpt.errors import DataError
from mgpt.tracking.tracker import Tracker

_MAX_PRINTED = 20  # problems; all are returned


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What to prove."""

    input: str
    """Output folder of `mgpt tokenize`."""
    raw: str | list[str] | None = None
    """The raw shards it was made of, to be read and counted again; null trusts the manifests."""
    allow_damaged: bool = False
    """Whether an output of damaged raw shards may be ok."""


def verify(cfg: VerifyConfig, tracker: Tracker) -> dict[str, Any]:
    """Check everything, print what is wrong.

    Returns:
        `inputs`, `written`, `rejected`, `duplicates` (counts of identities), `partly_written`
        (those rejected at some resolutions only; they count as rejected), `damaged_shards`
        (names), `problems` (messages) and `ok`.

    Raises:
        DataError: the folder is no output of `mgpt tokenize`.
    """
    folder = Path(cfg.input)
    settings = read_settings(folder)
    if settings.get("job") != "tokenize":
        raise DataError(f"{folder}: made by another job than mgpt tokenize; give its output folder")
    resolutions = [int(px) for px in settings["resolution"]]
    found = {px: _shard_names(folder / str(px)) for px in resolutions}
    names = sorted(set().union(*found.values()))
    raw = find_raw_shards(cfg.raw) if cfg.raw is not None else None
    audit = _Audit(folder, settings)
    with tracker.progress(len(names), "shards", "verify") as bar:
        for name in names:
            audit.check(name, [px for px in resolutions if name in found[px]], raw)
            bar.advance(1)
    if not names:
        audit.problems.append(f"{folder}: no finished shard")
    if raw is not None:
        audit.problems += [f"{path}: not tokenised" for n, path in raw.items() if n not in names]
    for problem in audit.problems[:_MAX_PRINTED]:
        tracker.print(problem)
    damaged = sorted(audit.damaged)
    return {
        "inputs": audit.counts["inputs"],
        "written": audit.counts["written"],
        "rejected": audit.counts["rejected"],
        "partly_written": audit.counts["partly_written"],
        "duplicates": audit.counts["duplicates"],
        "damaged_shards": damaged,
        "problems": audit.problems,
        "ok": not audit.problems and (cfg.allow_damaged or not damaged),
    }


def _shard_names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.json") if path.name not in NOT_MANIFESTS}


class _Audit:
    """What has been seen so far of one output."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self.damaged: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._folder, self._settings = folder, settings
        self._resolutions = [int(px) for px in settings["resolution"]]
        self._seen: dict[str, str] = {}  # raw shard: the first shard made of it

    def check(self, name: str, present: list[int], raw: Mapping[str, Path] | None) -> None:
        """One shard at all resolutions."""
        for px in set(self._resolutions) - set(present):
            self.problems.append(f"{self._folder / str(px)}: shard {name} is missing")
        sound = [px for px in present if self._is_sound(name, px)]
        if sound != self._resolutions:
            return
        shards = {px: Shard(self._folder / str(px), name) for px in sound}
        manifests = {px: shard.manifest for px, shard in shards.items()}
        first = manifests[sound[0]]
        if any(one.raw != first.raw for one in manifests.values()):
            self.problems.append(f"{self._folder}: shard {name}: its resolutions differ in `raw`")
            return
        if first.raw["damaged"]:
            self.damaged.add(name)
        keys = {px: [shard.key(i) for i in range(len(shard))] for px, shard in shards.items()}
        for px, manifest in manifests.items():
            self._check_conservation(name, px, manifest, keys[px])
        self._check_duplicates(name, first, keys[sound[0]])
        self._count(first, [set(one) for one in keys.values()])
        if raw is not None:
            self._compare_with_raw(name, raw.get(name), first, keys[sound[0]])

    def _is_sound(self, name: str, px: int) -> bool:
        folder = self._folder / str(px)
        problems = verify_shard(folder, name)
        if not problems:
            manifest = read_manifest(folder, name)
            wanted = {"resolution_px": px} | {
                field: self._settings[field]
                for field in ("latent_px", "num_codes", "vq_fingerprint")
            }
            problems = [
                f"{folder}: shard {name} has {field} {getattr(manifest, field)}, not {value}"
                for field, value in wanted.items()
                if getattr(manifest, field) != value
            ]
        self.problems += problems
        return not problems

    def _check_conservation(self, name: str, px: int, manifest: Manifest, keys: list[str]) -> None:
        where = f"{self._folder / str(px)}: shard {name}"
        inputs, rejected = manifest.raw["inputs"], manifest.rejected
        if len(keys) + len(rejected) != inputs:
            self.problems.append(
                f"{where}: {inputs} inputs, but {len(keys)} written and {len(rejected)} rejected"
            )
        # A key that came back is one more input and is rejected, while its first may be written.
        both = {key for key, reason in rejected if reason != "duplicate_key"} & set(keys)
        self.problems += [f"{where}: {key!r} is written and rejected" for key in sorted(both)]

    def _check_duplicates(self, name: str, first: Manifest, keys: list[str]) -> None:
        other = self._seen.setdefault(first.raw["name"], name)
        if other != name:
            shard = Shard(self._folder / str(first.resolution_px), other)
            twice = {shard.key(number) for number in range(len(shard))} & set(keys)
            self.counts["duplicates"] += len(twice)
            self.problems.append(
                f"{self._folder}: shards {other} and {name} are both made of raw shard "
                f"{first.raw['name']}: {len(twice)} samples are there twice"
            )

    def _count(self, first: Manifest, keys: list[set[str]]) -> None:
        everywhere, anywhere = set.intersection(*keys), set.union(*keys)
        self.counts["inputs"] += first.raw["inputs"]
        self.counts["written"] += len(everywhere)
        self.counts["rejected"] += first.raw["inputs"] - len(everywhere)
        self.counts["partly_written"] += len(anywhere - everywhere)

    def _compare_with_raw(
        self, name: str, path: Path | None, first: Manifest, keys: list[str]
    ) -> None:
        if path is None:
            self.problems.append(f"shard {name}: its raw shard is not in raw=")
            return
        with RawShardReader.open(path) as reader:
            held = {item.key for item in reader if isinstance(item, RawSample)}
        if reader.sha256 != first.raw["sha256"]:
            self.problems.append(
                f"{path}: sha256 {reader.sha256}, but {first.raw['sha256']} when it was tokenised"
            )
        elif reader.inputs != first.raw["inputs"] or not held >= set(keys):
            self.problems.append(
                f"{path}: holds {reader.inputs} samples, its output says {first.raw['inputs']}"
            )
