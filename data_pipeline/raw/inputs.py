"""Which raw shards an `input=` names, and about how many samples they hold.

    shards = find_raw_shards("raw/train")         # {"00000": Path("raw/train/00000.tar"), …}
    estimate_samples(shards)                      # {"00000": 500, …}, for progress bars only
    raw_identities("raw/train")                   # {"raw/train": "raw:0123…"}, a stage's input

A shard's name is that of its output: the file's name without `.tar`; below an input folder its
path joined by dashes, so `a/00000.tar` and `b/00000.tar` stay apart.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from data_pipeline.raw.shards import RawShardReader
from mgpt.errors import DataError
from mgpt.files.storage import Location, content_stamp, find_glob, locate, read_all
from mgpt.files.walk import Walk, is_hidden, stamp_of, walk
from mgpt.lifecycle.identity import HASHED_BYTES, digest

LOOKED_AT_SAMPLES = 256
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
# Beside `<shard>.tar`: what `mgpt pack` and img2dataset count there.
_STATS_FILES = (("{}.json", "samples"), ("{}_stats.json", "successes"))
_BESIDE = ("_stats.json", ".json", ".parquet", ".idx")  # what belongs to a shard of the same name
# What a stage's own output holds beside its shards.
_BOOKS = frozenset(
    {"DONE", "stage.json", "config.yaml", "metrics.jsonl", "settings.json", "inputs", "details",
     "launch", "wandb"}
)  # fmt: skip
UNPACK = "(compressed: unpack it to a plain .tar)"
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def find_raw_shards(source: str | Sequence[str]) -> dict[str, Location]:
    """Raw shards by name, sorted: of a folder (with its subfolders), a glob, a tar, or a list.

    They are local, at s3:// or gs://, or tars at http(s)://, with `{00000..00099}` for numbers.

    Raises:
        DataError: nothing found, something that is no file, a compressed tar that is named itself,
            or two shards of one name.
    """
    found: dict[str, Location] = {}
    for one in [source] if isinstance(source, str) else source:
        for name, path in _expand(one):
            if not path.is_file():
                raise DataError(f"{path}: no file (a link to nowhere?); remove or restore it")
            if found.setdefault(name, path) != path:
                raise DataError(
                    f"{found[name]} and {path} would both be shard {name!r} of the output; rename "
                    "one, or give the folder above both as input"
                )
    return dict(sorted(found.items()))


def _expand(source: str) -> list[tuple[str, Location]]:
    folder = locate(source)
    passed_over: Counter[str] = Counter()
    if folder.is_dir():
        files, passed_over = _tars(walk(folder))
        named = [("-".join(PurePosixPath(one).parts), folder / one) for one in files]
    else:
        paths = [folder] if folder.is_file() else list(find_glob(source))
        _refuse_compressed(paths)
        named = [(path.name, path) for path in paths if not is_hidden(path.name)]
    if not named:
        held = f"; it holds {counted(passed_over)}" if passed_over else ""
        raise DataError(
            f"{source}: no raw shards there (a folder with *.tar, a glob, or a tar){held}"
        )
    return [(_NOT_IN_NAMES.sub("_", _without_tar(name)), path) for name, path in named]


def _without_tar(name: str) -> str:
    return name[:-4] if name.lower().endswith(".tar") else name


def _tars(found: Walk) -> tuple[list[str], Counter[str]]:
    """The tars of a folder, and what else it holds, counted by kind."""
    others = Counter(found.passed_over)
    tars = [name for name in found.broken if name.lower().endswith(".tar")]
    names = {name for name in found.files if name.lower().endswith(".tar")}
    shards = {_without_tar(name) for name in names}
    for name in found.files.keys() - names:
        kind = next((one for one in COMPRESSED if name.lower().endswith(one)), None)
        is_beside = name.endswith(_BESIDE) and _shard_beside(name) in shards
        is_beside = is_beside or name in _BOOKS or name.partition("/")[0] in _BOOKS
        if kind is not None:
            others[f"{kind} {UNPACK}"] += 1
        elif not is_beside:
            others[PurePosixPath(name).suffix.lower() or "no extension"] += 1
    return sorted([*names, *tars]), others


def _shard_beside(name: str) -> str:
    return next(name.removesuffix(one) for one in _BESIDE if name.endswith(one))


def _refuse_compressed(paths: Sequence[Location]) -> None:
    for path in paths:
        kind = next((one for one in COMPRESSED if path.name.lower().endswith(one)), None)
        if kind is not None:
            how = {"gz": "gunzip", "tgz": "gunzip", "zst": "unzstd", "bz2": "bunzip2", "xz": "unxz"}
            raise DataError(
                f"{path}: a compressed tar ({kind}), which is not read; unpack it to a plain .tar "
                f"({how[kind.rpartition('.')[2]]})"
            )


def passed_over(source: str | Sequence[str]) -> Counter[str]:
    """What folders of raw shards hold beside them, counted by kind."""
    counts: Counter[str] = Counter()
    for one in [source] if isinstance(source, str) else source:
        folder = locate(one)
        if folder.is_dir():
            counts += _tars(walk(folder))[1]
    return counts


def counted(counts: Mapping[str, int]) -> str:
    """Kinds with their counts, the most frequent first, in words."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} × {kind}" for kind, count in order)


def estimate_samples(shards: Mapping[str, Location]) -> dict[str, int]:
    """About how many samples each shard holds: as counted beside it, else by size.

    Of the first shard without a count some samples are read, which stand for the others.
    """
    counts = _counted(shards)
    unknown = [name for name, count in counts.items() if count is None]
    per_byte = 0.0
    if unknown:
        with RawShardReader.open(shards[unknown[0]]) as reader:
            for _ in itertools.islice(reader, LOOKED_AT_SAMPLES):
                pass
        per_byte = reader.inputs / max(reader.num_bytes, 1)
    return {
        name: round(per_byte * shards[name].stat().st_size) if count is None else count
        for name, count in counts.items()
    }


def _counted(shards: Mapping[str, Location]) -> dict[str, int | None]:
    """What the files beside the shards say."""
    counts: dict[str, int | None] = dict.fromkeys(shards)
    for pattern, field in _STATS_FILES:
        names = [name for name, count in counts.items() if count is None]
        files = [shards[name].with_name(pattern.format(shards[name].stem)) for name in names]
        for name, text in zip(names, read_all(files), strict=True):
            try:
                count = json.loads(text or b"")[field]
            except (ValueError, LookupError, TypeError):
                continue
            if isinstance(count, int) and count >= 0:
                counts[name] = count
    return counts


def raw_identities(source: str | Sequence[str], by_content: bool = True) -> dict[str, str]:
    """Each folder, glob or tar of raw shards → its identity.

    Args:
        by_content: whether shards without a recorded sha256 are told apart by what they hold, so
            that a copy is the same input, else by size and modification time, without reading one.
    """
    paths = [source] if isinstance(source, str) else source
    return {path: _raw_identity(path, by_content) for path in paths}


def _raw_identity(source: str, by_content: bool) -> str:
    if source.startswith("http"):
        return f"url:{source}"
    try:
        shards = find_raw_shards(source)
    except DataError:
        return f"name:{source}"
    records = read_all([path.with_suffix(".json") for path in shards.values()])
    stamps = {
        name: _recorded_sha256(record, path) or _stamp(path, by_content)
        for (name, path), record in zip(shards.items(), records)
    }
    return f"raw:{digest(stamps)}"


def _stamp(path: Location, by_content: bool) -> str:
    stamp = None if by_content else stamp_of(path)
    if stamp is None:
        return content_stamp(path, HASHED_BYTES)
    return f"{path.name}:{stamp.num_bytes}:{stamp.version}"


def _recorded_sha256(record: bytes | None, shard: Location) -> str | None:
    """The sha256 that `mgpt pack` left beside a shard, in the form of `content_stamp`."""
    try:
        stored = json.loads(record or b"")
        is_of_shard = stored["bytes"] == shard.stat().st_size
        return str(stored["sha256"])[:16] if is_of_shard else None
    except (ValueError, LookupError, TypeError, OSError):
        return None
