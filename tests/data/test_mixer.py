"""Quotas, epochs, caps and draws of the mix, on made-up lengths."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mgpt.data.lengths import TaskLengths
from mgpt.data.mixer import Mixer
from mgpt.data.source import Component

WINDOW = 100


def component(task: str, size: int, weight: float, cap: int | None = None) -> Component:
    counts_NVC = np.zeros((size, 2, 4), np.uint32)
    counts_NVC[:, 0] = (20, 15, 5, 9)
    counts_NVC[:, 1] = (30, 25, 0, 25)
    entries = TaskLengths(
        np.arange(size, dtype=np.uint32),
        np.arange(size, dtype=np.uint64) * 7919,
        counts_NVC,
        outlines=SimpleNamespace(),
    )
    return Component("s", task, SimpleNamespace(), entries, weight, cap)


def mixer_of(*parts: Component, seed: int = 0, drop: float = 0.0, window: int = WINDOW) -> Mixer:
    return Mixer(parts, seed, row_tokens=64, window_documents=window, guidance_drop=drop)


def drawn(mixer: Mixer, windows: range) -> list[tuple[int, int, int]]:
    """(component, epoch, entry) of every document of the windows."""
    found = []
    for number in windows:
        w = mixer.window(number)
        columns = (w.component_N.tolist(), w.epoch_N.tolist(), w.entry_N.tolist())
        found += list(zip(*columns, strict=True))
    return found


def test_shares_follow_the_weights_to_one_document_at_every_window():
    mixer = mixer_of(component("a", 50, 6.0), component("b", 50, 3.0), component("c", 9, 0.001))
    for number in (0, 1, 2, 77, 10**9):
        given = mixer.given_before(number)
        for count, weight in zip(given, (6.0, 3.0, 0.001), strict=True):
            assert abs(count - number * WINDOW * weight / 9.001) <= 0.5 + number * 1e-6
    assert len(drawn(mixer, range(3))) == sum(mixer.given_before(3))


def test_each_epoch_is_another_permutation_of_all_samples():
    mixer = mixer_of(component("a", 70, 1.0))
    documents = drawn(mixer, range(7))
    epochs = [[entry for _, e, entry in documents if e == epoch] for epoch in range(10)]
    assert all(sorted(entries) == list(range(70)) for entries in epochs)
    assert len({tuple(entries) for entries in epochs}) == 10


def test_a_component_at_its_cap_stops_and_the_rest_take_its_share():
    mixer = mixer_of(component("a", 30, 1.0, cap=60), component("b", 400, 3.0))
    assert mixer.num_windows is None
    documents = drawn(mixer, range(10))
    assert sum(place == 0 for place, _, _ in documents) == 60
    assert mixer.given_before(10)[0] == 60
    later = mixer.window(5)
    assert set(later.component_N.tolist()) == {1} and len(later.component_N) == WINDOW


def test_the_data_ends_when_all_caps_are_reached():
    mixer = mixer_of(component("a", 30, 5.0, cap=45), component("b", 200, 1.0, cap=400))
    end = mixer.num_windows
    assert end is not None and mixer.given_before(end) == [45, 400] == mixer.given_before(end + 3)
    assert sum(mixer.given_before(end - 1)) < 445
    assert mixer.window(end).rows == []


def test_variants_and_guidance_drop_are_keyed_by_sample_and_epoch():
    mixer = mixer_of(component("a", 50, 1.0), drop=0.5)
    other = mixer_of(component("a", 50, 1.0), component("b", 50, 1.0), drop=0.5)
    keyed, elsewhere = {}, {}
    for found, source in ((keyed, mixer), (elsewhere, other)):
        for number in range(40):
            w = source.window(number)
            for place, entry, epoch, variant, dropped in zip(
                w.component_N, w.entry_N, w.epoch_N, w.variant_N, w.dropped_N, strict=True
            ):
                if place == 0:
                    found[int(entry), int(epoch)] = (int(variant), bool(dropped))
    shared = keyed.keys() & elsewhere.keys()
    assert len(shared) > 500 and all(keyed[draw] == elsewhere[draw] for draw in shared)
    variants = [variant for variant, _ in keyed.values()]
    assert 0.4 < np.mean(variants) < 0.6
    # Variant 1 has nothing to cut, so it is never dropped; variant 0 half of the time.
    drops = [dropped for variant, dropped in keyed.values() if variant == 0]
    assert 0.4 < np.mean(drops) < 0.6
    assert not any(dropped for variant, dropped in keyed.values() if variant == 1)
    assert len({keyed[3, epoch] for epoch in range(30)}) == 3, "an epoch repeats the last one"


def test_lengths_are_those_after_the_drop():
    w = mixer_of(component("a", 50, 1.0), drop=0.5).window(0)
    want = {(0, False): (20, 15), (0, True): (15, 9), (1, False): (30, 25)}
    columns = (w.variant_N, w.dropped_N, w.tokens_N, w.trained_N)
    for variant, dropped, tokens, trained in zip(*columns, strict=True):
        assert want[int(variant), bool(dropped)] == (tokens, trained)


def test_rows_hold_every_document_once_and_are_shuffled():
    mixer = mixer_of(component("a", 500, 1.0))
    w = mixer.window(1)
    assert sorted(d for row in w.rows for d in row) == list(range(len(w.tokens_N)))
    assert all(w.tokens_N[row].sum() <= 64 for row in w.rows)
    again = mixer_of(component("a", 500, 1.0)).window(1)
    assert again.rows == w.rows
    assert mixer_of(component("a", 500, 1.0), seed=1).window(1).rows != w.rows


def test_a_window_costs_the_same_wherever_it_lies():
    mixer = mixer_of(component("a", 10**6, 1.0), component("b", 10**5, 1.0), window=2048)
    near, far = (count_calls(lambda number=number: mixer.window(number)) for number in (1, 10**6))
    assert far < 1.2 * near


def count_calls(run) -> int:
    """Python function calls that `run` makes: a cost without a clock."""
    calls = 0

    def note(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("size", [1, 3])
def test_a_window_of_many_epochs_takes_as_long_as_one_of_few(size: int):
    """Overfitting a sample or three: each window holds hundreds of epochs."""
    documents = 4096
    few = mixer_of(component("a", documents, 1.0), window=documents)
    many = mixer_of(component("a", size, 1.0), window=documents)

    def seconds(mixer: Mixer) -> float:
        times = []
        for number in (5, 6, 7):
            began = time.perf_counter()
            mixer.window(number)
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(many) < 10 * seconds(few)
    documents_of = drawn(many, range(1))
    assert [epoch for _, epoch, _ in documents_of] == [n // size for n in range(documents)]
