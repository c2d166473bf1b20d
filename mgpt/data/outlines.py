"""The text of each document as ids, kept so that training encodes none: outlines in three arrays.

An outline is what `mgpt.tokens.chat.outline` makes of a sample as one task and template variant:
its text's ids, and where pictures stand among them. Kept are those of a whole data set, document
after document, 2 bytes an id of text; they depend on text, templates and vocabulary as lengths do,
and stand beside them (`mgpt.data.lengths`).

    text_T      uint16, ids of text and control tokens
    segments_S  uint32: bit 0 trained; bit 1 a picture; above them its field's place in the table of
                fields, or the number of ids of a text
    ends_NVK    uint64 [samples, variants, 2], where a document ends in the two before

    builder = OutlineBuilder(["image"])
    builder.add(outline(item, vocab))               # for each sample, for each variant
    outlines = Outlines(*builder.arrays(num_variants=1), ["image"], guided=True)
    outlines.read(0, 0)                             # that outline again
"""

import functools
import struct
from array import array
from collections.abc import Sequence

import numpy as np

from mgpt.tokens.chat import Outline, Segment, pictures_of

_TRAINED, _PICTURE, _NUMBER_SHIFT = 1, 2, 2
_WORD_BYTES, _END_BYTES = 4, 16  # of an entry of `segments_S`, of a row of `ends_NVK`
_ENDS = struct.Struct("<4Q")  # two rows of `ends_NVK`, read in a quarter of numpy's time


class OutlineBuilder:
    """Collects outlines, documents of one sample after one another, in the order of its variants.

    Args:
        fields: the table of picture fields.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(fields)}
        self._text, self._segments, self._ends = array("H"), array("I"), array("Q")

    def add(self, outline: Outline) -> None:
        """The next document."""
        self._text.frombytes(outline.text_ids.astype("=u2").tobytes())
        for num_text, field, trained in outline.segments:
            number = num_text if field is None else self._places[field]
            kind = _TRAINED * trained + _PICTURE * (field is not None)
            self._segments.append(number << _NUMBER_SHIFT | kind)
        self._ends.extend((len(self._text), len(self._segments)))

    def arrays(self, num_variants: int) -> list[np.ndarray]:
        """`text_T`, `segments_S`, `ends_NVK`."""
        return [
            np.array(self._text, dtype="<u2"),
            np.array(self._segments, dtype="<u4"),
            np.array(self._ends, dtype="<u8").reshape(-1, num_variants, 2),
        ]


class Outlines:
    """The outlines of a data set as one task, by entry and variant; arrays may be mapped files.

    Args:
        guided: whether the task's documents are conversations (`Outline.guided`).
    """

    def __init__(
        self,
        text_T: np.ndarray,
        segments_S: np.ndarray,
        ends_NVK: np.ndarray,
        fields: Sequence[str],
        guided: bool,
    ) -> None:
        self._text_T, self._num_variants = text_T, ends_NVK.shape[1]
        self._segments = segments_S.reshape(-1).view(np.uint8).data
        self._ends = ends_NVK.reshape(-1).view(np.uint8).data
        self._first_ends = ends_NVK.reshape(-1)[:2].tolist()
        self._fields, self._guided = tuple(fields), guided

    def read(self, entry: int, variant: int) -> Outline:
        """The outline of a sample, by its place in the task's lengths."""
        place = entry * self._num_variants + variant
        if place:
            start, first, stop, last = _ENDS.unpack_from(self._ends, (place - 1) * _END_BYTES)
        else:
            start, first, (stop, last) = 0, 0, self._first_ends
        words = self._segments[first * _WORD_BYTES : last * _WORD_BYTES].tobytes()
        segments, pictures = _read_segments(words, self._fields)
        return Outline(self._text_T[start:stop], segments, pictures, self._guided)


@functools.lru_cache(maxsize=4096)
def _read_segments(
    words: bytes, fields: tuple[str, ...]
) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    """The segments that `OutlineBuilder` wrote as these bytes, and their pictures; kept, since the
    documents of a task are much alike."""
    segments: list[Segment] = []
    for word in np.frombuffer(words, "<u4").tolist():
        number, trained = word >> _NUMBER_SHIFT, bool(word & _TRAINED)
        picture = fields[number] if word & _PICTURE else None
        segments.append((0 if word & _PICTURE else number, picture, trained))
    return tuple(segments), pictures_of(segments)
