"""Keyed draws: the same again anywhere, unrelated across keys, and uniform."""

import numpy as np
import pytest

from mgpt.data.draws import below, draw_key, hash64, identity64, permute


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 64, 65, 1000])
def test_a_permutation_is_one(size: int):
    assert sorted(permute(draw_key(0, "order"), np.arange(size), size).tolist()) == [*range(size)]


def test_a_permutation_can_be_read_anywhere():
    key = draw_key(0, "order")
    whole = permute(key, np.arange(1000), 1000)
    assert np.array_equal(permute(key, np.array([999, 0, 500]), 1000), whole[[999, 0, 500]])
    assert not np.array_equal(whole, permute(draw_key(1, "order"), np.arange(1000), 1000))


def test_places_of_a_permutation_are_uniform():
    first = [int(permute(draw_key(seed, "x"), np.array([0]), 5)[0]) for seed in range(600)]
    shares = np.bincount(first, minlength=5) / 600
    # Standard deviation of a share of 1/5 over 600 draws is 0.016.
    assert np.abs(shares - 0.2).max() < 0.06


def test_draws_are_uniform_and_keyed_by_each_value():
    draws = hash64(draw_key(0, "variant"), np.arange(20_000), np.zeros(20_000, np.int64))
    # 20,000 draws: standard deviation 0.0021 at 0.1.
    assert abs(below(0.1, draws).mean() - 0.1) < 0.01
    assert below(1.0, draws).all() and not below(0.0, draws).any()
    other = hash64(draw_key(0, "variant"), np.arange(20_000), np.ones(20_000, np.int64))
    assert not (draws == other).any() and len(np.unique(draws)) == 20_000


def test_draws_are_fixed_for_all_time():
    """A change here changes the order of every run: it may only be made on purpose."""
    assert draw_key(7, "order", "scenes", "vqa", 3) == FIXED_KEY
    assert identity64("00000", "cat") == FIXED_IDENTITY
    assert hash64(5, np.array([1, 2])).tolist() == FIXED_HASHES
    assert permute(9, np.arange(8), 8).tolist() == FIXED_PERMUTATION


FIXED_KEY = 13352484545088788517
FIXED_IDENTITY = 5198493842507712972
FIXED_HASHES = [7958955049054603978, 7191089600892374487]
FIXED_PERMUTATION = [7, 1, 2, 6, 3, 4, 5, 0]


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100])
def test_a_key_for_each_place_gives_what_each_key_gives(size: int):
    keys = [draw_key(0, "order", epoch) for epoch in range(40)]
    places = np.arange(40) % size
    together = permute(np.array(keys, np.uint64), places, size)
    apart = [int(permute(key, places[i : i + 1], size)[0]) for i, key in enumerate(keys)]
    assert together.tolist() == apart
