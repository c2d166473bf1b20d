"""What `mgpt pack` is told; the sources and the job that runs them both read it.

>>> cfg = PackConfig(source="folder", input="my_pictures", output="raw/mine")
>>> cfg.samples_per_shard
500
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from data_pipeline.scenes.corpus import CorpusConfig

SourceName = Literal["scenes", "photos", "img2dataset", "folder"]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What to pack, and where to."""

    source: SourceName
    """Where samples come from: scenes (rendered), photos (scikit-image's own), img2dataset
    (webdataset tars), folder (pictures with captions.jsonl)."""
    output: str
    """Folder of the raw shards."""
    input: str | None = None
    """What the source reads: a folder, glob or tar; scenes and photos read nothing."""
    samples_per_shard: int = 500
    """Samples a shard; img2dataset keeps its own shards."""
    workers: int = 1
    """Processes; shards do not depend on it."""
    scenes: CorpusConfig = field(
        default_factory=lambda: CorpusConfig(num_scenes=1000, split="train", area_px=72)
    )
    """The rendered corpus, for source=scenes."""

    def __post_init__(self) -> None:
        known = get_args(SourceName)
        if self.source not in known:
            raise ValueError(f"source={self.source!r} is unknown; choose of {', '.join(known)}")
        for name in ("samples_per_shard", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
