"""What a source hands to `mgpt pack`: its samples, cut into parts that become one raw shard each.

A source is one file with one function, `parts`, listed in `SOURCES` of
`data_pipeline/sources/pack_config.py` or given by its path. Parts are read lazily and in any order,
by different processes, so each reads itself from its own beginning, and gives the same samples
every time. For records of JSON or parquet files `data_pipeline.sources.records` has all but the
meaning.

    def parts(cfg: PackConfig) -> list[Part]:
        names = sorted(os.listdir(cfg.input))
        return [Part("00000", len(names), functools.partial(read_pictures, cfg.input, names))]
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data_pipeline.raw.shards import RawSample, Rejected
from mgpt.files.storage import Location
from mgpt.files.walk import FileStamp


@dataclass(frozen=True)
class SourceFile:
    """A file that a part was read from, or that a record names and that is not there.

    name: relative to the folder of pictures, or absolute; empty for the part's own file.
    stamp: None if there is no such file.
    key: of the sample that is rejected without it.
    """

    name: str
    stamp: FileStamp | None
    sha256: str = ""
    key: str = ""


@dataclass(frozen=True)
class Part:
    """One raw shard to be: its name, about how many samples it will have, and how to read them.

    `read` yields a `Rejected` for what it cannot use; nothing is left out without one. It may yield
    a `SourceFile` for each file it has read, so that a later run notices another one in its place.
    """

    name: str
    num_samples: int
    read: Callable[[], Iterator[RawSample | Rejected | SourceFile]]
    piece: Any = None
    """What of the input it is, as JSON (`data_pipeline.sources.plan`); None: its name says it."""
    files: tuple[Location, ...] = ()
    """Files that it takes records from."""


def shard_name(number: int) -> str:
    """img2dataset's names: five digits."""
    return f"{number:05d}"
