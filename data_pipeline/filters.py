"""Which good samples are left out on purpose; each drop has a reason that is counted.

Filters look at one sample, or at the samples of one raw shard in their order, so the outcome does
not depend on which worker did what. They never change a sample.

    filters = Filters(FilterConfig(min_side_px=256, drop_duplicates=True))
    filters.before_decoding(sample)               # None, or Rejected(key, "duplicate_picture", …)
    filters.after_decoding(sample.key, width_px=640, height_px=427)
"""

import hashlib
from dataclasses import dataclass

from data_pipeline.raw_shards import RawSample, Rejected


@dataclass(frozen=True)
class FilterConfig:
    """What to leave out; the defaults leave out nothing."""

    min_side_px: int = 0
    """Shortest side a picture must have, in pixels of the file."""
    max_aspect: float | None = None
    """Longer side over shorter side; crops lose much of what lies above 4."""
    min_caption_chars: int = 0
    """Characters a caption must have; a sample without a caption has 0."""
    max_caption_chars: int | None = None
    """Characters a caption may have."""
    drop_duplicates: bool = False
    """Leave out pictures that are byte for byte an earlier one of the same raw shard."""

    def __post_init__(self) -> None:
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect} must be at least 1")
        if self.max_caption_chars is not None and self.max_caption_chars < self.min_caption_chars:
            raise ValueError(
                f"max_caption_chars={self.max_caption_chars} is below "
                f"min_caption_chars={self.min_caption_chars}"
            )


class Filters:
    """The filters of one raw shard; start a new one for the next."""

    def __init__(self, cfg: FilterConfig) -> None:
        self._cfg = cfg
        self._seen: set[bytes] = set()

    def before_decoding(self, sample: RawSample) -> Rejected | None:
        """Filters on the caption and on the encoded bytes."""
        caption = sample.meta.get("caption")
        num_chars = len(caption) if isinstance(caption, str) else 0
        highest = self._cfg.max_caption_chars
        if num_chars < self._cfg.min_caption_chars:
            return Rejected(sample.key, "caption_too_short", f"{num_chars} characters")
        if highest is not None and num_chars > highest:
            return Rejected(sample.key, "caption_too_long", f"{num_chars} characters")
        if self._cfg.drop_duplicates and sample.pictures:
            digest = hashlib.sha256()
            for name, picture in sorted(sample.pictures.items()):
                digest.update(f"{name} {len(picture.data)}\0".encode() + picture.data)
            if digest.digest() in self._seen:
                return Rejected(sample.key, "duplicate_picture")
            self._seen.add(digest.digest())
        return None

    def after_decoding(self, key: str, width_px: int, height_px: int) -> Rejected | None:
        """Filters on the size of the sample's main picture."""
        shorter, longer = sorted((width_px, height_px))
        size = f"{width_px} x {height_px}"
        if shorter < self._cfg.min_side_px:
            return Rejected(key, "side_too_short", size)
        if self._cfg.max_aspect is not None and longer > self._cfg.max_aspect * shorter:
            return Rejected(key, "aspect_too_long", size)
        return None
