"""The learning rate at the steps that define it."""

import pytest

from mgpt.train.schedule import ScheduleConfig, learning_rate


def test_warmup_starts_at_zero_and_ends_at_the_peak() -> None:
    cfg = ScheduleConfig(warmup_steps=4)
    rates = [learning_rate(cfg, step, 10, peak=2.0) for step in range(6)]
    assert rates == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_constant_without_warmup() -> None:
    assert {learning_rate(ScheduleConfig(), step, 10, 0.1) for step in range(11)} == {0.1}


def test_cosine() -> None:
    cfg = ScheduleConfig("cosine", warmup_steps=10, min_ratio=0.1)
    assert learning_rate(cfg, 10, 110, 1.0) == 1.0
    assert learning_rate(cfg, 60, 110, 1.0) == pytest.approx(0.55)  # half way: the mean of both
    assert learning_rate(cfg, 110, 110, 1.0) == pytest.approx(0.1)
    falling = [learning_rate(cfg, step, 110, 1.0) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("field", [{"warmup_steps": -1}, {"min_ratio": 1.5}])
def test_settings_are_checked(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        ScheduleConfig(**field)
