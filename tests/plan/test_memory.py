"""What a rank holds: against fsdp2's own tensors, and against fully_shard on 1,024 ranks."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from mgpt.models.sizes import SIZES
from mgpt.models.transformer import sharding_plan
from mgpt.parallel.backend import ParallelConfig
from mgpt.plan.activations import meta_model
from mgpt.plan.memory import MOMENTS, Memory, RankWork, parameter_groups, plan_memory, shard_numel

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "parallel")]
import measured_shards  # noqa: E402
from rank_runs import start_ranks  # noqa: E402

FSDP2 = ParallelConfig("fsdp2", dtype="bfloat16")
FSDP2_FP32 = ParallelConfig("fsdp2", dtype="float32")


def planned(
    ranks: int = 64, row_tokens: int = 1024, micro_batches: int = 1, **settings: Any
) -> Memory:
    """7B on many ranks, under fsdp2 in bfloat16 where `settings` say nothing else."""
    parallel = replace(FSDP2, **settings)
    return plan_memory(RankWork(SIZES["7b"], parallel, ranks, row_tokens, micro_batches))


def held_at_the_update(memory: Memory) -> int:
    """Without DeepSpeed's bucket, which has one size on any number of ranks."""
    return memory.totals["update"] - memory.part("gradients on their way").update_bytes


def test_what_two_ranks_of_fsdp2_hold(tmp_path: Path) -> None:
    codes, logs = start_ranks([measured_shards.__file__, str(tmp_path)], 2)
    assert codes == [0, 0], "\n".join(logs)
    held = json.loads((tmp_path / "held.json").read_text())
    for kind, optim in measured_shards.OPTIMIZERS.items():
        work = RankWork(measured_shards.MODEL, FSDP2_FP32, 2, 64, on_cpu=True, optim=optim)
        memory = plan_memory(work)
        scratch = held[kind].pop("at work in the update")
        for name, measured in held[kind].items():
            planned = memory.part(name).update_bytes
            assert planned == pytest.approx(measured, rel=0.001), (kind, name)
        planned = sum(
            part.update_bytes for part in memory.parts if part.name == "at work in the update"
        )
        # Of the norm's and the step's scalars besides, a few KB.
        assert -20_000 < planned - scratch < 0.5 * scratch, (kind, planned, scratch)
    state = {kind: held[kind]["optimizer state"] for kind in held}
    # One moment for matrices instead of two, and the average of all weights.
    assert state["adamw"] < state["muon"] < 1.5 * state["adamw"]


def test_shards_of_1024_ranks_are_those_of_fully_shard() -> None:
    """One block of 7B's width, sharded by fully_shard itself over a group that sends nothing."""
    cfg = replace(SIZES["7b"], layers=1)
    model = meta_model(cfg)
    dist.init_process_group("fake", rank=0, world_size=1024, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (1024,))
        for name in sharding_plan(model):
            fully_shard(model.get_submodule(name), mesh=mesh)
        fully_shard(model, mesh=mesh)
        held = sum(p.to_local().numel() for p in model.parameters())  # type: ignore[attr-defined]
    finally:
        dist.destroy_process_group()
    assert parameter_groups(cfg, 1024).shard == held
    assert shard_numel((1, 128), 1024) == 128, "a row cannot be split"


def test_the_groups_are_the_model() -> None:
    groups = parameter_groups(SIZES["7b"], 1)
    assert groups.whole == groups.shard == 7_013_142_528 + 32 * 4 * 128  # FACTS, and qk-norm
    assert groups.whole == groups.root + groups.head + 32 * groups.block


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_ranks_divide_what_training_holds(name: str) -> None:
    few, many = (planned(ranks, name=name) for ranks in (8, 64))
    assert held_at_the_update(few) == pytest.approx(8 * held_at_the_update(many), rel=0.01)
    assert few.part("activations") == many.part("activations")


def test_accumulating_costs_a_whole_gradient_unless_it_is_reduced_each_time() -> None:
    groups = parameter_groups(SIZES["7b"], 1)
    once, twice = planned(micro_batches=1), planned(micro_batches=2)
    each = planned(micro_batches=2, reduce_each_micro_batch=True)
    more = twice.totals["backward"] - once.totals["backward"]
    assert 4 * (groups.whole - groups.head) <= more <= 4 * groups.whole, "the head's goes out first"
    shards = 4 * parameter_groups(SIZES["7b"], 64).shard
    assert 0 <= each.totals["backward"] - once.totals["backward"] <= shards


def test_recomputation_saves_most_of_the_activations() -> None:
    plain, saved = (planned(row_tokens=8192, recompute=choice) for choice in ("none", "full"))
    assert saved.part("activations").loss_bytes < plain.part("activations").loss_bytes / 15
    assert saved.part("at work in a block").backward_bytes > 1e9, "one block's, at a time"


def test_selective_lies_between_all_and_nothing() -> None:
    kept = [
        planned(row_tokens=8192, recompute=choice).part("activations").loss_bytes
        for choice in ("none", "selective", "full")
    ]
    assert 0.4 * kept[0] < kept[1] < 0.7 * kept[0] and kept[2] < kept[1] / 5


def test_what_stays_gathered_is_counted() -> None:
    groups = parameter_groups(SIZES["7b"], 64)

    def gathered(**settings: Any) -> int:
        return planned(**settings).part("gathered weights").loss_bytes

    assert gathered(reshard="never") - gathered() == 2 * groups.blocks
    assert gathered(reshard=8) - gathered() == 2 * groups.blocks // 8


def test_copies_of_the_model_cost_what_fewer_ranks_would() -> None:
    assert planned(64, shard_ranks="node") == planned(8)


@pytest.mark.parametrize(
    ("settings", "bytes_a_parameter"),
    [
        ({"name": "fsdp2", "offload": "all"}, 16),
        ({"name": "zero3", "offload": "optimizer"}, 16),
        ({"name": "zero3", "offload": "all"}, 18),
    ],
)
def test_what_is_offloaded_leaves_the_gpu(settings: Any, bytes_a_parameter: int) -> None:
    there, here = planned(**settings), planned(**{**settings, "offload": "none"})
    shard = parameter_groups(SIZES["7b"], 64, flat=settings["name"] == "zero3").shard
    assert there.offloaded_bytes == bytes_a_parameter * shard and here.offloaded_bytes == 0
    assert here.totals["update"] - there.totals["update"] == there.offloaded_bytes


def test_each_stage_of_zero_splits_more() -> None:
    whole = parameter_groups(SIZES["7b"], 1).whole
    held = [held_at_the_update(planned(name="zero3", zero_stage=stage)) for stage in (1, 2, 3)]
    assert held[0] - held[1] == pytest.approx(4 * whole, rel=0.02), "gradients"
    assert held[1] - held[2] == pytest.approx(2 * whole, rel=0.02), "weights"


def test_the_peak_is_the_largest_moment() -> None:
    memory = planned()
    assert memory.peak_bytes == max(memory.totals.values()) == memory.totals[memory.tightest]
    assert tuple(memory.totals) == MOMENTS
    assert torch.get_default_dtype() is torch.float32
