"""Webdataset tars as img2dataset writes them, checked and written anew, shard for shard.

What is broken in them is left out and listed; what remains is a raw shard that reads cleanly.
`mgpt tokenize` reads img2dataset's tars directly, so this step is for keeping a clean copy.

    mgpt pack source=img2dataset input=laion/ output=raw/laion
"""

import functools
from collections.abc import Iterator, Mapping

from data_pipeline.raw.inputs import estimate_samples, find_raw_shards
from data_pipeline.raw.shards import RawSample, RawShardReader, Rejected
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, SourceFile
from mgpt.errors import ConfigError
from mgpt.files.storage import Location
from mgpt.files.walk import stamp_of


def parts(cfg: PackConfig) -> list[Part]:
    """One part a tar, under the tar's own name."""
    if cfg.input is None:
        raise ConfigError("source=img2dataset needs input=<folder, glob or tar of raw shards>")
    shards = find_raw_shards(cfg.input)
    counts = estimate_samples(shards)
    return [
        Part(name, counts[name], functools.partial(_read, path, cfg.members), files=(path,))
        for name, path in shards.items()
    ]


def _read(
    path: Location, members: Mapping[str, str]
) -> Iterator[RawSample | Rejected | SourceFile]:
    stamp = stamp_of(path)
    with RawShardReader.open(path, members) as reader:
        yield from reader
        if reader.damaged:
            yield Rejected(path.name, "damaged_shard", reader.damaged)
        yield SourceFile("", stamp, reader.sha256[:16])
