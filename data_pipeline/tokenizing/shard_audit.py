"""Everything that can be said of one tokenised shard, at all resolutions, from its files.

    auditor = ShardAuditor(locate("tokens"), read_settings(locate("tokens")))
    report = auditor.audit("00000", raw_path=None)
    report.problems, report.counts["written"]

A report is a pure function of the files, so shards can be looked at in any order, in any number of
processes; `mgpt verify` puts the reports together.
"""

import functools
import json
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.raw.shards import RawShardReader
from data_pipeline.tokenizing.decoding import CodeDecoder
from data_pipeline.tokenizing.job_settings import settings_fingerprint
from data_pipeline.views.contact_sheet import Tile
from mgpt.data.shards import Manifest, Shard, read_manifest
from mgpt.data.verify import verify_shard
from mgpt.errors import DataError
from mgpt.files.storage import Location, locate

_MAX_NAMED = 3  # keys in one problem
_open_decoder = functools.lru_cache(maxsize=1)(CodeDecoder)  # one a process


@dataclass
class ShardReport:
    """What was found of one shard.

    `counts`: inputs, written (at every resolution), rejected, partly_written, duplicates, decoded.
    `reasons`: rejected samples by reason, at whichever resolution. `raw_name`: of a sound shard
    alone.
    """

    name: str
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: bool = False
    raw_name: str | None = None
    tiles: dict[int, list[Tile]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardAuditor:
    """Looks at the shards of one output; travels to other processes.

    vq: the VQ model that decodes `samples` of each shard at each resolution; None decodes none.
    """

    folder: Location
    settings: Mapping[str, Any]
    vq: str | None = None
    samples: int = 1
    device: str = "cpu"

    @property
    def resolutions(self) -> list[int]:
        return [int(px) for px in self.settings["resolution"]]

    @property
    def decoder(self) -> CodeDecoder | None:
        """Raises DataError where `vq` is not the model that the output was made with."""
        if self.vq is None:
            return None
        return _open_decoder(
            self.vq, self.settings["vq_fingerprint"], str(self.folder), self.device
        )

    def audit(self, name: str, raw_path: str | Location | None = None) -> ShardReport:
        """Look at a shard; with `raw_path` its raw shard is hashed and counted anew."""
        report = ShardReport(name)
        sound = [px for px in self.resolutions if self._is_sound(name, px, report)]
        if sound != self.resolutions:
            return report
        shards = {px: Shard(self.folder / str(px), name) for px in sound}
        manifests = [shard.manifest for shard in shards.values()]
        first = manifests[0]
        if any(one.raw != first.raw for one in manifests):
            report.problems.append(f"{self.folder}: shard {name}: its resolutions differ in `raw`")
            return report
        report.raw_name, report.damaged = first.raw["name"], bool(first.raw["damaged"])
        keys = {px: [shard.key(i) for i in range(len(shard))] for px, shard in shards.items()}
        for px, shard in shards.items():
            self._check_conservation(shard.manifest, keys[px], px, report)
        self._count(manifests, keys, report)
        if raw_path is not None:
            members = self.settings.get("members", {})
            _compare_with_raw(locate(raw_path), members, first, keys[sound[0]], report)
        for px, shard in shards.items():
            self._decode(shard, px, report)
        return report

    def shared_keys(self, one: str, other: str) -> int:
        """How many keys two shards of the output have in common, at the smallest resolution."""
        found = []
        for name in (one, other):
            shard = self._open_as_it_is(self.folder / str(self.resolutions[0]), name)
            found.append(set() if shard is None else {shard.key(i) for i in range(len(shard))})
        return len(found[0] & found[1])

    def claimed_raw_name(self, name: str) -> str | None:
        """The raw shard that a shard says it is made of, be it sound or not."""
        shard = self._open_as_it_is(self.folder / str(self.resolutions[0]), name)
        return None if shard is None else str(shard.manifest.raw["name"])

    def _open_as_it_is(self, folder: Location, name: str) -> Shard | None:
        """A shard whose manifest may be of another name, as that of a copied shard is."""
        try:
            values = json.loads((folder / f"{name}.json").read_bytes())
            fields = {key: values[key] for key in Manifest.__dataclass_fields__}
            return Shard(folder, name, Manifest(**fields))
        except (OSError, ValueError, LookupError, TypeError, DataError):
            return None

    def _is_sound(self, name: str, px: int, report: ShardReport) -> bool:
        folder = self.folder / str(px)
        if not (folder / f"{name}.json").exists():
            report.problems.append(f"{folder}: shard {name} is missing")
            return False
        problems = verify_shard(folder, name)
        if not problems:
            manifest = read_manifest(folder, name)
            wanted = {
                "resolution_px": px,
                "settings_fingerprint": settings_fingerprint(dict(self.settings)),
                **{key: self.settings[key] for key in ("latent_px", "num_codes", "vq_fingerprint")},
            }
            problems = [
                f"{folder}: shard {name} has {key} {getattr(manifest, key)}, not {value}"
                for key, value in wanted.items()
                if getattr(manifest, key) != value
            ]
        report.problems += problems
        return not problems

    def _check_conservation(
        self, manifest: Manifest, keys: list[str], px: int, report: ShardReport
    ) -> None:
        where = f"{self.folder / str(px)}: shard {report.name}"
        inputs, rejected = manifest.raw["inputs"], manifest.rejected
        if len(keys) + len(rejected) != inputs:
            report.problems.append(
                f"{where}: {inputs} inputs, but {len(keys)} written and {len(rejected)} rejected"
            )
        twice = [key for key, count in Counter(keys).items() if count > 1]
        report.counts["duplicates"] += len(twice)
        report.problems += [f"{where}: {key!r} is written twice" for key in sorted(twice)]
        # A key that came back is one more input and is rejected, while its first may be written.
        both = {key for key, reason in rejected if reason != "duplicate_key"} & set(keys)
        report.problems += [f"{where}: {key!r} is written and rejected" for key in sorted(both)]

    def _count(
        self, manifests: list[Manifest], keys: dict[int, list[str]], report: ShardReport
    ) -> None:
        sets = [set(one) for one in keys.values()]
        everywhere, anywhere = set.intersection(*sets), set.union(*sets)
        inputs = manifests[0].raw["inputs"]
        report.counts["inputs"] += inputs
        report.counts["written"] += len(everywhere)
        report.counts["rejected"] += inputs - len(everywhere)
        report.counts["partly_written"] += len(anywhere - everywhere)
        refused = [Counter(one.rejected) for one in manifests]
        for (_, reason), times in functools.reduce(operator.or_, refused).items():
            report.reasons[reason] += times

    def _decode(self, shard: Shard, px: int, report: ShardReport) -> None:
        if self.decoder is None:
            return
        tiles = []
        for number in spread(range(len(shard)), self.samples):
            sample = shard.sample(number)
            for name in sorted(sample.codes, key=lambda name: (name != "image", name)):
                report.counts["decoded"] += 1
                try:
                    levels_HWC = self.decoder(sample.codes[name])
                except DataError as error:
                    where = f"{shard.folder}: shard {shard.name}: sample {sample.key!r}"
                    report.problems.append(f"{where}: {name}: {error}")
                    continue
                field_name = "" if name == "image" else f".{name}"
                tiles.append(Tile(levels_HWC, f"{shard.name}/{sample.key}{field_name}").fitted())
        report.tiles[px] = tiles


def spread(items: Any, count: int) -> list[Any]:
    """At most `count` of a sequence's items, evenly over it, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[place * (len(items) - 1) // (count - 1)] for place in range(count)]


def _compare_with_raw(
    path: Location,
    members: Mapping[str, str],
    first: Manifest,
    keys: list[str],
    report: ShardReport,
) -> None:
    """The raw shard holds every key of the output, as often, and no other."""
    with RawShardReader.open(path, members) as reader:
        held = Counter(item.key for item in reader)
    if reader.sha256 != first.raw["sha256"]:
        report.problems.append(
            f"{path}: sha256 {reader.sha256}, but {first.raw['sha256']} when it was tokenised"
        )
        return
    accounted = Counter(keys) + Counter(key for key, _ in first.rejected)
    for what, more in (("lost", held - accounted), ("invented", accounted - held)):
        if more:
            named = ", ".join(repr(key) for key in sorted(more)[:_MAX_NAMED])
            report.problems.append(f"{path}: {more.total()} samples {what} ({named})")
