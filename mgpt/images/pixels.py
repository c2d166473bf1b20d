"""Pictures in and out: the one place that decodes, resizes, crops and normalises.

    image = open_image(path_or_bytes)                          # any file, first frame
    fitted, crop = fit(image, (672, 384), key="00000012", seed=0)
    depth = fit_like(open_image(depth_bytes), crop)            # the same pixels of another field
    pixels_CHW = normalise(np.asarray(fitted))                 # float32 in [-1, 1]
    to_uint8(pixels_CHW)                                       # uint8 HWC

It follows the published pipeline of Lumina-mGPT bit by bit: halve with a box filter, resize
bicubic, crop, all in the file's own mode, and only then blend transparency on white. Three things
are ours: the crop offset is a pure function of (seed, key) instead of a random draw, EXIF rotation
is applied unless `rotate_exif=False`, and palette and 1-bit pictures are converted before they are
scaled unless `convert_palette=False`.
"""

import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mgpt.errors import DataError

MAX_PIXELS = 32_000_000
BYTES_A_PIXEL = 7.5
"""Memory that a picture may take, for each of the most pixels: 240 MB at `MAX_PIXELS`. Decoding and
halving an RGB picture takes 7; pictures that take more (alpha, progressive JPEG, WebP: 12.6 million
pixels) may have fewer pixels."""

# What Pillow may open. Its other formats are read by few and attacked by many (EPS runs a program).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
# Pillow scales these by the nearest pixel, whatever it is asked for.
_SMOOTH_MODES = {"P": "RGB", "PA": "RGBA", "1": "L"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ALPHA_MODES = ("LA", "PA", "RGBA")
_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", *_ALPHA_MODES)

# x / 255 * 2 - 1 in float64, then cast: float32 arithmetic differs for 128 of the 256 values.
Arithmetic = Literal["float64", "float32"]
_VALUES: dict[Arithmetic, npt.NDArray[np.float32]] = {
    "float64": (np.arange(256, dtype=np.float64) / 255 * 2 - 1).astype(np.float32),
    "float32": ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5))
    / np.float32(0.5),
}
Rounding = Literal["truncate", "half_up", "half_even"]
_LEVELS_OF_16_BITS = (np.arange(65536, dtype=np.float64) / 65535 * 255 + 0.5).astype(np.uint8)


class PictureTooLarge(DataError):
    """A picture of more pixels than allowed, or one whose decoding would take too much memory."""


@dataclass(frozen=True)
class Crop:
    """How a picture was fitted, in px: scaled to `resized_*`, and the box at (x, y) kept."""

    source_width: int
    source_height: int
    resized_width: int
    resized_height: int
    x: int
    y: int
    width: int
    height: int

    def to_json(self) -> dict[str, int]:
        """As a sample's JSON stores it; `Crop(**stored)` reads it back."""
        return dict(vars(self))


def open_image(
    source: bytes | str | Path,
    rotate_exif: bool = True,
    max_pixels: int = MAX_PIXELS,
    convert_palette: bool = True,
) -> Image.Image:
    """Decode a picture fully: the first frame, in the file's own mode; 16-bit grey becomes 8-bit,
    and a palette or 1-bit picture, which Pillow would scale by the nearest pixel, RGB or grey.

    `fit` turns the mode into RGB after resizing, as `whiten` does alone.
    Raises `DataError` where the file cannot be read or decoded, is cut short, is none of `FORMATS`
    or has a mode without a defined white; `PictureTooLarge`, before a pixel is decoded, where it
    has more than `max_pixels` pixels or decoding it may take `BYTES_A_PIXEL` times that in memory.
    """
    return EncodedPicture(source).decode(rotate_exif, max_pixels, convert_palette=convert_palette)


class EncodedPicture:
    """A picture of which the header alone has been read; `open_image` in two steps.

    Raises `DataError` where there is no header that can be read, `PictureTooLarge` as `open_image`.
    """

    def __init__(self, source: bytes | str | Path) -> None:
        self._name = "picture" if isinstance(source, bytes) else str(source)
        try:
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
        except OSError as error:
            raise DataError(f"{self._name}: cannot be read ({error.strerror})") from error
        with _decoder_errors(self._name):
            self._file = Image.open(io.BytesIO(content), formats=FORMATS)

    @property
    def bytes_held(self) -> int:
        """Memory that it will take once it is decoded."""
        return _bytes_held(self._file)

    def decode(
        self,
        rotate_exif: bool = True,
        max_pixels: int = MAX_PIXELS,
        taken_bytes: int = 0,
        convert_palette: bool = True,
    ) -> Image.Image:
        """The picture; see `open_image`. Once only.

        Args:
            taken_bytes: memory that its sample has taken before, out of the same limit.
        """
        file, name = self._file, self._name
        with _decoder_errors(name):
            smooth = _SMOOTH_MODES.get(file.mode) if convert_palette else None
            needed = _bytes_while_decoding(file)
            if smooth is not None:
                needed = max(needed, _bytes_while_converting(file))
            _check_size(file, taken_bytes + needed, max_pixels, name)
            file.load()
            image: Image.Image = file
            turn = _orientation(file) if rotate_exif else None
            if turn is not None:
                _check_size(file, taken_bytes + 2 * _bytes_held(file), max_pixels, name)
                image = file.transpose(turn)
            if smooth is not None:
                image = image.convert("RGBA" if "transparency" in image.info else smooth)
        return _to_8_bit(image, file.format, name)


def _orientation(file: Image.Image) -> Image.Transpose | None:
    """How the picture is turned to stand upright; None if it does, or if its EXIF data is broken:
    then the pixels are all there is."""
    try:
        value = file.getexif().get(_ORIENTATION)
    except Exception:  # whatever a parser of damaged bytes raises
        return None
    return _TURNS.get(value) if isinstance(value, int) else None


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """A decoder fed with damaged bytes raises nearly anything: struct.error, SyntaxError,
    IndexError, zlib.error; each of them means that this picture does not decode."""
    try:
        yield
    except PictureTooLarge:
        raise
    except Image.DecompressionBombError as error:
        raise PictureTooLarge(f"{name}: {error}") from error
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise DataError(f"{name}: does not decode (no {', '.join(FORMATS)})") from error
    except Exception as error:
        raise DataError(f"{name}: does not decode ({type(error).__name__}: {error})") from error


def _check_size(file: Image.Image, num_bytes: float, max_pixels: int, name: str) -> None:
    num_pixels = file.width * file.height
    size = f"{name}: {file.width} x {file.height}"
    enough = max(num_pixels, math.ceil(num_bytes / BYTES_A_PIXEL))
    remedy = f"raise max_pixels= to {enough} or leave the picture out"
    if num_pixels > max_pixels:
        raise PictureTooLarge(
            f"{size} is {num_pixels} pixels, the limit is max_pixels={max_pixels}; {remedy}"
        )
    if num_bytes > BYTES_A_PIXEL * max_pixels:
        raise PictureTooLarge(
            f"{size}: decoding this {file.format} takes {num_bytes / 1e6:,.0f} MB, the limit is "
            f"{BYTES_A_PIXEL * max_pixels / 1e6:,.0f} MB ({BYTES_A_PIXEL} bytes for each of "
            f"max_pixels={max_pixels}); {remedy}"
        )


def _bytes_held(file: Image.Image) -> int:
    """Memory of the decoded picture: Pillow gives every pixel of several bands 4 bytes."""
    num_bytes = 4 if len(file.getbands()) > 1 or file.mode in ("I", "F") else 1
    return file.width * file.height * (2 if file.mode.startswith("I;16") else num_bytes)


def _bytes_while_decoding(file: Image.Image) -> float:
    """The most that decoding and then halving holds at once, from the header.

    Bytes a pixel were measured with Pillow 13.0 (tests/drills/test_pictures_as_they_look.py).
    """
    num_pixels, held = file.width * file.height, _bytes_held(file)
    halving = 1.75 * held  # the picture, half of it after the first pass, a quarter
    if file.mode in ("LA", "RGBA"):
        halving += held  # alpha is multiplied in beforehand
    if file.format == "WEBP":  # canvases of libwebp, copies of the frame
        return held + 15 * num_pixels
    if file.mode.startswith("I;16"):
        return 3 * held
    if file.format in ("TIFF", "GIF"):  # a strip may be the whole picture
        return max(2 * held, halving)
    if file.info.get("progressive"):  # JPEG: every coefficient, 2 bytes each
        areas = [across * down for _, across, down, _ in file.layer]  # type: ignore[attr-defined]
        return max(held + 2 * num_pixels * sum(areas) / max(areas), halving)
    return halving


def _bytes_while_converting(file: Image.Image) -> float:
    """The most that a palette or 1-bit picture takes as one that scales smoothly."""
    num_pixels = file.width * file.height
    if file.mode == "PA" or "transparency" in file.info:
        return 12 * num_pixels
    return (8 if file.mode == "P" else 2.75) * num_pixels


def whiten(image: Image.Image) -> Image.Image:
    """RGB, with transparency blended on white: in float64, then truncated."""
    if image.mode == "RGB":
        return image
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image.convert("RGB")
    rgba_HWC = np.asarray(image.convert("RGBA"))
    if (rgba_HWC[..., 3] == 255).all():
        return image.convert("RGB")
    alpha_HW1 = rgba_HWC[..., 3:] / 255.0
    blended_HWC = (1 - alpha_HW1) * 255 + alpha_HW1 * rgba_HWC[..., :3]
    return Image.fromarray(blended_HWC.astype(np.uint8))


def fit(
    image: Image.Image, size_wh: tuple[int, int], key: str, seed: int
) -> tuple[Image.Image, Crop]:
    """Scale a picture to cover `size_wh` (px) and crop it; RGB, and the geometry.

    The crop's offset is uniform and depends on `seed` and `key` alone.
    """
    width, height = size_wh
    halved = _halve(image, size_wh)
    scale = max(width / halved.width, height / halved.height)
    # Python's round, half to even, as in the published code.
    resized_width, resized_height = round(halved.width * scale), round(halved.height * scale)
    crop = Crop(
        source_width=image.width,
        source_height=image.height,
        resized_width=resized_width,
        resized_height=resized_height,
        x=_draw(seed, key, "x", resized_width - width),
        y=_draw(seed, key, "y", resized_height - height),
        width=width,
        height=height,
    )
    return _resize_and_crop(halved, crop), crop


def fit_like(image: Image.Image, crop: Crop) -> Image.Image:
    """The part of another picture field that `crop` kept of the first; RGB.

    The field may have another size than the first, as long as it has the same aspect ratio within
    one pixel. Raises `DataError` otherwise.
    """
    skew = abs(image.width * crop.source_height - image.height * crop.source_width)
    if skew > max(crop.source_width, crop.source_height):
        raise DataError(
            f"a picture field of {image.width} x {image.height} beside a picture of "
            f"{crop.source_width} x {crop.source_height}: give both the same aspect ratio"
        )
    return _resize_and_crop(_halve(image, (crop.width, crop.height)), crop)


def normalise(
    levels_HWC: npt.NDArray[np.uint8], arithmetic: Arithmetic = "float64"
) -> npt.NDArray[np.float32]:
    """uint8 [..., H, W, C] to float32 [..., C, H, W] in [-1, 1]: x / 255 * 2 - 1.

    In float64, then cast; or cast after x · (1/255), then (v - 0.5) / 0.5 in float32, as image
    processors of transformers do.
    """
    assert levels_HWC.dtype == np.uint8
    return np.ascontiguousarray(np.moveaxis(_VALUES[arithmetic][levels_HWC], -1, -3))


def to_uint8(
    pixels_CHW: npt.NDArray[np.floating], rounding: Rounding = "truncate"
) -> npt.NDArray[np.uint8]:
    """float [..., C, H, W] to uint8 [..., H, W, C]: clamp to [-1, 1], (x + 1) / 2 * 255, rounded.

    Args:
        rounding: truncate drops the fraction; half_up is 127.5 · x + 128, truncated; half_even
            rounds to the nearest level, halves to the even one.
    """
    x_CHW = np.clip(pixels_CHW.astype(np.float32), -1, 1)
    if rounding == "truncate":
        levels_CHW = (x_CHW + 1) / 2 * 255
    elif rounding == "half_up":
        levels_CHW = np.minimum(np.float32(127.5) * x_CHW + np.float32(128), 255)
    else:
        levels_CHW = np.rint((x_CHW + 1) * np.float32(127.5))
    return np.ascontiguousarray(np.moveaxis(levels_CHW.astype(np.uint8), -3, -1))


def _halve(image: Image.Image, size_wh: tuple[int, int]) -> Image.Image:
    while image.width >= 2 * size_wh[0] and image.height >= 2 * size_wh[1]:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def _resize_and_crop(image: Image.Image, crop: Crop) -> Image.Image:
    resized_wh = (crop.resized_width, crop.resized_height)
    image = image.resize(resized_wh, Image.Resampling.BICUBIC)
    box = (crop.x, crop.y, crop.x + crop.width, crop.y + crop.height)
    return whiten(image.crop(box))


def _draw(seed: int, key: str, purpose: str, highest: int) -> int:
    """Uniform in 0..highest."""
    digest = hashlib.sha256(f"crop\0{purpose}\0{seed}\0{key}".encode(errors="surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big") % (highest + 1)


def _to_8_bit(image: Image.Image, file_format: str | None, name: str) -> Image.Image:
    """Grey of 16 bits scaled to 8; Pillow's own conversion would clip it to white."""
    if image.mode in _MODES:
        return image
    # Pillow gives a 16-bit PNG as "I" or "I;16", depending on its version.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        return Image.fromarray(_LEVELS_OF_16_BITS[np.asarray(image).astype(np.uint16)])
    raise DataError(
        f"{name}: pixels of mode {image.mode!r} have no defined white; convert the picture to RGB "
        "or grey of 8 or 16 bits"
    )
