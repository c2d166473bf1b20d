"""How long a run's documents are, and which row length holds them best.

Counted from the shards where they are at hand. Otherwise a document is taken to be one picture of
the run's resolution, which is nearly all of it: (H/16)(W/16 + 1) + 4 tokens.

    >>> assumed_lengths([(512, 512), (1024, 256)])
    DocumentLengths(mean_tokens=1052.1, longest_tokens=1060, ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mgpt.data.forecast import steps_of_mix
from mgpt.data.mixer import Mixer
from mgpt.data.packing import choose_row_tokens, fill_ratio
from mgpt.data.source import DataConfig, max_documents_tokens, open_components

if TYPE_CHECKING:
    from mgpt.tokens.vocab import Vocabulary

__all__ = ["DocumentLengths", "assumed_lengths", "count_lengths"]

MOST_ROW_TOKENS = 32_768
_LATENT_PX = 16
_ANY_LENGTH = 1 << 31
_OWN_LENGTHS = {"multi_view": 9_664}  # 16 views of 384 px, whatever the resolution


@dataclass(frozen=True)
class DocumentLengths:
    """Lengths in tokens.

    mean_tokens: over tokens, not over documents: what a token's attention looks back on.
    longest_tokens: of all documents, not of a sample.
    origin: where this is known from, for people.
    fill: share of the run's row length that is filled; None where rows are not known.
    steps: those until every source has reached its cap of epochs; None where one has no cap.
    best_row_tokens, best_fill: the row length up to `MOST_ROW_TOKENS` that is filled most.
    """

    mean_tokens: float
    longest_tokens: int
    origin: str
    fill: float | None = None
    best_row_tokens: int | None = None
    best_fill: float | None = None
    steps: int | None = None


def count_lengths(data: DataConfig, vocabulary: Vocabulary, seed: int) -> DocumentLengths:
    """Lengths of the run's own documents: two windows of its mix, and the longest of all.

    Raises whatever `open_components` refuses, rows that are too short for a document excepted.
    """
    components = open_components(replace(data, row_tokens=_ANY_LENGTH), vocabulary)
    longest = max(max_documents_tokens(components).values())
    row_tokens = max(longest, data.row_tokens)
    mixer = Mixer(components, seed, row_tokens, data.window_documents, data.guidance_drop)
    tokens_N = np.concatenate([mixer.window(number).tokens_N for number in (0, 1)])
    best, best_fill = None, None
    if longest <= MOST_ROW_TOKENS:
        best = max(longest, choose_row_tokens(tokens_N, MOST_ROW_TOKENS, data.window_documents))
        best_fill = fill_ratio(tokens_N, best, data.window_documents)
    fits = longest <= data.row_tokens
    return DocumentLengths(
        mean_tokens=float(np.square(tokens_N.astype(float)).sum() / tokens_N.sum()),
        longest_tokens=longest,
        origin=f"counted: {sum(map(len, components)):,} samples",
        fill=fill_ratio(tokens_N, data.row_tokens, data.window_documents) if fits else None,
        best_row_tokens=best,
        best_fill=best_fill,
        steps=steps_of_mix(mixer, data)[0],
    )


def assumed_lengths(
    sizes_px: Sequence[tuple[int, int]], tasks: Iterable[str] = ()
) -> DocumentLengths:
    """One picture a document, of (width, height) sizes that come equally often.

    `tasks` name those of the mix, some of which have a length of their own.
    """
    tokens_N = np.array([h // _LATENT_PX * (w // _LATENT_PX + 1) + 4 for w, h in sizes_px])
    return DocumentLengths(
        mean_tokens=float(np.square(tokens_N).sum() / tokens_N.sum()),
        longest_tokens=max(int(tokens_N.max()), *(_OWN_LENGTHS.get(task, 0) for task in tasks), 0),
        origin="assumed: a picture each, its text not counted; no shards are at hand",
    )
