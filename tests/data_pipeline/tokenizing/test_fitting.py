"""Buckets without enlarging, and one geometry for all fields that show the same view."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.raw.shards import Picture, RawSample, Rejected
from data_pipeline.tokenizing.fitting import Target, bucket, decode, fit_fields
from mgpt.images.buckets import choose_bucket
from mgpt.images.pixels import MAX_PIXELS


def gradient(width: int, height: int) -> Image.Image:
    """Red says the column, green the row, so a crop can be read off."""
    levels_HWC = np.zeros((height, width, 3), np.uint8)
    levels_HWC[..., 0] = np.arange(width) * 255 // width
    levels_HWC[..., 1] = (np.arange(height) * 255 // height)[:, None]
    return Image.fromarray(levels_HWC)


@given(st.integers(16, 2000), st.integers(16, 2000), st.sampled_from([64, 512, 768, 1024]))
def test_a_picture_is_never_enlarged_and_used_when_its_area_is_enough(width, height, px):
    target = Target(px, grid_px=32)
    size = bucket(width, height, target)
    if size is None:
        extreme = max(width, height) > 4 * min(width, height)
        assert extreme or width * height < px**2
    else:
        assert size[0] <= width and size[1] <= height and width * height >= px**2
        best = choose_bucket(width, height, px, 32)
        assert size == best or best[0] > width or best[1] > height


def test_photographs_reach_the_rungs_of_their_area():
    sizes = {"retina": (1411, 1411), "hubble": (1000, 872), "rocket": (640, 427)}
    reached = {
        name: [px for px in (512, 768, 1024) if bucket(*size, Target(px, 32))]
        for name, size in sizes.items()
    }
    assert reached == {"retina": [512, 768, 1024], "hubble": [512, 768], "rocket": [512]}


def test_enlarging_is_an_option():
    assert bucket(100, 100, Target(512, 32)) is None
    assert bucket(100, 100, Target(512, 32, enlarge=True)) == (512, 512)


def test_fields_share_the_geometry_of_the_image():
    pictures = {"image": gradient(200, 120), "depth": gradient(200, 120), "other": gradient(96, 96)}
    fitted = fit_fields(pictures, Target(64, 32), "s/k", seed=0)
    assert np.array_equal(fitted.levels["image"], fitted.levels["depth"])
    assert set(fitted.crops) == {"image", "other"}
    assert fitted.levels["other"].shape == (64, 64, 3)
    again = fit_fields(pictures, Target(64, 32), "s/k", seed=0)
    assert again.crops == fitted.crops
    drawn = {fit_fields(pictures, Target(64, 32), f"s/{n}", 0).crops["image"] for n in range(20)}
    assert len(drawn) > 1


def test_a_mask_of_another_shape_is_refused_and_a_second_picture_is_not():
    wide, tall = gradient(200, 100), gradient(100, 200)
    refused = fit_fields({"image": wide, "segmentation": tall}, Target(64, 32), "k", 0)
    assert isinstance(refused, Rejected) and refused.reason == "size_mismatch"
    fitted = fit_fields({"image_00": wide, "image_01": tall}, Target(64, 32), "k", 0)
    assert fitted.levels["image_01"].shape[:2] == fitted.levels["image_00"].shape[1::-1]


def test_views_share_the_geometry_of_the_first():
    views = {f"view_{n:02d}": gradient(100, 80) for n in range(3)}
    fitted = fit_fields(views, Target(64, 32), "k", 0)
    assert list(fitted.crops) == ["view_00"]
    assert np.array_equal(fitted.levels["view_00"], fitted.levels["view_02"])


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_every_ordinary_picture_is_decoded(mode):
    buffer = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((40, 40), 30000, np.uint16)).save(buffer, "PNG")
    else:
        form = "TIFF" if mode == "CMYK" else "PNG"
        gradient(40, 40).convert("RGBA" if "A" in mode else "RGB").convert(mode).save(buffer, form)
    sample = RawSample("k", {"image": Picture(buffer.getvalue(), "png")}, {})
    pictures = decode(sample, rotate_exif=True, max_pixels=MAX_PIXELS)
    fitted = fit_fields(pictures, Target(32, 16), "k", 0)
    assert fitted.levels["image"].shape == (32, 32, 3)


def test_what_does_not_decode_is_refused_by_field(picture):
    broken = picture()[:60]
    sample = RawSample(
        "k", {"depth": Picture(broken, "png"), "image": Picture(picture(), "png")}, {}
    )
    refused = decode(sample, rotate_exif=True, max_pixels=MAX_PIXELS)
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.detail.split(":")[0]) == ("undecodable", "depth")
    bomb = RawSample("k", {"image": Picture(picture(64, 64), "png")}, {})
    assert isinstance(decode(bomb, rotate_exif=True, max_pixels=64 * 63), Rejected)


def test_a_thread_is_not_enlarged_into_a_field():
    assert bucket(20_000_000, 1, Target(512, 32, enlarge=True)) is None
    assert bucket(1_000, 10, Target(512, 32, enlarge=True)) is not None
