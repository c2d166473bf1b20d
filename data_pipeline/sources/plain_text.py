"""Text for pretraining: records with `text` (or `content`), or the lines of `.txt` files.

A text longer than `text_chars` becomes several samples, cut after an empty line, else a line, a
sentence or a word, so that every row can hold them; nothing of it is lost. Their keys have the
record's number and their place: `000000012-001`.

    mgpt pack source=plain_text input=wiki/ text_chars=8000 output=raw/text
"""

import functools
import re
from collections.abc import Iterator

from data_pipeline.raw.shards import RawSample
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part
from data_pipeline.sources.records import Record, record_parts

TEXT_FIELDS = ("text", "content")
_ENDS = tuple(map(re.compile, (r"\n\s*\n", r"\n", r"[.!?。！？]\s*", r"\s+")))


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive records."""
    return record_parts(cfg, functools.partial(read, text_chars=cfg.text_chars))


def read(record: Record, text_chars: int) -> list[RawSample]:
    """The record's text in pieces of at most `text_chars` characters."""
    name = next((name for name in TEXT_FIELDS if name in record.value), TEXT_FIELDS[0])
    pieces = list(split(record.text(name).strip(), text_chars))
    if len(pieces) == 1:
        return [RawSample(record.key, {}, {"text": pieces[0]})]
    return [
        RawSample(f"{record.key}-{place:03d}", {}, {"text": piece})
        for place, piece in enumerate(pieces)
    ]


def split(text: str, most: int) -> Iterator[str]:
    """Pieces of at most `most` characters that join to the text, none of them blank.

    >>> list(split("One two. Three four.", 10))
    ['One two. ', 'Three ', 'four.']
    """
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > most:
            # The last fitting end in the second half, of the strongest kind that has one there.
            ends = (
                [m.end() for m in kind.finditer(text, start + most // 2, start + most)]
                for kind in _ENDS
            )
            end = next((found[-1] for found in ends if found), start + most)
        yield text[start:end]
        start = end
