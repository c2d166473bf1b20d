"""mgpt encode: pictures into codes, in one JSON file.

A picture is taken at its own size, of which both sides must be multiples of what the tokenizer
takes: 32 px with Chameleon's VQGAN, 8 or 16 with others. With `resolution=` it is scaled and
cropped to the bucket of that area instead, as `mgpt tokenize` does. `input=` takes files, folders
(the pictures directly in them) and globs. The codes come by file name, so every name may stand
once.

Reads: pictures, a VQGAN
Writes: a JSON file of codes

    mgpt encode vq=photos_f16 input=[a.png,b.png] output=codes.json
    mgpt encode vq=photos_f16 input=my_pictures resolution=256 output=codes.json
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mgpt.dtypes import CODES, Dtype, choose_dtype
from mgpt.errors import ConfigError, DataError
from mgpt.images.buckets import bucket_sizes, choose_bucket
from mgpt.images.pixels import MAX_PIXELS, fit, open_image, whiten
from mgpt.lifecycle.folder import check_machine
from mgpt.stages.build import pick_device
from mgpt.stages.codes_file import listed, read_object, write_codes
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.protocol import PictureTokenizer, float32_alone
from mgpt.tracking.progress import progress

_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt encode` can be given."""

    vq: str
    """Picture tokenizer: a folder of ours or a released one, or a shipped name."""
    input: str | list[str]
    """Pictures: a file, a folder, a glob, or a list of these."""
    output: str
    """The JSON file: {"<file name>": [[codes of a row], …], …}."""
    resolution: int | None = None
    """Side in pixels of the square whose area pictures are cropped to; null: their own size."""
    seed: int = 0
    """Decides, with a picture's name, where it is cropped."""
    rotate_exif: bool = True
    """Whether pictures are turned as their EXIF data says; false as in the published code."""
    convert_palette: bool = True
    """Whether palette and 1-bit pictures are converted before they are scaled; false as in the
    published code."""
    max_pixels: int = MAX_PIXELS
    """Largest picture that is decoded, in pixels."""
    device: str = "auto"
    """auto, cpu, cuda."""
    dtype: Dtype = "auto"
    """Of the layers before the codebook. auto is float32 on every device: bfloat16 changes a few
    codes in a hundred."""


def main(cfg: Config) -> None:
    pictures = find_pictures([cfg.input] if isinstance(cfg.input, str) else cfg.input)
    output = Path(cfg.output)
    check_output(output)
    device = pick_device(cfg.device)
    dtype = choose_dtype(cfg.dtype, device, keep_float32=CODES)
    tokenizer = load_tokenizer(cfg.vq).to(device)
    check_pictures(cfg, pictures, tokenizer)
    if dtype.torch in tokenizer.encode_dtypes:
        dtype.announce(print)
    else:
        print(f"note: {float32_alone(tokenizer)}")
    codes = {}
    with progress(len(pictures), "pictures", "encode") as bar:
        for name, path in pictures.items():
            levels_HW3 = np.asarray(fitted(cfg, name, path, tokenizer.grid_px))
            pixels_13HW = tokenizer.pixels.normalise(levels_HW3[None])
            codes_1hw = tokenizer.encode(pixels_13HW.to(device), dtype.torch)
            codes[name] = codes_1hw[0].cpu().numpy()
            bar.advance()
    write_codes(output, codes, tokenizer.fingerprint())
    print(f"codes of {len(codes)} pictures in {output}")


def find_pictures(sources: Sequence[str]) -> dict[str, Path]:
    """Pictures by file name, in the order given, those of a folder or glob sorted.

    Raises:
        DataError: a source without pictures, or two pictures of one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        for path in _expanded(source):
            first = found.setdefault(path.name, path)
            if first.resolve() != path.resolve():
                raise DataError(
                    f"{first} and {path} have the same name, and codes stand by name; rename one, "
                    "or encode them into two files"
                )
    if not found:
        raise DataError("input=[] names no picture; give files, folders or globs")
    return found


def _expanded(source: str) -> Iterator[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS and p.is_file())
    elif path.is_file():
        found = [path]
    else:
        found = [p for p in map(Path, sorted(glob.glob(source, recursive=True))) if p.is_file()]
    if not found:
        there = "holds no pictures" if path.exists() else "is no file, folder or glob with matches"
        raise DataError(f"input={source} {there}; pictures end in {', '.join(_ENDINGS)}")
    yield from found


def check_output(path: Path) -> None:
    """Raises where codes cannot be written there, or something else would be lost by it."""
    if path.is_dir():
        raise ConfigError(f"output={path} is a folder; give a file, such as {path / 'codes.json'}")
    if path.exists():
        try:
            read_object(path)
        except DataError as error:
            raise ConfigError(
                f"output={path} exists and is no file of codes; give another output="
            ) from error
    check_machine(path.parent, min_free_mb=1)


def check_pictures(cfg: Config, pictures: dict[str, Path], tokenizer: PictureTokenizer) -> None:
    """Opens every picture before the first is encoded; all problems come in one DataError."""
    multiple_px, max_pixels = tokenizer.multiple_px, tokenizer.pixels.max_pixels
    if cfg.resolution is not None:
        bucket_sizes(cfg.resolution, tokenizer.grid_px)
    problems = []
    for path in pictures.values():
        try:
            image = open_image(path, cfg.rotate_exif, cfg.max_pixels, cfg.convert_palette)
        except DataError as error:
            problems.append(str(error))
            continue
        size = f"{path}: {image.width} x {image.height} px"
        if cfg.resolution is None and (image.width % multiple_px or image.height % multiple_px):
            problems.append(
                f"{size} where multiples of {multiple_px} px belong; crop it, or give "
                "resolution=<px>"
            )
        num_pixels = image.width * image.height if cfg.resolution is None else cfg.resolution**2
        if max_pixels is not None and num_pixels > max_pixels:
            problems.append(
                f"{size} would be encoded as {num_pixels} pixels, and {tokenizer.title} takes "
                f"{max_pixels} at most; give resolution={int(max_pixels**0.5)} or less"
            )
    if problems:
        raise DataError(
            listed(f"{len(problems)} of {len(pictures)} pictures cannot be encoded", problems)
        )


def fitted(cfg: Config, name: str, path: Path, grid_px: int) -> Image.Image:
    """The RGB picture that is encoded: whole, or cropped to its bucket."""
    image = open_image(path, cfg.rotate_exif, cfg.max_pixels, cfg.convert_palette)
    if cfg.resolution is None:
        return whiten(image)
    size_wh = choose_bucket(image.width, image.height, cfg.resolution, grid_px)
    return fit(image, size_wh, name, cfg.seed)[0]
