"""Every document in one row, no row over its capacity, and rows that are full."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.data.packing import ROW_MULTIPLE, choose_row_tokens, fill_ratio, plan_rows
from mgpt.errors import DataError

WINDOW = 2048
VECTORS = Path(__file__).parents[1] / "vectors"


def captions_and_pictures(seed: int, num: int) -> np.ndarray:
    """Lengths like those of a mixed corpus: pictures of three sizes, with prompts, and dialogs."""
    rng = np.random.default_rng(seed)
    picture_N = rng.choice([1060, 2356, 4164], num, p=[0.5, 0.3, 0.2])
    return np.where(rng.random(num) < 0.2, 0, picture_N) + rng.integers(40, 400, num)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 250))
def test_each_document_is_in_one_row_that_holds_it(lengths: list[int], capacity: int):
    rows = plan_rows(lengths, capacity)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[document] for document in row) <= capacity for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60))
def test_at_most_the_rows_that_half_full_ones_would_need(lengths: list[int]):
    assert len(plan_rows(lengths, 100)) <= 2 * -(-sum(lengths) // 100)


def test_pairs_that_fill_a_row_exactly_are_found():
    halves = [600, 400, 590, 410, 580, 420, 570, 430]
    assert len(plan_rows(halves, 1000)) == 4


def test_equal_lengths_of_a_whole_number_a_row():
    assert [len(row) for row in plan_rows([250] * 40, 1000)] == [4] * 10


def test_a_document_longer_than_a_row_is_refused_with_the_numbers():
    with pytest.raises(DataError, match="document 1 has 11 tokens, a row holds 10"):
        plan_rows([3, 11], 10)


def test_no_documents_no_rows():
    assert plan_rows([], 10) == []


def test_mixed_lengths_fill_rows_of_16384():
    lengths_N = captions_and_pictures(seed=0, num=2 * WINDOW)
    assert fill_ratio(lengths_N, 16_384, WINDOW) > 0.99


@pytest.mark.parametrize(("tokens", "least"), [(1060, 0.985), (2356, 0.965), (4164, 0.945)])
def test_one_resolution_fills_the_row_length_that_is_chosen_for_it(tokens: int, least: float):
    rng = np.random.default_rng(0)
    lengths_N = tokens + rng.integers(-70, 170, 4 * WINDOW)
    row_tokens = choose_row_tokens(lengths_N, 32_768, WINDOW)
    assert row_tokens <= 32_768 and row_tokens % ROW_MULTIPLE == 0
    assert fill_ratio(lengths_N, row_tokens, WINDOW) >= least


def test_a_limit_below_the_longest_document_is_refused():
    with pytest.raises(DataError, match="has 500 tokens"):
        choose_row_tokens([100, 500], 499)


@pytest.mark.parametrize(
    ("name", "row_tokens", "least"),
    [
        ("mixed", 16_384, 0.995),
        ("512", None, 0.985),
        ("768", None, 0.965),
        ("1024", None, 0.945),
        ("thirds", None, 0.985),
    ],
)
def test_real_lengths_fill_rows(name, row_tokens, least):
    with np.load(VECTORS / "lengths.npz", allow_pickle=False) as sets:
        lengths_N = sets[name][: 4 * WINDOW].astype(np.int64)
    row_tokens = row_tokens or choose_row_tokens(lengths_N, 32_768, WINDOW)
    assert row_tokens <= 32_768
    assert fill_ratio(lengths_N, row_tokens, WINDOW) >= least
