"""Bytes alive: storages once, views for nothing, gone with their last tensor."""

import pytest
import torch

from mgpt.plan.live_bytes import LiveBytes


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_storage_counts_once_and_until_its_last_tensor(device: str) -> None:
    with LiveBytes() as counter:
        a = torch.empty(1000, device=device)
        view = a[:10]
        b = a + 1
        assert counter.live == 8000
        del a
        assert counter.live == 8000, "the view holds the whole storage"
        del view
        assert (counter.live, counter.peak) == (4000, 8000)
        counter.restart_peak()
        assert counter.peak == 4000
        del b
    assert counter.live == 0


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.zeros(100)
    with LiveBytes([weight]) as counter:
        weight.add_(1)
        assert counter.live == 0


def test_a_backward_pass_counts_too() -> None:
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes([x]) as counter:
        kept = x.exp()
        kept.sum().backward()
        del kept
        assert counter.live == 4000, "the gradient"
    assert counter.peak >= 8000
