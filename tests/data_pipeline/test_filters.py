"""Each filter drops what it names and nothing else."""

import pytest

from data_pipeline.filters import FilterConfig, Filters
from data_pipeline.raw_shards import Picture, RawSample


def sample(caption="a cat", data=b"x") -> RawSample:
    return RawSample("k", {"image": Picture(data, "png")}, {"caption": caption})


def test_defaults_drop_nothing():
    filters = Filters(FilterConfig())
    assert filters.before_decoding(sample("")) is None
    assert filters.before_decoding(RawSample("k", {}, {"dialog": [["a", "b"]]})) is None
    assert filters.after_decoding("k", 1, 1000) is None


@pytest.mark.parametrize(
    ("caption", "reason"),
    [("cat", "caption_too_short"), ("a cat", None), ("x" * 9, "caption_too_long")],
)
def test_caption_length(caption, reason):
    filters = Filters(FilterConfig(min_caption_chars=4, max_caption_chars=8))
    refused = filters.before_decoding(sample(caption))
    assert (refused.reason if refused else None) == reason


def test_size_and_aspect():
    filters = Filters(FilterConfig(min_side_px=100, max_aspect=2))
    assert filters.after_decoding("k", 200, 100) is None
    assert filters.after_decoding("k", 99, 150).reason == "side_too_short"
    assert filters.after_decoding("k", 201, 100).reason == "aspect_too_long"
    assert filters.after_decoding("k", 100, 201).reason == "aspect_too_long"


def test_same_bytes_twice_in_a_shard():
    filters = Filters(FilterConfig(drop_duplicates=True))
    assert filters.before_decoding(sample(data=b"a")) is None
    assert filters.before_decoding(sample(data=b"b")) is None
    assert filters.before_decoding(sample(data=b"a")).reason == "duplicate_picture"
    assert Filters(FilterConfig(drop_duplicates=True)).before_decoding(sample(data=b"a")) is None


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="max_aspect"):
        FilterConfig(max_aspect=0.5)
    with pytest.raises(ValueError, match="max_caption_chars"):
        FilterConfig(min_caption_chars=5, max_caption_chars=4)
