"""Rendered scenes with exact truth for every task, as raw samples; pictures become PNG.

mgpt pack source=scenes output=raw/train scenes.num_scenes=4000 scenes.split=train workers=2
"""

import functools
from collections.abc import Iterator

from data_pipeline.raw.shards import Picture, RawSample
from data_pipeline.scenes.corpus import CorpusConfig, iter_samples
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, shard_name
from mgpt.images.png import png_bytes


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive ranges of scene numbers."""
    step, total = cfg.samples_per_shard, cfg.scenes.num_scenes
    return [
        Part(
            shard_name(start // step),
            min(step, total - start),
            functools.partial(_read, cfg.scenes, start, min(start + step, total)),
        )
        for start in range(0, total, step)
    ]


def _read(corpus: CorpusConfig, start: int, stop: int) -> Iterator[RawSample]:
    for sample in iter_samples(corpus, start, stop):
        pictures = {name: Picture(png_bytes(image), "png") for name, image in sample.images.items()}
        yield RawSample(sample.key, pictures, sample.json)
