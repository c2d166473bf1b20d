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

from array import array
from collections.abc import Sequence

import numpy as np

from mgpt.tokens.chat import Outline, Segment

_TRAINED, _PICTURE, _NUMBER_SHIFT = 1, 2, 2


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
        for text_ids, field, trained in outline.segments:
            number = text_ids if field is None else self._places[field]
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
        self._text_T, self._segments_S = text_T, segments_S
        self._num_variants = ends_NVK.shape[1]
        self._ends = ends_NVK.reshape(-1)
        self._fields, self._guided = list(fields), guided

    def read(self, entry: int, variant: int) -> Outline:
        """The outline of a sample, by its place in the task's lengths."""
        end = 2 * (entry * self._num_variants + variant) + 2
        bounds = self._ends[max(0, end - 4) : end].tolist()
        text_start, segment_start = bounds[:2] if end > 2 else (0, 0)
        text_stop, segment_stop = bounds[-2:]
        segments: list[Segment] = [
            (0, self._fields[word >> _NUMBER_SHIFT], bool(word & _TRAINED))
            if word & _PICTURE
            else (word >> _NUMBER_SHIFT, None, bool(word & _TRAINED))
            for word in self._segments_S[segment_start:segment_stop].tolist()
        ]
        return Outline(self._text_T[text_start:text_stop], segments, self._guided)
