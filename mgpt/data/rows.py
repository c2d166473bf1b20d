"""Packed rows as arrays, and one rank's share of a step.

    rows = Rows.empty(4, row_tokens=1024, pad=vocab.pad)
    rows.ids.shape                          # (4, 1024), nothing trained

Shape suffixes: B rows, T tokens of a row.
"""

from dataclasses import dataclass

import numpy as np

from mgpt.data.documents import IGNORED

NO_GROUP = -1


@dataclass(frozen=True)
class Rows:
    """Packed rows, [B, T] each.

    `labels[t]` is the target of position t (the next id, where that is trained), else `IGNORED`.
    `positions` start at 0 in each document. `groups` is the place of a token's task in
    `task_names` of the mix, and `sources` that of its source. Padding is one last document of pad
    ids that trains nothing.
    """

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    groups: np.ndarray
    sources: np.ndarray

    @staticmethod
    def empty(num_rows: int, row_tokens: int, pad: int) -> "Rows":
        """Rows of padding alone: ids, labels, positions int64, groups and sources int16."""
        shape = (num_rows, row_tokens)
        return Rows(
            ids=np.full(shape, pad, dtype=np.int64),
            labels=np.full(shape, IGNORED, dtype=np.int64),
            positions=np.tile(np.arange(row_tokens, dtype=np.int64), (num_rows, 1)),
            groups=np.full(shape, NO_GROUP, dtype=np.int16),
            sources=np.full(shape, NO_GROUP, dtype=np.int16),
        )


@dataclass(frozen=True)
class StepRows:
    """One rank's micro-batches of a step, and the counts of the whole step over all ranks.

    `tokens` are those of documents, without padding; `trained_tokens` those with a label.
    """

    micro: list[Rows]
    trained_tokens: int
    documents: int
    tokens: int
