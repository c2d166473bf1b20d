"""Who holds what: groups of ranks, DeepSpeed's configuration, and memory at the start."""

import json
import subprocess
import sys

import pytest

from mgpt.errors import ConfigError
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.parallel.backend import ParallelConfig
from mgpt.parallel.fsdp2 import shard_ranks
from mgpt.parallel.zero3 import engine_config

FSDP2 = "fsdp2"


@pytest.mark.parametrize(
    ("asked", "ranks", "of_a_node", "share"),
    [("all", 24, 8, 24), ("node", 24, 8, 8), ("node", 4, 8, 4), (16, 32, 8, 16), (4, 4, 4, 4)],
)
def test_ranks_that_share_a_copy(asked: int | str, ranks: int, of_a_node: int, share: int) -> None:
    cfg = ParallelConfig(FSDP2, shard_ranks=asked)  # type: ignore[arg-type]
    assert shard_ranks(cfg, ranks, of_a_node) == share


def test_ranks_that_cannot_be_divided() -> None:
    cfg = ParallelConfig(FSDP2, shard_ranks=16)
    with pytest.raises(ConfigError, match="24 ranks cannot be divided into groups of 16"):
        shard_ranks(cfg, 24, 8)


def test_rows_are_drawn_alone_as_in_the_whole() -> None:
    """Every chunk of a matrix has a generator of its own, whoever asks for a part of it."""
    cfg = TransformerConfig(
        hidden=1024, ffn=1024, layers=2, heads=2, kv_heads=1, head_dim=16, vocab_size=50
    )
    model, name, shape = Transformer(cfg), "model.layers.0.mlp.down_proj.weight", (3000, 1024)
    whole = model.initial_rows(name, shape, (0, 3000), seed=3)
    for start, stop in ((0, 1), (1023, 1025), (1024, 2048), (2999, 3000), (70, 70)):
        part = model.initial_rows(name, shape, (start, stop), seed=3)
        assert part.equal(whole[start:stop])
    chunks = whole.view(-1, 1000, 1024).std((1, 2))
    assert chunks.tolist() == pytest.approx([1 / 32 / 2] * 3, rel=0.01)
    assert not whole[:900].equal(whole[1024:1924]), "chunks differ"


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"stage": 3}),
        ({"zero_stage": 1}, {"stage": 1}),
        (
            {"zero_stage": 2, "offload": "optimizer"},
            {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}},
        ),
        (
            {"offload": "all", "offload_folder": "/nvme"},
            {
                "stage": 3,
                "offload_optimizer": {
                    "device": "nvme",
                    "nvme_path": "/nvme",
                    "pin_memory": False,
                },
                "offload_param": {"device": "nvme", "nvme_path": "/nvme", "pin_memory": False},
            },
        ),
    ],
)
def test_deepspeeds_configuration(settings: dict[str, object], wanted: dict[str, object]) -> None:
    cfg = ParallelConfig("zero3", dtype="bfloat16", **settings)  # type: ignore[arg-type]
    made = engine_config(cfg, num_parameters=900)
    assert made["zero_optimization"] == {"reduce_bucket_size": 900, **wanted}
    assert made["bf16"] == {"enabled": True}
    assert "train_batch_size" not in made, "rows do not divide evenly"


START = """
import json, resource, torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer, sharding_plan
from mgpt.parallel.backend import ParallelConfig, build_backend
from mgpt.parallel.dist import World
from mgpt.optim.config import OptimConfig

dist.init_process_group("fake", rank=37, world_size=512, store=FakeStore())
world = World(rank=37, size=512, local_size=8)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
warm = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)
before = peak()
backend = build_backend(
    ParallelConfig("fsdp2", dtype="float32"), lambda: Transformer(SIZES["7b"]), OptimConfig(),
    world, 0, 0, sharding_plan,
)
own = sum(p.to_local().numel() for p in backend._parameters)
print(json.dumps([backend.num_parameters, own, peak() - before]))
"""


def test_a_rank_never_holds_the_whole_model() -> None:
    """Rank 37 of 512 at 7B, alone with a process group that does nothing."""
    done = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    whole, own, grown = json.loads(done.stdout.splitlines()[-1])
    assert whole > 7e9 and own == pytest.approx(whole / 512, rel=0.01)
    weights_and_moments = 3 * 4 * own
    assert grown < weights_and_moments + 300e6 < 0.02 * 4 * whole
