"""What a picture looks like, in 56 bytes, so that copies are found that are not the same file.

A look is a perceptual hash of the luminance (64 bits: which low frequencies of a 32 x 32 version
are above their median, as in pHash, Zauner 2010) and the mean colours of a 4 x 4 grid. The hash
survives other sizes and compression; the colours keep a red cube from being a blue one's copy.

    looks = np.array([look_of(image), look_of(other)])          # LOOK_DTYPE
    are_alike(looks[0], looks[1:], max_bits=3)                  # bool [1]

Everything is whole numbers, so that no processor rounds a bit another way.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from mgpt.images.pixels import whiten

LOOK_DTYPE = np.dtype([("bits", "<u8"), ("colours", "u1", (48,))])
MAX_COLOUR_LEVELS = 16
"""Levels of 255 by which the mean colours of copies may differ."""

_SIDE, _LOW, _GRID = 32, 8, 4
_SCALE = 1 << 12


def _cosines() -> npt.NDArray[np.int64]:
    """The first rows of the DCT-II of length 32, times `_SCALE`: int64 [8, 32]."""
    k_1, n_N = np.arange(_LOW)[:, None], np.arange(_SIDE)
    return np.rint(np.cos(np.pi * (2 * n_N + 1) * k_1 / (2 * _SIDE)) * _SCALE).astype(np.int64)


_COSINES = _cosines()


def look_of(image: Image.Image) -> npt.NDArray[np.void]:
    """The look of a decoded picture of any mode and size: a scalar of `LOOK_DTYPE`."""
    if image.mode in ("1", "P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")  # an index cannot be averaged
    small = whiten(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    levels_HWC = np.asarray(small, dtype=np.int64)
    luminance_HW = levels_HWC @ np.array([299, 587, 114])
    frequencies_88 = _COSINES @ luminance_HW @ _COSINES.T
    # A wave of less than half a level is rounding and compression; a plain picture has no other.
    frequencies_88[np.abs(frequencies_88) < 500 * (_SIDE // 2) ** 2 * _SCALE**2] = 0
    flat_64 = frequencies_88.ravel()
    bits_64 = flat_64 > np.sort(flat_64)[flat_64.size // 2]
    cell = _SIDE // _GRID
    colours = levels_HWC.reshape(_GRID, cell, _GRID, cell, 3).sum((1, 3)) // cell**2
    look = np.zeros((), LOOK_DTYPE)
    look["bits"] = np.packbits(bits_64).view(">u8")[0]
    look["colours"] = colours.ravel()
    return look


def are_alike(
    one: npt.NDArray[np.void], others_N: npt.NDArray[np.void], max_bits: int
) -> npt.NDArray[np.bool_]:
    """[N]: whose hash differs from `one`'s in at most `max_bits`, and whose colours do not.

    `one` is a single look, or N of them to be compared one by one.
    """
    ones_N = np.broadcast_to(one, others_N.shape)
    alike_N = np.bitwise_count(others_N["bits"] ^ ones_N["bits"]) <= max_bits
    places = np.flatnonzero(alike_N)
    colours, others = ones_N["colours"][places], others_N["colours"][places]
    difference = np.abs(others.astype(np.int16) - colours.astype(np.int16))
    alike_N[places] = difference.max(axis=1, initial=0) <= MAX_COLOUR_LEVELS
    return alike_N
