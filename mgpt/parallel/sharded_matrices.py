"""Matrices split by rows over ranks, made whole one at a time on one rank each.

Each rank owns some of the matrices: two all-to-alls bring the rows of each to its owner and the
rows of the result back. A rank holds its own share whole, never all of them, and every matrix is
worked on once. Matrices travel in buckets, since each collective costs more than a small matrix.

    >>> matrices = ShardedMatrices(mesh.get_group(), torch.device("cpu"))
    >>> halves = matrices.map([rows], [shape], lambda whole: [matrix / 2 for matrix in whole])
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mgpt.optim.rule import MatrixFunction, buckets_of

__all__ = ["OWNED_NUMEL", "ShardedMatrices"]

OWNED_NUMEL = 1 << 25
"""Elements that a rank makes whole at once, as long as one matrix has fewer."""


class ShardedMatrices:
    """Of matrices split along their first dimension as torch.chunk does; see `WholeMatrices`."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.device = device
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)

    def buckets(self, shapes: Sequence[torch.Size]) -> list[list[int]]:
        return buckets_of(shapes, OWNED_NUMEL, self._size)

    def map(
        self, rows: Sequence[Tensor], shapes: Sequence[torch.Size], function: MatrixFunction
    ) -> list[Tensor]:
        if self._size == 1:
            return function(rows)
        numels = [[self._numel(shape, rank) for shape in shapes] for rank in range(self._size)]
        owned = [range(rank, len(shapes), self._size) for rank in range(self._size)]
        to_owners = [sum(numels[self._rank][i] for i in indices) for indices in owned]
        to_me = [sum(of_rank[i] for i in owned[self._rank]) for of_rank in numels]

        sent = torch.cat([rows[i].reshape(-1) for indices in owned for i in indices])
        received = self._exchange(sent.to(self.device), to_owners, to_me)
        of_ranks = received.split(to_me)
        pieces = [
            part.split([numels[rank][i] for i in owned[self._rank]])
            for rank, part in enumerate(of_ranks)
        ]
        whole = [
            torch.cat([piece[place] for piece in pieces]).view(shapes[i])
            for place, i in enumerate(owned[self._rank])
        ]
        made = [matrix.contiguous().view(-1) for matrix in function(whole)]
        cut = [
            matrix.split([of_rank[i] for of_rank in numels])
            for i, matrix in zip(owned[self._rank], made, strict=True)
        ]
        sent = torch.cat([parts[rank] for rank in range(self._size) for parts in cut] or [sent[:0]])
        returned = self._exchange(sent, to_me, to_owners).to(rows[0].device)
        results = list(rows)
        order = [i for indices in owned for i in indices]
        parts = returned.split([numels[self._rank][i] for i in order])
        for i, part in zip(order, parts, strict=True):
            results[i] = part.view(rows[i].shape)
        return results

    def _exchange(self, sent: Tensor, out_splits: list[int], in_splits: list[int]) -> Tensor:
        received = sent.new_empty(sum(in_splits))
        dist.all_to_all_single(received, sent, in_splits, out_splits, group=self._group)
        return received

    def _numel(self, shape: torch.Size, rank: int) -> int:
        """Elements of a matrix on a rank."""
        rows_each = -(-shape[0] // self._size)
        num_rows = min(rows_each, max(0, shape[0] - rank * rows_each))
        return num_rows * math.prod(shape[1:])
