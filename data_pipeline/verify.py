"""mgpt verify: proof that a tokenised output holds every sample of its raw shards, once.

The last line is one JSON object. The exit status is 0 if all is proven, 1 if something is not, 2 if
the input is no tokenised output.

Proven are: tar, index and manifest of every shard agree byte for byte; every shard that the job
ended with is there at every resolution, made of the same raw shard with the output's settings; at
each resolution each key of the raw shard is written or rejected, none twice. With `raw=` the raw
shards are hashed and counted again; with `vq=` samples of every shard are decoded, and a contact
sheet shows them. Counted are identities (raw shard, key): one is `written` when it is at every
resolution asked.

Reads: tokenised shards; raw shards and a VQGAN if given
Writes: one JSON line, contact sheets

    mgpt verify input=tokens
    mgpt verify input=tokens raw=raw vq=scenes_f8
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from data_pipeline.raw.inputs import find_raw_shards
from data_pipeline.tokenizing.job_settings import read_finished, read_settings
from data_pipeline.tokenizing.shard_audit import ShardAuditor, ShardReport, spread
from data_pipeline.views.contact_sheet import Tile, contact_sheet, png
from mgpt.data.dataset import NOT_MANIFESTS
from mgpt.errors import DataError
from mgpt.files.child_processes import ProcessExecutor
from mgpt.files.storage import Location, locate, modified_times, write_whole
from mgpt.tracking.tracker import Tracker, console_tracker

NOT_PROVEN_STATUS = 1
MAX_PROBLEMS = 20  # printed, and in the JSON line; `num_problems` counts them all
_MAX_TILES = 96  # of a contact sheet
_SUFFIXES = (".index.npy", ".json", ".tar")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to prove."""

    input: str
    """Output folder of `mgpt tokenize`."""
    raw: str | list[str] | None = None
    """The raw shards it was made of, to be read and counted again; null trusts the manifests."""
    allow_damaged: bool = False
    """Whether an output of damaged raw shards may be ok."""
    vq: str | None = None
    """The VQ model it was made with, to decode samples again; null decodes none."""
    samples: int = 4
    """Samples that are decoded of every shard at every resolution, evenly over the shard."""
    output: str | None = None
    """Folder of the contact sheets, `<px>.png`; null: `verify` in the input."""
    workers: int = 1
    """Processes; the outcome does not depend on it."""

    def __post_init__(self) -> None:
        for name in ("samples", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def main(cfg: Config) -> None:
    with console_tracker("verify") as tracker:
        result = verify(cfg, tracker)
    problems = result.pop("problems")
    line = {**result, "num_problems": len(problems), "problems": problems[:MAX_PROBLEMS]}
    print(json.dumps(line, ensure_ascii=False), flush=True)
    if not result["ok"]:
        raise SystemExit(NOT_PROVEN_STATUS)


def verify(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    """Check everything, print what is wrong, write the contact sheets.

    Returns:
        `inputs`, `written`, `rejected`, `duplicates` (counts of identities), `partly_written`
        (those rejected at some resolutions only; they count as rejected), `reasons` (counts of
        rejected samples, at whichever resolution), `shards`, `decoded` (pictures),
        `damaged_shards` (names), `problems` (messages) and `ok`.

    Raises:
        DataError: the folder is no output of `mgpt tokenize`, or `vq` is another model.
    """
    auditor = _open(cfg)
    names = _shard_names(auditor)
    raw = find_raw_shards(cfg.raw) if cfg.raw is not None else None
    tasks = [(name, None if raw is None else raw.get(name)) for name in names]
    summary = _Summary(auditor, len(names))
    summary.problems += _list_problems(auditor.folder, names)
    with tracker.progress(len(names), "shards", "verify") as bar:
        for report in _reports(auditor, tasks, cfg.workers):
            summary.add(report)
            bar.advance(1)
    if raw is not None:
        summary.problems += [f"{raw[one]}: not tokenised" for one in sorted({*raw} - {*names})]
        for name in sorted({*names} - {*raw}):
            summary.problems.append(f"shard {name}: its raw shard is not in raw=")
    for problem in summary.problems[:MAX_PROBLEMS]:
        tracker.print(problem)
    if len(summary.problems) > MAX_PROBLEMS:
        tracker.print(f"and {len(summary.problems) - MAX_PROBLEMS} problems more")
    for px, tiles in sorted(summary.tiles.items()):
        path = locate(cfg.output or locate(cfg.input) / "verify") / f"{px}.png"
        write_whole(path, png(contact_sheet(spread(tiles, _MAX_TILES))))
        tracker.print(f"contact sheet: {path}")
    return summary.result(cfg.allow_damaged)


def _open(cfg: Config) -> ShardAuditor:
    settings = read_settings(locate(cfg.input))
    if settings.get("job") != "tokenize":
        raise DataError(
            f"{cfg.input}: made by another job than mgpt tokenize; give its output folder"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    auditor = ShardAuditor(locate(cfg.input), settings, cfg.vq, cfg.samples, device)
    _ = auditor.decoder  # another VQ model is refused before anything is read
    return auditor


def _shard_names(auditor: ShardAuditor) -> list[str]:
    """Every shard of which any file stands in a resolution's folder."""
    found = set()
    for folder in (auditor.folder / str(px) for px in auditor.resolutions):
        for file in modified_times(folder):
            suffix = next((one for one in _SUFFIXES if file.endswith(one)), None)
            if suffix and file not in NOT_MANIFESTS and not file.startswith("."):
                found.add(file.removesuffix(suffix))
    return sorted(found)


def _list_problems(folder: Location, names: list[str]) -> list[str]:
    """What the list of finished shards has and the folders have not, and the other way round."""
    try:
        finished = read_finished(folder)
    except DataError as error:
        return [str(error)]
    if finished is None:
        return [f"{folder}: its job has not ended, {len(names)} shards so far; run it again"]
    lost = [f"{folder}: shard {name} is missing" for name in finished if name not in {*names}]
    more = [name for name in names if name not in {*finished}]
    return lost + [f"{folder}: shard {name} is of a job that has not ended" for name in more]


def _reports(
    auditor: ShardAuditor, tasks: list[tuple[str, Location | None]], workers: int
) -> Iterator[ShardReport]:
    """The report of each shard, in order."""
    names, raw_paths = [name for name, _ in tasks], [path for _, path in tasks]
    if workers == 1 or len(tasks) < 2:
        yield from map(auditor.audit, names, raw_paths)
        return
    if_killed = "a process that verifies was killed; if memory is short, set fewer workers"
    with ProcessExecutor(workers, if_killed) as processes:
        yield from processes.map(auditor.audit, names, raw_paths)


class _Summary:
    """The reports put together; the only thing seen across shards is which raw shard came twice."""

    def __init__(self, auditor: ShardAuditor, num_shards: int) -> None:
        self.problems: list[str] = []
        self.tiles: dict[int, list[Tile]] = {}
        self._auditor = auditor
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._damaged: list[str] = []
        self._num_shards = num_shards
        self._shown = set(spread(range(num_shards), max(1, _MAX_TILES // auditor.samples)))
        self._made_of: dict[str, str] = {}  # raw shard: the first shard made of it
        self._seen = 0

    def add(self, report: ShardReport) -> None:
        self.problems += report.problems
        self._counts.update(report.counts)
        self._reasons.update(report.reasons)
        if report.damaged:
            self._damaged.append(report.name)
        if self._seen in self._shown:
            for px, tiles in report.tiles.items():
                self.tiles.setdefault(px, []).extend(tiles)
        self._seen += 1
        raw_name = report.raw_name or self._auditor.claimed_raw_name(report.name)
        if raw_name is not None:
            self._check_origin(report.name, raw_name)

    def _check_origin(self, name: str, raw_name: str) -> None:
        other = self._made_of.setdefault(raw_name, name)
        if other != name:
            twice = self._auditor.shared_keys(other, name)
            self._counts["duplicates"] += twice
            self.problems.append(
                f"{self._auditor.folder}: shards {other} and {name} are both made of raw shard "
                f"{raw_name}: {twice} samples are there twice"
            )

    def result(self, allow_damaged: bool) -> dict[str, Any]:
        if not self._num_shards:
            self.problems.append(f"{self._auditor.folder}: no finished shard")
        counted = ("inputs", "written", "rejected", "partly_written", "duplicates", "decoded")
        return {
            **{name: self._counts[name] for name in counted},
            "reasons": dict(sorted(self._reasons.items())),
            "shards": self._num_shards,
            "damaged_shards": self._damaged,
            "problems": self.problems,
            "ok": not self.problems and (allow_damaged or not self._damaged),
        }
