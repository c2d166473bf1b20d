"""From a raw sample's encoded pictures to cropped pixels of one size, the same crop for all fields.

The main picture (`image`, or the first field where there is none) takes the bucket that its shape
loses least in; every field that shows the same view gets exactly its geometry, so that a mask lies
on its picture after cropping as before. Fields that may show something else (`other`, `image_NN`)
get a bucket of their own where their shape differs. A picture is never enlarged, unless asked.

    pictures = decode(sample, rotate_exif=True, max_pixels=MAX_PIXELS)
    fitted = fit_fields(pictures, Target(512, grid_px=32), key="00000/cat", seed=0)
    fitted.levels["depth"].shape == fitted.levels["image"].shape          # uint8 [H, W, 3]
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.raw.shards import RawSample, Rejected
from mgpt.errors import DataError
from mgpt.images.buckets import bucket_sizes, choose_bucket
from mgpt.images.pixels import (
    BYTES_A_PIXEL,
    MAX_PIXELS,
    Crop,
    EncodedPicture,
    PictureTooLarge,
    fit,
    fit_like,
)

Pictures = dict[str, Image.Image]

_MAY_DIFFER = re.compile(r"other|image_\d+")


@dataclass(frozen=True)
class Target:
    """A resolution: `px` is the side of the square whose area pictures get, `grid_px` the step of
    their sides (two latents)."""

    px: int
    grid_px: int
    enlarge: bool = False


@dataclass(frozen=True)
class Fitted:
    """Pixels by field, uint8 [H, W, 3], and the geometry of each field that has one of its own."""

    levels: dict[str, npt.NDArray[np.uint8]]
    crops: dict[str, Crop]


def decode(
    sample: RawSample, rotate_exif: bool, max_pixels: int, convert_palette: bool = True
) -> Pictures | Rejected:
    """All pictures of the sample, the main one first.

    Its bytes and what is decoded already count against the memory that the next picture may take:
    a sample of many takes no more than one of a single picture. Headers tell before any is decoded.
    """
    pictures: Pictures = {}
    names = sorted(sample.pictures, key=lambda name: (name != "image", name))
    taken = sum(len(picture.data) for picture in sample.pictures.values())
    name = ""
    try:
        encoded = {}
        for name in names:
            encoded[name] = EncodedPicture(sample.pictures[name].data)
        if len(names) > 1:
            held = sum(one.bytes_held for one in encoded.values())
            if taken + held > BYTES_A_PIXEL * max_pixels:
                detail = f"{len(names)} pictures, {(taken + held) / 1e6:,.0f} MB together"
                return Rejected(sample.key, "too_many_pixels", detail)
        for name in names:
            pictures[name] = encoded.pop(name).decode(
                rotate_exif, max_pixels, taken, convert_palette
            )
            taken += 4 * pictures[name].width * pictures[name].height
    except PictureTooLarge as error:
        return Rejected(sample.key, "too_many_pixels", f"{name}: {error}")
    except DataError as error:
        return Rejected(sample.key, "undecodable", f"{name}: {error}")
    return pictures


def fit_fields(pictures: Pictures, target: Target, key: str, seed: int) -> Fitted | Rejected:
    """Every field at one resolution; `Rejected` (`too_small`, `size_mismatch`) where that fails.

    `key` is the sample's identity: with `seed` it alone decides where a picture is cropped.
    """
    levels: dict[str, npt.NDArray[np.uint8]] = {}
    crops: dict[str, Crop] = {}
    main_crop: Crop | None = None
    for name, picture in pictures.items():
        fitted = None
        if main_crop is not None:
            try:
                fitted = fit_like(picture, main_crop)
            except DataError as error:
                if not _MAY_DIFFER.fullmatch(name):
                    return Rejected(key, "size_mismatch", f"{name}: {error}")
        if fitted is None:
            size_wh = bucket(*picture.size, target)
            if size_wh is None:
                return Rejected(key, "too_small", f"{name}: {picture.width} x {picture.height}")
            own_key = key if main_crop is None else f"{key}/{name}"
            fitted, crops[name] = fit(picture, size_wh, own_key, seed)
            main_crop = main_crop or crops[name]
        levels[name] = np.asarray(fitted)
    return Fitted(levels, crops)


def bucket(width_px: int, height_px: int, target: Target) -> tuple[int, int] | None:
    """The (width, height) in pixels that a picture takes; None where it is too small for any.

    Without enlarging, a picture needs the target's area, and where the bucket nearest in shape is
    longer than the picture one way (a square bucket for 500 x 530 at 512), the nearest of those
    that lie inside the picture takes its place.
    """
    chosen = choose_bucket(width_px, height_px, target.px, target.grid_px)
    if target.enlarge:
        scale = max(chosen[0] / width_px, chosen[1] / height_px)
        return chosen if width_px * height_px * scale**2 <= MAX_PIXELS else None  # a thread
    if width_px * height_px < target.px**2:
        return None
    if chosen[0] <= width_px and chosen[1] <= height_px:
        return chosen

    def kept(size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        across, down = size[0] / width_px, size[1] / height_px
        return min(across, down) / max(across, down), size

    inside = [
        size
        for size in bucket_sizes(target.px, target.grid_px)
        if size[0] <= width_px and size[1] <= height_px
    ]
    return max(inside, key=kept, default=None)
