"""Signals, skipped updates, spikes and stragglers."""

import os
import signal

import pytest

from mgpt.errors import TrainingError
from mgpt.train.guard import GuardConfig, NonFiniteGuard, SpikeWatch, StopSignals, slowest_rank


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name
    assert signal.getsignal(number) == before


def test_too_many_skipped_updates_in_a_row() -> None:
    guard = NonFiniteGuard(GuardConfig(max_skipped=2), skipped=5)
    for step, finite in enumerate([False, False, True, False, False]):
        guard.note(step, finite)
    assert guard.skipped == 9
    with pytest.raises(TrainingError, match=r"step 6: .* 3 steps in a row, 2 are allowed"):
        guard.note(6, False)


def test_a_leap_is_a_spike_and_does_not_join_the_window() -> None:
    watch = SpikeWatch(GuardConfig(spike_window=4, spike_deviations=5.0))
    assert not any(watch.note(loss) for loss in (9.0, 2.0, 2.1, 1.9))
    assert watch.note(2.0) is False
    assert watch.note(8.0) is True
    assert watch.recent == [2.0, 2.1, 1.9, 2.0]
    assert watch.note(float("nan")) is True


def test_the_window_goes_on_after_a_restart() -> None:
    cfg = GuardConfig(spike_window=3)
    first = SpikeWatch(cfg)
    for loss in (1.0, 1.1, 1.0):
        first.note(loss)
    assert SpikeWatch(cfg, first.recent).note(5.0) is True
    assert SpikeWatch(cfg).note(5.0) is False


def test_the_watch_can_be_off() -> None:
    watch = SpikeWatch(GuardConfig(spike_window=0))
    assert not any(watch.note(loss) for loss in (1.0, 1.0, 1e9))


def test_slow_rank() -> None:
    cfg = GuardConfig(straggler_ratio=1.5)
    assert slowest_rank(cfg, [1.0, 1.1, 1.9, 1.0]) == 2
    assert slowest_rank(cfg, [1.0, 1.1, 1.2, 1.0]) is None
    assert slowest_rank(cfg, [5.0]) is None


@pytest.mark.parametrize("field", ["spike_deviations", "straggler_ratio"])
def test_settings_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        GuardConfig(**{field: 0.0})
