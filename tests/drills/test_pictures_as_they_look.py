"""What a person would call a good picture comes out of tokenising's door as it looks."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.raw.shards import Picture, RawSample
from data_pipeline.tokenizing.admission import Admission
from data_pipeline.tokenizing.filters import FilterConfig
from data_pipeline.tokenizing.fitting import Fitted, Target, fit_fields
from mgpt.images.pixels import BYTES_A_PIXEL, MAX_PIXELS, PictureTooLarge, fit, open_image

SIZE = (96, 64)


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Soft, and nowhere the same as mirrored or turned."""
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(tag: int) -> bytes:
    """A file whose pixels lie on their side, and whose EXIF says how to turn them."""
    method = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 2: None}[tag]
    stored = scene().transpose(method or Image.Transpose.FLIP_LEFT_RIGHT)
    exif = Image.Exif()
    exif[0x0112] = tag
    return save(stored, "JPEG", quality=95, exif=exif)


def grey_16() -> bytes:
    grey = np.asarray(scene().convert("L")).astype(np.uint16)
    return save(Image.fromarray(grey * 257), "PNG")


def transparent(form: str) -> bytes:
    image = scene().convert("RGBA")
    image.putalpha(Image.new("L", SIZE, 128))
    return save(image, form, **({"lossless": True} if form == "WEBP" else {}))


def palette_with_transparency() -> bytes:
    image = Image.new("P", SIZE, 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 48, 64))
    return save(image, "PNG", transparency=0)


def animated(form: str) -> bytes:
    first, then = scene().quantize(256), Image.new("RGB", SIZE, "red").quantize(2)
    images = [scene(), Image.new("RGB", SIZE, "red")] if form != "GIF" else [first, then]
    return save(images[0], form, save_all=True, append_images=images[1:], duration=99)


def on_white() -> np.ndarray:
    return np.asarray(scene()).astype(float) * 128 / 255 + 255 * (1 - 128 / 255)


def half_blue() -> np.ndarray:
    levels = np.full((64, 96, 3), 255.0)
    levels[:, :48] = (0, 0, 255)
    return levels


GREY = np.asarray(scene().convert("L").convert("RGB")).astype(float)
COLOUR = np.asarray(scene()).astype(float)
GOOD = {
    "rgb jpeg": (save(scene(), "JPEG", quality=95), COLOUR),
    "progressive jpeg": (save(scene(), "JPEG", quality=95, progressive=True), COLOUR),
    "cmyk jpeg": (save(scene().convert("CMYK"), "JPEG", quality=95), COLOUR),
    "cmyk tiff": (save(scene().convert("CMYK"), "TIFF"), COLOUR),
    "grey jpeg": (save(scene().convert("L"), "JPEG", quality=95), GREY),
    "grey with alpha": (save(scene().convert("LA"), "PNG"), GREY),
    "16-bit grey": (grey_16(), GREY),
    "16-bit tiff": (
        save(Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257), "TIFF"),
        GREY,
    ),
    "palette png": (save(scene().quantize(256), "PNG"), COLOUR),
    "palette with transparency": (palette_with_transparency(), half_blue()),
    "black and white": (save(Image.new("1", SIZE, 1), "PNG"), np.full((64, 96, 3), 255.0)),
    "transparent png": (transparent("PNG"), on_white()),
    "transparent webp": (transparent("WEBP"), on_white()),
    "exif upside down": (turned(3), COLOUR),
    "exif on its side": (turned(6), COLOUR),
    "exif mirrored": (turned(2), COLOUR),
    "animated gif": (animated("GIF"), COLOUR),
    "animated webp": (animated("WEBP"), COLOUR),
    "animated png": (animated("PNG"), COLOUR),
    "bmp": (save(scene(), "BMP"), COLOUR),
    "junk after the end": (save(scene(), "JPEG", quality=95) + b"\0" * 999, COLOUR),
}


@pytest.mark.parametrize("name", GOOD)
def test_it_comes_out_as_it_looks(name: str) -> None:
    data, wanted_HWC = GOOD[name]
    admission = Admission(FilterConfig())
    sample = RawSample("k", {"image": Picture(data, "jpg")}, {"caption": name})
    pictures = admission.admit(sample, admission.filters(None))
    assert isinstance(pictures, dict), pictures
    fitted = fit_fields(pictures, Target(64, grid_px=16), "0/k", seed=0)
    assert isinstance(fitted, Fitted), fitted
    crop = fitted.crops["image"]
    wanted = Image.fromarray(wanted_HWC.round().astype(np.uint8))
    wanted = wanted.resize((crop.resized_width, crop.resized_height), Image.Resampling.BICUBIC)
    box = (crop.x, crop.y, crop.x + crop.width, crop.y + crop.height)
    difference = np.abs(fitted.levels["image"].astype(float) - np.asarray(wanted.crop(box)))
    assert difference.mean() < 8, "256 dithered colours are within that; mirrored would be 60"


# ------------------------------------------------------------------ memory of each kind

_ON_ITS_SIDE = Image.Exif()
_ON_ITS_SIDE[0x0112] = 6
KINDS: dict[str, tuple[float, str, str, dict[str, object]]] = {
    "rgb png": (7, "RGB", "PNG", {"compress_level": 1}),
    "rgba png": (11, "RGBA", "PNG", {"compress_level": 1}),
    "palette png": (8, "P", "PNG", {"compress_level": 1}),
    "16-bit png": (6, "I;16", "PNG", {"compress_level": 1}),
    "jpeg": (7, "RGB", "JPEG", {}),
    "turned jpeg": (8, "RGB", "JPEG", {"exif": _ON_ITS_SIDE}),
    "progressive jpeg": (7, "RGB", "JPEG", {"progressive": True}),
    "progressive jpeg, 4:4:4": (10, "RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "progressive cmyk jpeg": (12, "CMYK", "JPEG", {"progressive": True}),
    "webp": (19, "RGB", "WEBP", {"method": 0}),
    "lossless webp": (19, "RGB", "WEBP", {"lossless": True, "method": 0}),
    "gif": (8, "P", "GIF", {}),
    "tiff": (8, "RGB", "TIFF", {"compression": "tiff_lzw"}),
    "tiff of one strip": (8, "RGB", "TIFF", {"compression": "tiff_lzw", "strip_size": 1 << 30}),
    "bmp": (7, "RGB", "BMP", {}),
}
"""Bytes a pixel that decoding and halving take, and how to make such a picture."""


def picture_of(kind: str, num_pixels: float) -> bytes:
    _, mode, form, options = KINDS[kind]
    width = int((num_pixels * 4 / 3) ** 0.5)
    image = scene((width, int(num_pixels / width)))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.quantize(16) if mode == "P" else image.convert(mode)
    return save(image, form, **options)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_each_kind_takes_what_the_limit_says(kind: str, tmp_path: Path) -> None:
    limit_bytes = BYTES_A_PIXEL * MAX_PIXELS
    num_pixels = min(MAX_PIXELS, limit_bytes / KINDS[kind][0])
    with pytest.raises(PictureTooLarge):
        open_image(picture_of(kind, 1.05 * num_pixels))
    (tmp_path / "picture").write_bytes(picture_of(kind, 0.97 * num_pixels))
    command = [sys.executable, __file__, str(tmp_path / "picture")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    taken = int(run.stdout)
    print(f"{kind}: {num_pixels / 1e6:.1f} megapixels, {taken / 1e6:.0f} MB")
    assert taken <= limit_bytes + (16 << 20)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    fit(open_image(save(scene(), "JPEG")), (64, 64), "k", 0)
    content, before = Path(sys.argv[1]).read_bytes(), _status_bytes("VmRSS")
    fit(open_image(content), (512, 512), "k", 0)
    print(_status_bytes("VmHWM") - before)
