"""What became of the samples of one shard, in words.

It stands in the `<shard>.json` of mgpt pack, and in `<output>/details/<shard>.json` of tokenize:

    {"pictures": 480, "captions": 471,
     "explained": [{"key": "000000017", "reason": "bad_json", "detail": "…", "file": "a.jsonl",
                   "line": 18}]}

`pictures` are samples with one that may have a caption, `captions` those of them that have one. A
rejection at some resolutions only has its `px`. Written before what says that the shard is done; a
rerun for a resolution that was missing keeps what the others said.

    details = Details()
    details.count(sample)
    details.reject(Rejected("000000017", "bad_json", "…"))
    details.write(output, "00000")
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.raw import shards
from data_pipeline.raw.shards import RawSample, Rejected
from data_pipeline.tokenizing import filters
from mgpt.files.storage import Location, read_all, write_new

FOLDER = "details"

REASONS = {
    **shards.REASONS,
    **filters.REASONS,
    "bad_conversation": "turns that are none, or without text",
    "bad_csv": "a row with more or fewer cells than columns",
    "bad_document": "texts and pictures that do not fit together",
    "bad_keypoints": "a person without 17 joints of three numbers",
    "bad_turns": "turns that do not alternate, or a last one without an answer",
    "damaged_shard": "the tar is damaged; its whole samples are written",
    "image_count": "not as many image symbols as pictures",
    "image_symbol": "an image symbol, or a picture, in a text-only source",
    "missing_picture": "no picture, or one that is named and not there",
    "missing_text": "a text that must be there is not, or is empty",
    "no_keypoints": "no person with a visible joint",
    "record_too_large": "a record above the limit of one member",
    "size_mismatch": "a picture field of another shape than the picture",
    "too_many_pixels": "a picture above max_pixels, or one that takes as much memory",
    "too_small": "smaller than the resolution; enlarge=true scales it up",
    "undecodable": "a picture that does not decode",
    "unknown_extension": "a picture of a kind that is not known",
    "unknown_task": "`tasks` names one that is not known",
    "unsupported_media": "a video, a sound, or a part of a message that is not text or a picture",
    "unreadable_picture": "a picture of a kind that is not read; convert it to JPEG or PNG",
}
"""What each reason means, of packing and tokenising."""


_TURNS = ("dialog", "conversations", "interleaved")  # samples with these have no caption


@dataclass
class Details:
    """Counts and rejections of one shard."""

    pictures: int = 0
    captions: int = 0
    explained: list[dict[str, Any]] = field(default_factory=list)

    def count(self, sample: RawSample) -> None:
        if sample.pictures and not any(sample.meta.get(name) for name in _TURNS):
            caption = sample.meta.get("caption")
            self.pictures += 1
            self.captions += isinstance(caption, str) and bool(caption.strip())

    def reject(self, rejected: Rejected, px: int | None = None) -> None:
        entry: dict[str, Any] = {"key": rejected.key, "reason": rejected.reason}
        detail = rejected.detail or REASONS.get(rejected.reason, "")
        # Half a surrogate pair may be what a rejection is about.
        entry["detail"] = detail.encode("utf-8", "backslashreplace").decode()
        if rejected.file:
            entry["file"] = rejected.file
        if rejected.line is not None:
            entry["line"] = rejected.line + 1
        if px is not None:
            entry["px"] = px
        self.explained.append(entry)

    def write(
        self,
        output: Location,
        unit: str,
        resolutions: Collection[int],
        before_replace: Callable[[], None] | None = None,
    ) -> None:
        """Writes them, as the holder of the unit's claim; of an earlier file those at other
        resolutions than these stay."""
        path = output / FOLDER / f"{unit}.json"
        (earlier,) = read_details(output, [unit])
        self.explained += [
            one for one in earlier.explained if one.get("px", 0) not in (0, *resolutions)
        ]
        text = json.dumps(self.as_json(), separators=(",", ":"))
        write_new(path, text.encode() + b"\n", before_replace)

    def as_json(self) -> dict[str, Any]:
        """All of it, rejections by key."""
        self.explained.sort(key=lambda one: (one["key"], one.get("px", 0), one["reason"]))
        return dict(vars(self))


def read_details(output: Location, units: Iterable[str]) -> list[Details]:
    """Those of shards; empty ones for shards of an older version."""
    found = []
    for data in read_all([output / FOLDER / f"{unit}.json" for unit in units]):
        try:
            found.append(Details(**json.loads(data or b"{}")))
        except (ValueError, TypeError):
            found.append(Details())
    return found


def rows(reasons: Counter[str] | dict[str, int]) -> list[list[Any]]:
    """Reason, count and meaning, for a table."""
    return [[reason, count, REASONS.get(reason, "")] for reason, count in sorted(reasons.items())]


def share_of_captions(details: Sequence[Details]) -> str:
    """How many pictures have a caption, in words; empty without pictures."""
    pictures = sum(one.pictures for one in details)
    captions = sum(one.captions for one in details)
    if not pictures:
        return ""
    return (
        f"captions: {captions:,} of {pictures:,} samples with pictures ({captions / pictures:.0%})"
    )
