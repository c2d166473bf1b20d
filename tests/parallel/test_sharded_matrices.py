"""Sharded matrices: each made whole once, on one rank, and its rows back where they belong."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from rank_runs import start_ranks

from mgpt.optim.rule import buckets_of
from mgpt.parallel.dist import init_distributed
from mgpt.parallel.sharded_matrices import ShardedMatrices

RANKS = 3
SIZES = ((7, 5), (2, 9), (12, 4), (7, 5), (1, 3), (6, 6), (4, 12))
SHAPES = [torch.Size(size) for size in SIZES]
"""With rows that 3 ranks do not share evenly, and matrices of fewer rows than ranks."""


def drawn() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def triple(whole: list[Tensor]) -> list[Tensor]:
    """A function that needs all of a matrix."""
    return [matrix @ matrix.mT @ matrix for matrix in whole]


def rows_of(matrix: Tensor, rank: int) -> Tensor:
    parts = matrix.chunk(RANKS)
    return parts[rank].clone() if rank < len(parts) else matrix[:0].clone()


def one_rank(folder: Path) -> None:
    world = init_distributed()
    group = dist.group.WORLD
    assert group is not None
    matrices = ShardedMatrices(group, world.device)
    seen: list[list[int]] = []

    def noted(whole: list[Tensor]) -> list[Tensor]:
        seen.extend(list(matrix.shape) for matrix in whole)
        return triple(whole)

    mine = [rows_of(matrix, world.rank) for matrix in drawn()]
    (bucket,) = matrices.buckets(SHAPES)
    made = matrices.map([mine[i] for i in bucket], [SHAPES[i] for i in bucket], noted)
    want = [rows_of(matrix, world.rank) for matrix in triple(drawn())]
    for i, rows in zip(bucket, made, strict=True):
        torch.testing.assert_close(rows, want[i])
    owned = world.gather_objects(seen)
    if world.is_main:
        (folder / "owned.json").write_text(json.dumps(owned))
    world.shutdown()


def test_each_matrix_is_whole_on_one_rank_once(tmp_path: Path) -> None:
    codes, logs = start_ranks([__file__, str(tmp_path)], RANKS)
    assert codes == [0] * RANKS, "\n".join(logs)
    owned = json.loads((tmp_path / "owned.json").read_text())
    assert sorted(shape for shapes in owned for shape in shapes) == sorted(map(list, SHAPES))
    assert [len(shapes) for shapes in owned] == [3, 2, 2]


def test_buckets_bound_what_one_owner_makes_whole() -> None:
    shapes = [torch.Size((8, 8))] * 10
    assert [len(bucket) for bucket in buckets_of(shapes, 64, owners=4)] == [4, 4, 2]
    assert [len(bucket) for bucket in buckets_of(shapes, 128, owners=4)] == [8, 2]


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
