"""Documents as long as real ones (tests/vectors/lengths.npz), of random ids, and rows of them.

>>> [len(ids_T) for ids_T, _ in draw_documents([40, 30], vocab_size=512)]
[40, 30]
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgpt.data.packing import plan_rows
from mgpt.parallel.backend import MicroBatch

IGNORED, PROMPT_TOKENS = -100, 30
_LENGTHS = Path(__file__).parents[1] / "vectors" / "lengths.npz"

Document = tuple[Tensor, Tensor]
"""Ids and labels."""


def real_lengths(documents: int, which: str = "mixed", shorter: int = 1) -> list[int]:
    """The first lengths of a mix, divided by `shorter`.

    Args:
        which: 512, 768, 1024 px; thirds of these; mixed: these and text.
    """
    with np.load(_LENGTHS) as lengths:
        return [max(2, int(length) // shorter) for length in lengths[which][:documents]]


def draw_documents(lengths: Sequence[int], vocab_size: int) -> list[Document]:
    """Documents whose prompt is not trained."""
    generator = torch.Generator().manual_seed(0)
    documents: list[Document] = []
    for length in lengths:
        ids_T = torch.randint(3, vocab_size, (length,), generator=generator)
        labels_T = torch.cat([ids_T[1:], torch.tensor([IGNORED])])
        labels_T[: min(PROMPT_TOKENS, length // 2)] = IGNORED
        documents.append((ids_T, labels_T))
    return documents


def pack(documents: Sequence[Document], row_tokens: int) -> MicroBatch:
    """The documents in rows of `row_tokens`; what is left of a row is a document of padding."""
    rows = []
    for row in plan_rows([len(ids_T) for ids_T, _ in documents], row_tokens):
        room = row_tokens - sum(len(documents[index][0]) for index in row)
        parts = [documents[index] for index in row]
        if room:
            parts.append((torch.ones(room, dtype=torch.int64), torch.full((room,), IGNORED)))
        positions = torch.cat([torch.arange(len(ids_T)) for ids_T, _ in parts])
        ids, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        rows.append((ids, labels, positions))
    return MicroBatch(*(torch.stack(column) for column in zip(*rows, strict=True)))


def row_lengths(row_tokens: int, which: str, shorter: int = 1, skip: int = 0) -> list[int]:
    """Lengths of documents, one after another from number `skip`, that together fit one row."""
    lengths = real_lengths(skip + 4096, which, shorter)[skip:]
    ends = itertools.accumulate(lengths)
    return [length for length, end in zip(lengths, ends, strict=True) if end <= row_tokens]
