"""mgpt decode: VQGAN codes back into pictures, a PNG each.

The codes are those of `mgpt encode`, or any JSON file of the same form, of any size. A picture
that stands there already and differs is not written over unless `redo=true`.

Reads: a JSON file of codes, a VQGAN
Writes: PNGs

    mgpt decode vq=photos_f16 input=codes.json output=decoded
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mgpt.dtypes import PIXELS, Dtype, choose_dtype
from mgpt.errors import ConfigError, DataError, VocabularyError
from mgpt.files.atomic import atomic_write
from mgpt.images.pixels import open_image, whiten
from mgpt.lifecycle.folder import check_machine
from mgpt.stages.build import pick_device
from mgpt.stages.codes_file import Codes, listed, read_codes, stated_vq
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.protocol import PictureTokenizer
from mgpt.tracking.progress import progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt decode` can be given."""

    vq: str
    """The tokenizer that the codes were made with: a folder of ours or a released one, or a
    shipped name."""
    input: str
    """The JSON file: {"<file name>": [[codes of a row], …], …}."""
    output: str
    """Folder of the pictures, <file name without its ending>.png each."""
    device: str = "auto"
    """auto, cpu, cuda."""
    dtype: Dtype = "auto"
    """Of the VQGAN's layers. auto is float32 on every device: bfloat16 moves pixels by a few
    levels."""
    redo: bool = False
    """Write over pictures that differ."""


def main(cfg: Config) -> None:
    device = pick_device(cfg.device)
    dtype = choose_dtype(cfg.dtype, device, keep_float32=PIXELS)
    tokenizer = load_tokenizer(cfg.vq).to(device)
    check_vq(Path(cfg.input), cfg.vq, tokenizer.fingerprint())
    codes = read_codes(Path(cfg.input), tokenizer.num_codes)
    check_sizes(codes, tokenizer)
    targets = target_names(codes)
    check_machine(Path(cfg.output), min_free_mb=1)
    dtype.announce(print)
    with progress(len(codes), "pictures", "decode") as bar:
        for name, codes_hw in codes.items():
            codes_1hw = torch.from_numpy(codes_hw)[None]
            pixels_13HW = tokenizer.decode(codes_1hw.to(device), dtype.torch)
            levels_HW3 = tokenizer.pixels.to_levels(pixels_13HW)[0]
            write_png(Path(cfg.output) / targets[name], levels_HW3, cfg.redo)
            bar.advance()
    print(f"{len(codes)} pictures in {cfg.output}")


def check_sizes(codes: Mapping[str, Codes], tokenizer: PictureTokenizer) -> None:
    """Raises DataError that names the pictures with fewer codes than can be decoded."""
    least = tokenizer.pixels.min_codes
    problems = [f"{name}: {c_hw.size} code" for name, c_hw in codes.items() if c_hw.size < least]
    if problems:
        raise DataError(listed(f"{tokenizer.title} decodes {least} codes or more", problems))


def check_vq(path: Path, vq: str, fingerprint: str) -> None:
    """Raises VocabularyError where a file's codes are of another VQGAN than `vq`."""
    stated = stated_vq(path)
    if stated is None:
        if path.exists():
            print(f"note: nothing says which VQGAN the codes in {path} are of; taken for {vq}'s")
    elif stated != fingerprint:
        raise VocabularyError(
            f"vq_mismatch: {path} has codes of VQGAN {stated}, vq={vq} is {fingerprint}; give the "
            "VQGAN that encoded them"
        )


def target_names(names: Iterable[str]) -> dict[str, str]:
    """The PNG of each picture name.

    Raises DataError where a name is none of a file, or two pictures would be one PNG.
    """
    targets: dict[str, str] = {}
    owners: dict[str, str] = {}
    problems = []
    for name in names:
        target = f"{Path(name).stem}.png"
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            problems.append(f"{name!r} is no file name")
        elif owners.setdefault(target, name) != name:
            problems.append(f"{owners[target]} and {name} would both be {target}; rename one")
        targets[name] = target
    if problems:
        raise DataError(listed("names of pictures", problems))
    return targets


def write_png(path: Path, levels_HW3: npt.NDArray[np.uint8], redo: bool) -> None:
    """Writes a picture; it appears whole. Raises ConfigError where another stands there."""
    if path.exists() and not redo and not _holds(path, levels_HW3):
        raise ConfigError(
            f"{path} is another picture already; give another output=, or redo=true to write "
            "over it"
        )
    buffer = io.BytesIO()
    Image.fromarray(levels_HW3).save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())


def _holds(path: Path, levels_HW3: npt.NDArray[np.uint8]) -> bool:
    try:
        return np.array_equal(np.asarray(whiten(open_image(path))), levels_HW3)
    except DataError:
        return False
