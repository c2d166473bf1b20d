"""What `mgpt pack` is told, and where its sources stand; the sources and the job both read it.

>>> cfg = PackConfig(source="folder", input="my_pictures", output="raw/mine")
>>> cfg.samples_per_shard
500
"""

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.raw.member_names import check_members
from data_pipeline.scenes.corpus import CorpusConfig

SOURCES: dict[str, str] = {
    "scenes": "data_pipeline.sources.scenes",
    "photos": "data_pipeline.sources.photos",
    "img2dataset": "data_pipeline.sources.img2dataset",
    "folder": "data_pipeline.sources.folder",
    "conversations": "data_pipeline.sources.conversations",
    "chat": "data_pipeline.sources.chat",
    "plain_text": "data_pipeline.sources.plain_text",
    "interleaved": "data_pipeline.sources.interleaved",
    "coco_keypoints": "data_pipeline.sources.coco_keypoints",
}
"""The module of each source; its function `parts` gives the samples."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What to pack, and where to."""

    source: str
    """Where samples come from: scenes (rendered), photos (scikit-image's own), img2dataset
    (webdataset tars), folder (pictures, with captions.jsonl or .parquet or without), conversations
    (the published training JSON), chat (text-only conversations), plain_text, interleaved (texts
    and pictures in turn), coco_keypoints; or a Python file with a function `parts`, such as
    my_source.py."""
    output: str
    """Folder of the raw shards."""
    input: str | None = None
    """What the source reads: a file, folder, glob or tar; scenes and photos read nothing."""
    pictures: str | None = None
    """Folder of the pictures that the input's records name; null for the input's own folder."""
    image_column: str | None = None
    """Field of a record that holds or names its picture; null for the usual ones (file, file_name,
    image)."""
    caption_column: str | None = None
    """Field of a record that holds its caption; null for the usual ones (caption, text, captions,
    texts)."""
    caption_choice: Literal["first", "drawn"] = "first"
    """Which of a list of captions: the first, or one drawn by the sample's key."""
    members: dict[str, str] = field(default_factory=dict)
    """For img2dataset: fields of members under other names, by the ending behind the key:
    'members={input.jpg: image, output.jpg: edit_1, caption: txt}'."""
    samples_per_shard: int = 500
    """Samples a shard; img2dataset keeps its own shards."""
    text_chars: int = 8000
    """Characters that a sample of plain_text has at most; a longer text becomes several."""
    workers: int = 1
    """Processes; shards do not depend on it."""
    scenes: CorpusConfig = field(
        default_factory=lambda: CorpusConfig(num_scenes=1000, split="train", area_px=72)
    )
    """The rendered corpus, for source=scenes."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES and not self.source.endswith(".py"):
            raise ValueError(
                f"source={self.source!r} is unknown; choose of {', '.join(SOURCES)}, or give a "
                "Python file"
            )
        check_members(self.members)
        for name in ("samples_per_shard", "text_chars", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
