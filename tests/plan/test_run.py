"""Figures of a run, what is refused, and what is said to change."""

from dataclasses import replace

import pytest

from mgpt.models.sizes import SIZES
from mgpt.parallel.backend import ParallelConfig
from mgpt.plan.run import Machine, RunSize, flops_per_token, plan_run

RUN = RunSize(
    SIZES["7b"],
    ParallelConfig("fsdp2", dtype="bfloat16"),
    steps=1000,
    step_rows=64,
    row_tokens=8192,
    document_tokens=4096,
)
MACHINE = Machine("A100-80", nodes=8, procs=8)


def test_operations_are_those_of_the_published_figures() -> None:
    """FACTS section 6: 43.7 GFLOP a token at 7B and 4,096, 58.3 with full recomputation."""
    assert flops_per_token(SIZES["7b"], 4096, head_only=False) == pytest.approx(43.7e9, rel=0.002)
    plain = plan_run(RUN, MACHINE)
    again = plan_run(replace(RUN, parallel=replace(RUN.parallel, recompute="full")), MACHINE)
    # The head is not recomputed, so a little less than a third.
    assert again.step_s / plain.step_s * 43.7 == pytest.approx(58.3, rel=0.02)


def test_time_is_tokens_times_operations_over_speed() -> None:
    plan = plan_run(RUN, MACHINE)
    assert plan.step_tokens == 64 * 8192
    assert plan.step_s == pytest.approx(8192 * plan.flops_per_token / (0.4 * 312e12))
    assert plan.hours == pytest.approx(1000 * plan.step_s / 3600)
    assert plan.gpu_hours == pytest.approx(64 * plan.hours)
    assert plan.checkpoint_bytes == 12 * plan.num_parameters
    assert plan.problems == plan.notes == []


def test_rows_that_leave_ranks_idle_take_the_time_of_full_ones() -> None:
    plan = plan_run(replace(RUN, step_rows=65), MACHINE)
    assert plan.micro_batches == 2
    assert plan.step_s == pytest.approx(2 * plan_run(RUN, MACHINE).step_s)
    assert "63 of 128 places" in plan.notes[0] and "such as 64 or 128" in plan.notes[0]


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    (problem,) = plan_run(replace(RUN, row_tokens=16384), MACHINE).problems
    assert "A100-80 has 76.0" in problem
    assert "parallel.recompute=full" in problem and "data.row_tokens=8192" in problem
    assert "nodes=16" not in problem, "activations do not shrink with ranks"
    changed = replace(RUN, row_tokens=16384, parallel=replace(RUN.parallel, recompute="full"))
    assert plan_run(changed, MACHINE).problems == []


def test_changes_come_together_where_none_is_enough() -> None:
    alone = replace(RUN, parallel=ParallelConfig("single", micro_rows=4, dtype="float32"))
    (problem,) = plan_run(alone, Machine("A100-80", nodes=1, procs=1)).problems
    words = problem.partition("what would fit: ")[2]
    assert words.startswith("parallel=fsdp2 procs=8 with parallel.dtype=bfloat16")


def test_offloading_is_named_and_fills_main_memory() -> None:
    lean = replace(RUN.parallel, recompute="full")
    run, machine = replace(RUN, parallel=lean, row_tokens=4096, step_rows=1), Machine(procs=1)
    (problem,) = plan_run(run, machine).problems
    assert "parallel.offload=all (" in problem and "nodes=2 (" in problem
    plan = plan_run(replace(run, parallel=replace(lean, offload="all")), machine)
    assert plan.problems == [] and "offload=all" in plan.notes[-1]
    assert max(plan.host_bytes.values()) >= 16 * plan.num_parameters


def test_a_stage_of_zero_is_raised_before_time_is_spent() -> None:
    parallel = ParallelConfig("zero3", dtype="bfloat16", recompute="full", zero_stage=1)
    (problem,) = plan_run(replace(RUN, parallel=parallel, row_tokens=65536), MACHINE).problems
    assert "what would fit: parallel.zero_stage=2 (" in problem


def test_short_rows_and_single_on_many_are_refused() -> None:
    assert "longest document" in plan_run(replace(RUN, longest_tokens=9000), MACHINE).problems[0]
    single = replace(RUN, parallel=replace(RUN.parallel, name="single"))
    assert "64 are planned" in plan_run(single, MACHINE).problems[0]


def test_main_memory_is_checked_where_it_is_given() -> None:
    assert plan_run(RUN, replace(MACHINE, host_gb=2000.0)).problems == []
    (problem,) = plan_run(RUN, replace(MACHINE, host_gb=10.0)).problems
    assert "of main memory" in problem


def test_a_device_of_another_size() -> None:
    large = replace(RUN, row_tokens=16384)
    assert plan_run(large, Machine("H200-141", nodes=8)).problems == []
    assert plan_run(large, Machine("H200-141", device_gb=96.0, nodes=8)).problems
