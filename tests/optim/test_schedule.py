"""The learning rate at the steps that define it."""

import pytest

from mgpt.optim.schedule import ScheduleConfig, learning_rate


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


def test_linear() -> None:
    cfg = ScheduleConfig("linear", warmup_steps=10, min_ratio=0.2)
    rates = {step: learning_rate(cfg, step, 110, 2.0) for step in (5, 10, 35, 60, 110, 200)}
    assert rates == pytest.approx({5: 1.0, 10: 2.0, 35: 1.6, 60: 1.2, 110: 0.4, 200: 0.4})


def test_wsd_is_flat_and_then_falls_to_the_end() -> None:
    cfg = ScheduleConfig("wsd", warmup_steps=10, min_ratio=0.1, decay_share=0.25)
    rates = [learning_rate(cfg, step, 100, 1.0) for step in range(101)]
    assert rates[5] == 0.5 and set(rates[10:76]) == {1.0}
    assert rates[76] == pytest.approx(1.0 - 0.9 / 25) and rates[100] == pytest.approx(0.1)


def test_wsd_that_begins_to_fall_during_its_warmup() -> None:
    """The warm-up ends first, and the rate falls over what is left."""
    cfg = ScheduleConfig("wsd", warmup_steps=50, decay_share=0.9)
    rates = [learning_rate(cfg, step, 100, 1.0) for step in range(101)]
    assert rates[50] == 1.0 and rates[75] == pytest.approx(0.5) and rates[100] == 0.0


def test_more_steps_leave_the_flat_part_of_wsd_as_it_was() -> None:
    """What makes a stopped run extendable: the same rates until the shorter run's decay."""
    cfg = ScheduleConfig("wsd", warmup_steps=10, decay_share=0.2)
    for step in range(80):
        assert learning_rate(cfg, step, 100, 1.0) == learning_rate(cfg, step, 200, 1.0)


@pytest.mark.parametrize(
    "field", [{"warmup_steps": -1}, {"min_ratio": 1.5}, {"decay_share": 0.0}, {"decay_share": 1.5}]
)
def test_settings_are_checked(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        ScheduleConfig(**field)
