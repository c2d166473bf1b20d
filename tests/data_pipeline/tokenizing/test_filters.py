"""Each filter drops what it names and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.raw.shards import Picture, RawSample
from data_pipeline.tokenizing.filters import (
    REASONS,
    FilterConfig,
    Filters,
    letter_share,
    word_share,
)


def sample(caption="a cat", data=b"x", key="k") -> RawSample:
    return RawSample(key, {"image": Picture(data, "png")}, {"caption": caption})


def photo(seed=0, size=(64, 64)) -> Image.Image:
    """Soft noise, as different from another seed's as two photographs are."""
    levels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def reason(filters: Filters, image: Image.Image, key: str, data: bytes | None = None) -> str | None:
    refused = filters.after_decoding(sample(data=data or key.encode(), key=key), {"image": image})
    assert refused is None or refused.reason in REASONS
    return refused.reason if refused else None


def test_defaults_drop_nothing():
    filters = Filters(FilterConfig())
    assert filters.before_decoding(sample("")) is None
    assert filters.before_decoding(RawSample("k", {}, {"dialog": [["a", "b"]]})) is None
    assert reason(filters, Image.new("RGB", (1, 1000)), "k") is None


@pytest.mark.parametrize(
    ("caption", "why"),
    [("cat", "caption_too_short"), ("a cat", None), ("x" * 9, "caption_too_long")],
)
def test_caption_length(caption, why):
    filters = Filters(FilterConfig(min_caption_chars=4, max_caption_chars=8))
    refused = filters.before_decoding(sample(caption))
    assert (refused.reason if refused else None) == why


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        ("eine Katze, 3 Jahre alt", None),
        ("一只猫坐在窗台上", None),
        ("बिल्ली खिड़की पर बैठी है", None),
        ("!!! ??? >>> $$$ a", "caption_few_letters"),
        ("sale sale sale sale now", "caption_repeats"),
        ("a cat a dog", None),
        ("DSC_0042.JPG", "caption_is_a_name"),
        ("https://example.org/cat", "caption_is_a_name"),
        ("see www.example.org for cats", None),
    ],
)
def test_rules_for_captions_of_any_language(caption, why):
    cfg = FilterConfig(min_letter_share=0.6, max_word_share=0.5, drop_name_captions=True)
    refused = Filters(cfg).before_decoding(sample(caption))
    assert (refused.reason if refused else None) == why
    assert Filters(FilterConfig()).before_decoding(sample(caption)) is None


def test_shares():
    assert letter_share("ab !") == pytest.approx(2 / 3) and letter_share("  ") == 0
    assert word_share("One one two three") == 0.5 and word_share("one one one") == 0


def test_size_and_aspect():
    filters = Filters(FilterConfig(min_side_px=100, max_aspect=2))
    sizes = [(200, 100), (99, 150), (201, 100), (100, 201)]
    reasons = [reason(filters, Image.new("RGB", size), f"{n}") for n, size in enumerate(sizes)]
    assert reasons == [None, "side_too_short", "aspect_too_long", "aspect_too_long"]


def test_same_bytes_twice_in_a_shard():
    filters = Filters(FilterConfig(drop_duplicates=True))
    kept = [reason(filters, photo(), f"{n}", data) for n, data in enumerate([b"a", b"b", b"a"])]
    assert kept == [None, None, "duplicate_picture"]
    assert reason(Filters(FilterConfig(drop_duplicates=True)), photo(), "4", b"a") is None


def test_a_sample_that_another_filter_drops_is_nobodys_first():
    filters = Filters(FilterConfig(drop_duplicates=True, min_side_px=50), smallest_px=60)
    assert reason(filters, photo(size=(49, 80)), "0", b"a") == "side_too_short"
    assert reason(filters, photo(size=(55, 55)), "1", b"a") is None, "too small to be written"
    assert reason(filters, photo(), "2", b"a") is None
    assert reason(filters, photo(), "3", b"a") == "duplicate_picture"


def test_copies_in_other_bytes_are_lookalikes_and_other_pictures_are_not():
    filters = Filters(FilterConfig(max_look_bits=3))
    buffer = io.BytesIO()
    photo(0, (256, 256)).save(buffer, "JPEG", quality=60)
    red, green, blue = photo(0).split()
    pictures = {
        "first": photo(0),
        "compressed": Image.open(io.BytesIO(buffer.getvalue())),
        "smaller": photo(0, (40, 40)),
        "other": photo(1),
        "mirrored": photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "recoloured": Image.merge("RGB", (blue, green, red)),
    }
    found = {key: reason(filters, image, key) for key, image in pictures.items()}
    alike = [key for key, why in found.items() if why == "lookalike_picture"]
    assert alike == ["compressed", "smaller"]
    assert not [key for key, why in found.items() if why not in (None, "lookalike_picture")]


def test_a_shape_in_another_colour_is_another_picture():
    filters = Filters(FilterConfig(max_look_bits=3))
    for colour in ("red", "blue", "green", "white"):
        image = Image.new("RGB", (64, 64), (230, 230, 230))
        image.paste(colour, (20, 20, 44, 44))
        assert reason(filters, image, colour) is None
    for colour in ("black", "yellow"):
        assert reason(filters, Image.new("RGB", (64, 64), colour), colour) is None
    assert reason(filters, Image.new("RGB", (32, 32), "black"), "again") == "lookalike_picture"


def test_samples_of_several_pictures_are_compared_by_their_bytes_alone():
    filters = Filters(FilterConfig(drop_duplicates=True, max_look_bits=3))
    for key, edit in (("a", b"1"), ("b", b"2")):
        pictures = {"image": Picture(b"same", "png"), "edit_1": Picture(edit, "png")}
        decoded = {"image": photo(0), "edit_1": photo(1)}
        assert filters.after_decoding(RawSample(key, pictures, {}), decoded) is None
    refused = filters.after_decoding(RawSample("c", pictures, {}), decoded)
    assert refused is not None and refused.reason == "duplicate_picture"


def test_more_looks_than_fit_at_first():
    filters = Filters(FilterConfig(max_look_bits=0))
    assert [reason(filters, photo(n), f"{n}") for n in range(80)] == [None] * 80
    assert reason(filters, photo(70), "again") == "lookalike_picture"


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="max_aspect"):
        FilterConfig(max_aspect=0.5)
    with pytest.raises(ValueError, match="max_caption_chars"):
        FilterConfig(min_caption_chars=5, max_caption_chars=4)
    with pytest.raises(ValueError, match="min_letter_share"):
        FilterConfig(min_letter_share=2)
    with pytest.raises(ValueError, match="max_look_bits"):
        FilterConfig(max_look_bits=9)
