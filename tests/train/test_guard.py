"""Updates that are left out, leaps and slow ranks."""

import json
import math
import random

import pytest

from mgpt.errors import TrainingError
from mgpt.train.guard import GuardConfig, SlowRanks, UpdateGuard

NAN = math.nan


def usual(guard: UpdateGuard, steps: int, seed: int = 0) -> None:
    """Steps with losses of 2.0 ± 0.1 and norms of 1.0 ± 0.05."""
    rng = random.Random(seed)
    for step in range(steps):
        assert guard.note(step, rng.gauss(2.0, 0.1), rng.gauss(1.0, 0.05), True) is None


def test_too_many_updates_left_out_in_a_row() -> None:
    guard = UpdateGuard(GuardConfig(max_skipped=2), {"skipped": 5})
    for step, finite in enumerate([False, False, True, False, False]):
        assert guard.note(step, 2.0, 1.0 if finite else NAN, finite) is None
    assert guard.skipped == 9
    with pytest.raises(
        TrainingError,
        match=r"step 6: .* 3 steps in a row .*max_skipped=2 .*finite",
    ):
        guard.note(6, NAN, NAN, False)


def test_a_loss_that_is_not_finite_forbids_the_update() -> None:
    for on_spike in ("warn", "skip", "rollback"):
        guard = UpdateGuard(GuardConfig(on_spike=on_spike))
        assert guard.limit(NAN) < 0 and guard.limit(math.inf) < 0
        assert guard.limit(2.0) == math.inf, "the window is not full"


def test_limits_of_a_full_window() -> None:
    warns, skips = (UpdateGuard(GuardConfig(on_spike=how)) for how in ("warn", "skip"))
    usual(warns, 128)
    usual(skips, 128)
    assert warns.limit(9.0) == warns.limit(2.0) == math.inf
    assert skips.limit(9.0) < 0
    # Six deviations of 0.05 above 1; one estimated from 128 values is off by 6 %.
    assert skips.limit(2.1) == pytest.approx(1.3, abs=0.05)


def test_what_leapt_is_named() -> None:
    guard = UpdateGuard(GuardConfig())
    usual(guard, 128)
    assert guard.note(65, 2.05, 10.0, True) == "grad_norm"
    assert guard.note(66, 20.0, 1.0, True) == "loss"
    assert guard.note(67, 20.0, 10.0, True) == "loss"
    assert guard.note(68, NAN, NAN, False) is None
    usual(guard, 10, seed=1)


def test_six_deviations_are_never_reached_by_noise() -> None:
    guard = UpdateGuard(GuardConfig())
    usual(guard, 5_000)


def test_a_new_level_becomes_the_usual_one() -> None:
    guard = UpdateGuard(GuardConfig())
    usual(guard, 128)
    leaps = [guard.note(step, 3.0 + 0.01 * (step % 7), 1.0, True) for step in range(200)]
    assert leaps == ["loss"] * 16 + [None] * 184
    assert guard.note(200, 3.6, 1.0, True) == "loss"


def test_a_guard_goes_on_from_its_state() -> None:
    cfg = GuardConfig(on_spike="skip", max_skipped=2)
    first = UpdateGuard(cfg)
    usual(first, 130)
    first.note(70, NAN, NAN, False)
    first.note(71, NAN, NAN, False)
    second = UpdateGuard(cfg, json.loads(json.dumps(first.state())))
    assert second.limit(2.0) == first.limit(2.0) < 2.0
    assert second.skipped == 2
    with pytest.raises(TrainingError, match="3 steps in a row"):
        second.note(72, NAN, NAN, False)


def test_the_watch_can_be_off() -> None:
    guard = UpdateGuard(GuardConfig(spike_window=0, on_spike="skip"))
    usual(guard, 100)
    assert guard.limit(1e9) == math.inf
    assert guard.note(100, 1e9, 1e9, True) is None


def test_the_slow_rank_is_named_by_what_it_does_alone() -> None:
    said: list[str] = []
    ranks = SlowRanks(GuardConfig(straggler_ratio=1.5), ["a", "b", "c", "d"], said.append)
    rng = random.Random(0)
    named = []
    for _ in range(50):
        own_s = [0.1 + rng.random() * 0.05 for _ in range(4)]
        own_s[2] += 0.1
        named.append(ranks.figures(own_s, 0.3))
    assert named == [{}] * 31 + [{"slow_rank": 2}] * 19
    assert len(said) == 1 and said[0].startswith("rank 2 (on c) is slow: by itself it takes 1.")


def test_no_rank_is_called_slow_for_noise() -> None:
    said: list[str] = []
    ranks = SlowRanks(GuardConfig(), ["a", "b"], said.append)
    rng = random.Random(0)
    for _ in range(1_000):
        # Each takes three times as long now and then.
        own_s = [0.1 * (3.0 if rng.random() < 0.15 else 1.0 + rng.random() / 5) for _ in range(2)]
        assert ranks.figures(own_s, 0.3) == {}
    assert all(ranks.figures([0.001, 0.009], 0.3) == {} for _ in range(50)), "not worth naming"
    alone = SlowRanks(GuardConfig(), ["a"], said.append)
    assert all(alone.figures([5.0], 5.0) == {} for _ in range(50))
    assert not said


@pytest.mark.parametrize(
    "field", ["spike_sigma", "straggler_ratio", "pass_steps", "hang_s", "max_rollbacks"]
)
def test_settings_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        GuardConfig(**{field: -1})
