"""Which good samples are left out on purpose; each drop has a reason that is counted.

Filters look at one sample, or at the samples of one raw shard in their order, so the outcome does
not depend on which worker did what. They never change a sample. Duplicates within the whole job
are found beforehand, by `duplicates`, and only looked up here.

    filters = Filters(FilterConfig(min_side_px=256, drop_duplicates=True))
    filters.before_decoding(sample)               # None, or Rejected(key, "caption_too_short", …)
    filters.after_decoding(sample, pictures)      # None, or Rejected(key, "duplicate_picture", …)

The first of several copies that passes the other filters stays, whatever becomes of it after.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from data_pipeline.raw.shards import RawSample, Rejected
from data_pipeline.tokenizing.looks import LOOK_DTYPE, are_alike, look_of

REASONS = {
    "aspect_too_long": "the picture's longer side is above max_aspect times the shorter",
    "caption_few_letters": "fewer letters and digits in the caption than min_letter_share",
    "caption_is_a_name": "the caption is a file name or an address",
    "caption_repeats": "one word makes more of the caption than max_word_share",
    "caption_too_long": "more characters in the caption than max_caption_chars",
    "caption_too_short": "fewer characters in the caption than min_caption_chars",
    "duplicate_picture": "byte for byte the pictures of an earlier sample",
    "lookalike_picture": "a copy of an earlier sample's picture, in other bytes",
    "side_too_short": "the picture's shorter side is below min_side_px",
}

_MIN_WORDS = 4  # fewer say nothing about repetition
_NAME = re.compile(r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|html?|php)|(https?://|www\.)\S+", re.I)
_WORD_CATEGORIES = ("L", "M", "N")  # letters, marks and numbers of any script
MAX_LOOK_BITS = 8


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
    min_letter_share: float = 0.0
    """Share of a caption's visible characters that must be letters or digits of any script."""
    max_word_share: float | None = None
    """Share of a caption's words, of four or more, that may be its most frequent word."""
    drop_name_captions: bool = False
    """Leave out captions that are one file name or address (`IMG_1234.jpg`, `https://…`)."""
    drop_duplicates: bool = False
    """Leave out samples whose pictures are byte for byte those of an earlier one."""
    max_look_bits: int | None = None
    """Leave out pictures whose perceptual hash differs from an earlier one's in at most so many of
    64 bits, with the same colours; 3 finds other sizes and compression. Samples of one picture
    only: a sample of several (an edit, a view) may share its first. null: keep them."""
    duplicates_across: Literal["shard", "job"] = "shard"
    """Where earlier ones are looked for: in the same raw shard, or in all raw shards of the job,
    in the order of (shard, place), which reads every picture once more beforehand."""

    def __post_init__(self) -> None:
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect} must be at least 1")
        if self.max_caption_chars is not None and self.max_caption_chars < self.min_caption_chars:
            raise ValueError(
                f"max_caption_chars={self.max_caption_chars} is below "
                f"min_caption_chars={self.min_caption_chars}"
            )
        for name in ("min_letter_share", "max_word_share"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be a share, 0 to 1")
        if self.max_look_bits is not None and not 0 <= self.max_look_bits <= MAX_LOOK_BITS:
            raise ValueError(f"max_look_bits={self.max_look_bits} must be 0 to {MAX_LOOK_BITS}")

    @property
    def finds_duplicates(self) -> bool:
        return self.drop_duplicates or self.max_look_bits is not None


class Filters:
    """The filters of one raw shard; start a new one for the next.

    Args:
        known: duplicates in this shard by key, where they were found over the whole job.
        smallest_px: side of the square whose area a picture must have to be written at all; what
            is below stands in the way of no other.
    """

    def __init__(
        self,
        cfg: FilterConfig,
        known: Mapping[str, Rejected] | None = None,
        smallest_px: int = 0,
    ) -> None:
        self._cfg = cfg
        self._known = known
        self._smallest_px = smallest_px
        self._contents: dict[bytes, str] = {}
        self._looks = np.zeros(64, LOOK_DTYPE)
        self._look_keys: list[str] = []

    def before_decoding(self, sample: RawSample) -> Rejected | None:
        """Filters on the caption."""
        cfg, caption = self._cfg, sample.meta.get("caption")
        words = caption if isinstance(caption, str) else ""
        if len(words) < cfg.min_caption_chars:
            return Rejected(sample.key, "caption_too_short", f"{len(words)} characters")
        if cfg.max_caption_chars is not None and len(words) > cfg.max_caption_chars:
            return Rejected(sample.key, "caption_too_long", f"{len(words)} characters")
        if not words:
            return None
        if cfg.drop_name_captions and _NAME.fullmatch(words.strip()):
            return Rejected(sample.key, "caption_is_a_name", words)
        if cfg.min_letter_share and letter_share(words) < cfg.min_letter_share:
            return Rejected(sample.key, "caption_few_letters", f"{letter_share(words):.2f}")
        if cfg.max_word_share is not None and word_share(words) > cfg.max_word_share:
            return Rejected(sample.key, "caption_repeats", f"{word_share(words):.2f}")
        return None

    def after_decoding(
        self, sample: RawSample, pictures: Mapping[str, Image.Image]
    ) -> Rejected | None:
        """Filters on the size of the main picture, the first one, and on earlier copies."""
        main = next(iter(pictures.values()))
        shorter, longer = sorted(main.size)
        size = f"{main.width} x {main.height}"
        if shorter < self._cfg.min_side_px:
            return Rejected(sample.key, "side_too_short", size)
        if self._cfg.max_aspect is not None and longer > self._cfg.max_aspect * shorter:
            return Rejected(sample.key, "aspect_too_long", size)
        if self._known is not None:
            return self._known.get(sample.key)
        if self._cfg.finds_duplicates and shorter * longer >= self._smallest_px**2:
            return self._earlier_copy(sample, pictures)
        return None

    def _earlier_copy(
        self, sample: RawSample, pictures: Mapping[str, Image.Image]
    ) -> Rejected | None:
        content, look = fingerprints(sample, pictures, self._cfg)
        found = None
        if self._cfg.drop_duplicates:
            first = self._contents.setdefault(content, sample.key)
            if first != sample.key:
                found = Rejected(sample.key, "duplicate_picture", f"of {first}")
        if look is None:
            return found
        assert self._cfg.max_look_bits is not None
        count = len(self._look_keys)
        alike = are_alike(look, self._looks[:count], self._cfg.max_look_bits)
        if found is None and alike.any():
            first = self._look_keys[int(alike.argmax())]
            found = Rejected(sample.key, "lookalike_picture", f"of {first}")
        if count == len(self._looks):
            self._looks = np.concatenate([self._looks, np.zeros_like(self._looks)])
        self._looks[count] = look
        self._look_keys.append(sample.key)
        return found


def fingerprints(
    sample: RawSample, pictures: Mapping[str, Image.Image], cfg: FilterConfig
) -> tuple[bytes, np.ndarray | None]:
    """16 bytes over all encoded pictures of a sample, and its look; None where it has none.

    A sample has a look where looks are asked for and it has one picture.
    """
    digest = hashlib.sha256()
    for name, picture in sorted(sample.pictures.items()):
        digest.update(f"{name} {len(picture.data)}\0".encode() + picture.data)
    compared = cfg.max_look_bits is not None and len(pictures) == 1
    look = look_of(next(iter(pictures.values()))) if compared else None
    return digest.digest()[:16], look


def letter_share(words: str) -> float:
    """Share of the visible characters that are letters, marks or digits of any script."""
    visible = [character for character in words if not character.isspace()]
    if not visible:
        return 0.0
    letters = sum(unicodedata.category(one)[0] in _WORD_CATEGORIES for one in visible)
    return letters / len(visible)


def word_share(words: str) -> float:
    """Share of the most frequent word; 0 where there are fewer than four words."""
    found = words.casefold().split()
    if len(found) < _MIN_WORDS:
        return 0.0
    return Counter(found).most_common(1)[0][1] / len(found)
