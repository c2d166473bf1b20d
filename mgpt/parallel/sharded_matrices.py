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

from mgpt.optim.rule import WHOLE_NUMEL, MatrixFunction, buckets_of

__all__ = ["ShardedMatrices"]


class ShardedMatrices:
    """Of matrices split along their first dimension as torch.chunk does; see `WholeMatrices`."""

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`device`: where matrices are made whole, wherever their rows are kept."""
        self.dtype = dtype
        self._group, self._device = group, device
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)

    def buckets(self, shapes: Sequence[torch.Size]) -> list[list[int]]:
        return buckets_of(shapes, WHOLE_NUMEL, self._size)

    def map(
        self, rows: Sequence[Tensor], shapes: Sequence[torch.Size], function: MatrixFunction
    ) -> list[Tensor]:
        if self._size == 1:
            return function(rows)
        numels = [[self._numel(shape, rank) for shape in shapes] for rank in range(self._size)]
        whole = self._gather(rows, shapes, numels)
        return self._scatter(function(whole), rows, numels)

    def _owned(self, rank: int, num_matrices: int) -> range:
        return range(rank, num_matrices, self._size)

    def _gather(
        self, rows: Sequence[Tensor], shapes: Sequence[torch.Size], numels: list[list[int]]
    ) -> list[Tensor]:
        """The matrices that this rank owns, whole. `numels`: elements by rank and matrix."""
        mine = self._owned(self._rank, len(shapes))
        to_owners, to_me = self._splits(numels)
        sent = torch.cat([rows[i].reshape(-1) for i in self._by_owner(len(shapes))])
        received = self._exchange(sent.to(self._device), to_owners, to_me).split(to_me)
        pieces = [
            of_rank.split([numels[rank][i] for i in mine]) for rank, of_rank in enumerate(received)
        ]
        return [
            torch.cat([of_rank[place] for of_rank in pieces]).view(shapes[i])
            for place, i in enumerate(mine)
        ]

    def _scatter(
        self, whole: Sequence[Tensor], rows: Sequence[Tensor], numels: list[list[int]]
    ) -> list[Tensor]:
        """This rank's rows of all matrices, each given whole on its owner."""
        mine = self._owned(self._rank, len(rows))
        to_owners, to_me = self._splits(numels)
        cut = [
            matrix.contiguous().view(-1).split([of_rank[i] for of_rank in numels])
            for i, matrix in zip(mine, whole, strict=True)
        ]
        nothing = torch.empty(0, dtype=rows[0].dtype, device=self._device)
        sent = torch.cat([nothing, *(of[rank] for rank in range(self._size) for of in cut)])
        received = self._exchange(sent, to_me, to_owners).to(rows[0].device)
        order = self._by_owner(len(rows))
        parts = received.split([numels[self._rank][i] for i in order])
        results = list(rows)
        for i, part in zip(order, parts, strict=True):
            results[i] = part.view(rows[i].shape)
        return results

    def _by_owner(self, num_matrices: int) -> list[int]:
        """All matrices, those of the first owner first."""
        return [i for rank in range(self._size) for i in self._owned(rank, num_matrices)]

    def _splits(self, numels: list[list[int]]) -> tuple[list[int], list[int]]:
        """Elements that this rank sends to each owner, and gets from each rank as an owner."""
        count = len(numels[0])
        to_owners = [
            sum(numels[self._rank][i] for i in self._owned(rank, count))
            for rank in range(self._size)
        ]
        mine = self._owned(self._rank, count)
        return to_owners, [sum(of_rank[i] for i in mine) for of_rank in numels]

    def _exchange(self, sent: Tensor, out_splits: list[int], in_splits: list[int]) -> Tensor:
        received = sent.new_empty(sum(in_splits))
        dist.all_to_all_single(received, sent, in_splits, out_splits, group=self._group)
        return received

    def _numel(self, shape: torch.Size, rank: int) -> int:
        """Elements of a matrix on a rank."""
        rows_each = -(-shape[0] // self._size)
        num_rows = min(rows_each, max(0, shape[0] - rank * rows_each))
        return num_rows * math.prod(shape[1:])
