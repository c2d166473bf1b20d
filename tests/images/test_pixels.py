"""Pictures of every kind decode, fit and normalise as the published pipeline does."""

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgpt.errors import DataError
from mgpt.images.pixels import Crop, fit, fit_like, normalise, open_image, to_uint8, whiten


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_normalise_is_float64_arithmetic() -> None:
    levels_HWC = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    pixels_CHW = normalise(levels_HWC)
    exact = (levels_HWC.astype(np.float64) / 255 * 2 - 1).astype(np.float32)
    np.testing.assert_array_equal(pixels_CHW, exact.transpose(2, 0, 1))
    single = levels_HWC.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    assert (single[..., 0] != pixels_CHW[0]).sum() == 128
    assert pixels_CHW.dtype == np.float32 and pixels_CHW.flags.c_contiguous


def test_to_uint8_clamps_and_truncates() -> None:
    pixels_CHW = np.array([-2, -1, -0.0001, 0, 0.9999, 1, 2], dtype=np.float32).reshape(1, 1, 7)
    assert to_uint8(pixels_CHW)[0, :, 0].tolist() == [0, 0, 127, 127, 254, 255, 255]


def test_a_batch_is_converted_like_its_pictures() -> None:
    batch_NHWC = np.stack([noise(4, 6), noise(4, 6, seed=1)])
    np.testing.assert_array_equal(normalise(batch_NHWC)[1], normalise(batch_NHWC[1]))
    back = to_uint8(normalise(batch_NHWC)).astype(int)
    assert back.shape == batch_NHWC.shape and abs(back - batch_NHWC).max() <= 1


def test_transparency_is_blended_in_float64_and_truncated() -> None:
    alpha, level = np.meshgrid(np.arange(256), np.arange(256))
    rgba_HWC = np.stack([level, level, level, alpha], axis=-1).astype(np.uint8)
    white = np.asarray(whiten(Image.fromarray(rgba_HWC)))[..., 0]
    share = alpha / 255.0
    blended = (1 - share) * 255 + share * level
    np.testing.assert_array_equal(white, blended.astype(np.uint8))
    assert (white != np.round(blended)).any()
    assert (white[:, 0] == 255).all() and (white[:, 255] == np.arange(256)).all()


def test_opaque_pictures_keep_their_levels() -> None:
    rgb_HWC = noise(5, 7)
    opaque = np.concatenate([rgb_HWC, np.full((5, 7, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(np.asarray(whiten(Image.fromarray(opaque))), rgb_HWC)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGB", "JPEG"),
        ("RGB", "WEBP"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("YCbCr", "TIFF"),
        ("I;16", "PNG"),
    ],
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    grey_HW = np.linspace(0, 255, 40 * 24).reshape(24, 40).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey_HW.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey_HW).convert("RGB").convert(mode)
    opened = open_image(encoded(image, kind))
    fitted, crop = fit(opened, (20, 12), key="k", seed=0)
    assert fitted.mode == "RGB" and fitted.size == (20, 12)
    assert (crop.source_width, crop.source_height) == (40, 24)
    # A grey ramp stays one, whatever the mode: dark above, light below.
    rows = np.asarray(fitted).astype(float).mean(axis=(1, 2))
    assert rows[0] < 30 and rows[-1] > 225


def test_16_bits_are_scaled_not_clipped() -> None:
    deep_HW = np.array([[0, 128, 129, 32768, 65535]], dtype=np.uint16)
    opened = open_image(encoded(Image.fromarray(deep_HW), "PNG"))
    assert np.asarray(opened)[0].tolist() == [0, 0, 1, 128, 255]


def test_a_mode_without_white_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(DataError, match=r"float\.tiff: pixels of mode 'F'"):
        open_image(path)


def test_only_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    opened = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert whiten(opened).getpixel((0, 0)) == (255, 0, 0)


def test_exif_rotation_is_an_option(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    content = encoded(Image.fromarray(noise(4, 8)), "JPEG", exif=exif.tobytes())
    assert open_image(content).size == (4, 8)
    assert open_image(content, rotate_exif=False).size == (8, 4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_damaged_pictures_are_refused(kind: str) -> None:
    content = encoded(Image.fromarray(noise(32, 32)), kind)
    for stop in (0, 3, len(content) // 4, len(content) // 2, len(content) * 3 // 4):
        with pytest.raises(DataError, match="picture: does not decode"):
            open_image(content[:stop])
    with pytest.raises(DataError, match="does not decode"):
        open_image(b"nothing of the kind")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: cannot be read \(No such file"):
        open_image(tmp_path / "gone.png")


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(noise(10, 11)), "PNG")
    assert open_image(content, max_pixels=110).size == (11, 10)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        DataError,
        match="11 x 10 is 110 pixels, the limit is max_pixels=109; raise max_pixels= to 110 ",
    ):
        open_image(content, max_pixels=109)


def published_fit(image: Image.Image, size: tuple[int, int], crop: Crop) -> np.ndarray:
    """The published steps in plain words, for RGB."""
    while min(image.size[0] / size[0], image.size[1] / size[1]) >= 2:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    scale = max(size[0] / image.size[0], size[1] / image.size[1])
    covering = tuple(round(side * scale) for side in image.size)
    resized_HWC = np.asarray(image.resize(covering, Image.Resampling.BICUBIC))
    return resized_HWC[crop.y : crop.y + size[1], crop.x : crop.x + size[0]]


@pytest.mark.parametrize("source", [(64, 48), (33, 31), (301, 200), (517, 130), (7, 9), (32, 32)])
def test_fit_follows_the_published_steps(source: tuple[int, int]) -> None:
    image = Image.fromarray(noise(source[1], source[0]))
    for key in ("a", "b", "c"):
        fitted, crop = fit(image, (32, 32), key, seed=1)
        np.testing.assert_array_equal(np.asarray(fitted), published_fit(image, (32, 32), crop))


def test_resizing_runs_in_the_files_own_mode() -> None:
    rgba = Image.fromarray(noise(40, 40, channels=4))
    fitted, _ = fit(rgba, (32, 32), "k", 0)
    own_mode = whiten(rgba.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.asarray(fitted), np.asarray(own_mode))
    early = whiten(rgba).resize((32, 32), Image.Resampling.BICUBIC)
    assert (np.asarray(fitted) != np.asarray(early)).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([(32, 32), (48, 16), (16, 64)]))
def test_the_crop_lies_inside(width: int, height: int, size: tuple[int, int]) -> None:
    fitted, crop = fit(Image.new("RGB", (width, height)), size, f"{width}", seed=height)
    assert fitted.size == size == (crop.width, crop.height)
    assert 0 <= crop.x <= crop.resized_width - crop.width
    assert 0 <= crop.y <= crop.resized_height - crop.height
    assert crop.x == 0 or crop.y == 0
    assert Crop(**crop.to_json()) == crop


@pytest.mark.parametrize(("axis", "size"), [("x", (40, 20)), ("y", (20, 40))])
def test_the_offset_is_a_pure_uniform_function_of_seed_and_key(
    axis: str, size: tuple[int, int]
) -> None:
    def offsets(seed: int) -> list[int]:
        crops = (fit(Image.new("L", size), (20, 20), f"{n}", seed)[1] for n in range(420))
        return [getattr(crop, axis) for crop in crops]

    assert offsets(0) == offsets(0) != offsets(1)
    counts = np.bincount(offsets(0), minlength=21)
    assert len(counts) == 21 and counts.min() >= 5 and counts.max() <= 40


@pytest.mark.parametrize(("width", "resized"), [(6, 4), (10, 8), (14, 10)])
def test_sizes_round_half_to_even(width: int, resized: int) -> None:
    # From 4 to 3 high: widths of 4.5, 7.5 and 10.5.
    _, crop = fit(Image.new("RGB", (width, 4)), (4, 3), "k", 0)
    assert (crop.resized_width, crop.resized_height) == (resized, 3)


def test_fields_share_the_geometry() -> None:
    first_HWC = noise(90, 61)
    image, inverse = Image.fromarray(first_HWC), Image.fromarray(255 - first_HWC)
    fitted, crop = fit(image, (32, 32), "k", 3)
    other = fit_like(inverse, crop)
    difference = np.asarray(fitted).astype(int) + np.asarray(other)
    assert abs(difference - 255).max() <= 2  # each resize rounds by itself
    np.testing.assert_array_equal(np.asarray(fit_like(image, crop)), np.asarray(fitted))


def test_a_field_of_another_size_shows_the_same_part() -> None:
    ramp_HW = np.linspace(0, 255, 160).astype(np.uint8)[None].repeat(80, axis=0)
    image = Image.fromarray(ramp_HW)
    fitted, crop = fit(image, (32, 32), "k", 5)
    half = fit_like(image.resize((80, 40), Image.Resampling.BOX), crop)
    assert abs(np.asarray(half).astype(int) - np.asarray(fitted)).max() <= 4
    with pytest.raises(DataError, match="100 x 80 beside a picture of 160 x 80"):
        fit_like(Image.new("L", (100, 80)), crop)


def test_normalising_in_float32_has_other_last_bits() -> None:
    """128 of the 256 values, by at most one unit in the last place of 1."""
    levels_1HC = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    double, single = normalise(levels_1HC), normalise(levels_1HC, "float32")
    assert single.dtype == np.float32
    assert (single != double).sum() == 128 and np.abs(single - double).max() < 2e-7
    x = torch.arange(256, dtype=torch.float32)
    assert torch.equal(torch.from_numpy(single).flatten(), (x / 255 - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("rounding", "formula"),
    [
        ("truncate", lambda x: ((x + 1) / 2 * 255).floor()),
        ("half_up", lambda x: (127.5 * x + 128).clamp(0, 255).floor()),
        ("half_even", lambda x: ((x + 1) * 127.5).round()),
    ],
)
def test_three_roundings(rounding: str, formula: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = torch.linspace(-1.1, 1.1, 10_001)
    want = formula(values.clamp(-1, 1)).to(torch.uint8).numpy()
    found = to_uint8(values.numpy()[None, None], rounding)
    assert np.array_equal(found.flatten(), want)
    # Every level comes back to itself, whichever the rule.
    levels_1H3 = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    centres = normalise(levels_1H3) + (1 / 255 if rounding == "truncate" else 0)
    assert np.array_equal(to_uint8(centres, rounding), levels_1H3)


def test_a_phone_s_webp_passes_and_what_is_too_large_names_the_setting() -> None:
    flat = Image.new("RGB", (4032, 3024), "red")
    assert open_image(encoded(flat, "WEBP", method=0)).size == (4032, 3024)
    with pytest.raises(DataError, match=r"12192768 pixels.*raise max_pixels= to (\d+)") as refused:
        open_image(encoded(flat, "WEBP", method=0), max_pixels=12_000_000)
    enough = int(re.search(r"max_pixels= to (\d+)", str(refused.value))[1])
    assert open_image(encoded(flat, "WEBP", method=0), max_pixels=enough).size == (4032, 3024)


def test_broken_exif_loses_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(noise(10, 11)), "JPEG")

    def breaks(self: Image.Image) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Image, "getexif", breaks)
    assert open_image(content).size == (11, 10)


@pytest.mark.parametrize("mode", ["P", "1"])
def test_a_palette_scales_as_the_same_pixels_in_rgb(mode: str) -> None:
    image = Image.fromarray(noise(256, 256))
    given = image.quantize(64) if mode == "P" else image.convert("1")
    encodings = {"own": encoded(given, "PNG"), "rgb": encoded(given.convert("RGB"), "PNG")}
    fitted = {
        name: np.asarray(fit(open_image(data), (32, 32), "k", 0)[0]).astype(int)
        for name, data in encodings.items()
    }
    assert np.abs(fitted["own"] - fitted["rgb"]).max() <= 1
    released = open_image(encodings["own"], convert_palette=False)
    assert released.mode == mode
    assert np.abs(np.asarray(fit(released, (32, 32), "k", 0)[0]) - fitted["rgb"]).mean() > 10
