"""The collectives of a World, alone and on two ranks."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from rank_runs import start_ranks

from mgpt.errors import CheckpointError, MachineError
from mgpt.parallel.dist import World, init_distributed

ON_EVERY_RANK = """
from mgpt.errors import DataError
from mgpt.parallel.dist import init_distributed

world = init_distributed(timeout_s=30.0)
assert (world.size, world.is_main) == (2, world.rank == 0)
assert world.all_reduce_sum([1.0, 2.0 * world.rank]) == [2.0, 2.0]
assert world.any(world.rank == 1) and not world.any(False)
assert world.gather_objects({"rank": world.rank, "text": "a" * world.rank}) == [
    {"rank": 0, "text": ""}, {"rank": 1, "text": "a"}]
assert world.broadcast_object([world.rank, None]) == [0, None]
world.barrier()
world.raise_together(None)
try:
    world.raise_together(DataError("shard 7 is cut short") if world.rank == 1 else None)
except DataError as error:
    assert "shard 7 is cut short" in str(error)
else:
    raise SystemExit("rank 0 did not hear of the error of rank 1")
calls = []
assert world.on_main(lambda: calls.append(1) or {"rank": world.rank}) == {"rank": 0}
assert len(calls) == (world.rank == 0)

def fail():
    raise DataError("disk full")

try:
    world.on_main(fail)
except DataError as error:
    assert "disk full" in str(error)
else:
    raise SystemExit("an error on rank 0 was not raised here")
world.shutdown()
"""


def test_two_ranks() -> None:
    codes, logs = start_ranks(["-c", ON_EVERY_RANK], 2)
    assert codes == [0, 0], logs


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = init_distributed("cpu")
    assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
    assert world.all_reduce_sum([1, 2.5]) == [1.0, 2.5]
    assert world.gather_objects("a") == ["a"]
    assert not torch.distributed.is_initialized()
    with pytest.raises(CheckpointError, match="gone"):
        world.raise_together(CheckpointError("gone"))


def test_a_lone_process_gets_a_group_without_ports() -> None:
    world = World()
    world.require_process_group()
    try:
        assert torch.distributed.get_world_size() == 1
    finally:
        world.shutdown()
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(MachineError, match="device=cuda"):
        init_distributed("cuda")


def test_ranks_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=r"rank 1 of 2 did not meet .* 127\.0\.0\.1:1"):
        init_distributed("cpu", timeout_s=1.0)
