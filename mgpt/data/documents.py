"""One document of a component: ids and labels, from its kept outline and its codes.

The outline holds the text as ids, so nothing is encoded here, and no JSON is read. What comes out
is held against the counts that the document was packed by.

    ids, labels = np.empty(tokens, np.int64), np.full(tokens, IGNORED)
    write_document(component, vocab, Drawn(entry=7, variant=0, dropped=False), ids, labels)
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mgpt.data.lengths import LENGTHS_FOLDER
from mgpt.data.source import Component
from mgpt.errors import DataError
from mgpt.tokens.vocab import Vocabulary

IGNORED = -100


class Drawn(NamedTuple):
    """Which document: the sample's place in the component's lengths, and what was drawn for it."""

    entry: int
    variant: int
    dropped: bool


def write_document(
    part: Component,
    vocab: Vocabulary,
    drawn: Drawn,
    ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> int:
    """Write ids [tokens], and as the label of each position that has a trained token after it,
    that token; all other labels stay as they are. How many labels were written.

    Raises:
        DataError: a damaged sample, or one of other length than `ids` have.
    """
    entry, variant, dropped = drawn
    index = part.lengths.samples_N.item(entry)
    outline = part.lengths.outlines.read(entry, variant)
    if dropped:
        outline = outline.drop_context()
    codes = part.dataset.codes(index, outline.pictures)
    try:
        return outline.write(codes, vocab, ids, labels)
    except DataError as error:
        raise DataError(
            f"{describe(part, index)}: {error}. Run mgpt verify on its folder; where that finds "
            f"nothing, delete {part.dataset.folder / LENGTHS_FOLDER} and start again"
        ) from error


def describe(part: Component, index: int) -> str:
    """A sample as messages name it."""
    shard, number = part.dataset.locate(index)
    return f"{part.dataset.folder}/{shard.name}.tar: sample {shard.key(number)!r} as {part.task}"
