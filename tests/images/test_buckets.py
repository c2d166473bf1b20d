"""Buckets against the published lists and choices."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.errors import ConfigError
from mgpt.images import buckets
from mgpt.images.buckets import bucket_sizes, choose_bucket

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "crop_buckets.json").read_text())


@pytest.mark.parametrize("target", ["512", "768", "1024"])
def test_lists_of_the_vectors(target: str) -> None:
    assert [list(size) for size in bucket_sizes(int(target))] == VECTORS["buckets"][target]


@pytest.mark.parametrize(
    "choice", VECTORS["choice"], ids=lambda c: f"{c['width']}x{c['height']}@{c['target']}"
)
def test_choices_of_the_vectors(choice: dict) -> None:
    size = choose_bucket(choice["width"], choice["height"], choice["target"])
    assert list(size) == choice["crop"]


@pytest.mark.parametrize(
    ("target", "number"), [(256, 25), (384, 37), (512, 49), (768, 73), (1024, 97)]
)
def test_published_numbers(target: int, number: int) -> None:
    assert len(bucket_sizes(target)) == len(set(bucket_sizes(target))) == number


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([8, 16, 32]), st.integers(0, 31))
def test_sizes_lie_along_the_hyperbola(grids: int, grid_px: int, rest: int) -> None:
    sizes = bucket_sizes(grids * grid_px + rest % grid_px, grid_px)
    assert (grids * grid_px,) * 2 in sizes
    assert [size[::-1] for size in reversed(sizes)] == sizes
    for width, height in ((w // grid_px, h // grid_px) for w, h in sizes):
        assert width * height <= grids**2
        assert width <= 4 * height and height <= 4 * width
        # On the hyperbola: with one grid more on both sides the area is left.
        assert (width + 1) * (height + 1) > grids**2


def test_a_tie_takes_the_larger_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ((32, 96), (64, 64), (32, 32), (96, 32))
    monkeypatch.setattr(buckets, "_bucket_sizes", lambda target_px, grid_px: sizes)
    assert choose_bucket(50, 50, 64) == (64, 64)
    monkeypatch.setattr(buckets, "_bucket_sizes", lambda target_px, grid_px: sizes[::3])
    assert choose_bucket(50, 50, 64) == (96, 32)


def test_too_small_a_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="31 px with a grid of 32 px"):
        choose_bucket(10, 10, 31)
