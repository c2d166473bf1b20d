"""Many pictures on one: a contact sheet, each picture with a line of words below it.

    sheet = contact_sheet([Tile(levels_HWC, "00000/cat"), Tile(other_HWC, "00000/dog")])
    atomic_write("sheet.png", png(sheet))

The bytes depend on the tiles alone.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

TILE_PX = 128
_WORDS_PX, _GAP_PX = 16, 8
_WORDS_SIZE, _MAX_WORDS = 11, 22
_PAPER, _INK = (255, 255, 255), (74, 85, 104)


@dataclass(frozen=True)
class Tile:
    """A picture, uint8 [H, W, 3], and the words below it."""

    levels_HWC: npt.NDArray[np.uint8]
    words: str

    def fitted(self) -> "Tile":
        """The same at the size it is shown: scaled down, or up by a whole number."""
        image = Image.fromarray(self.levels_HWC)
        times = TILE_PX // max(image.size)
        if times > 1:
            size = (image.width * times, image.height * times)
            image = image.resize(size, Image.Resampling.NEAREST)
        else:
            image.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
        return Tile(np.asarray(image), self.words)


def contact_sheet(tiles: Sequence[Tile], columns: int = 8) -> Image.Image:
    """The tiles in reading order, each about `TILE_PX` at its longer side."""
    columns = max(1, min(columns, len(tiles)))
    rows = max(1, -(-len(tiles) // columns))
    step_x, step_y = TILE_PX + _GAP_PX, TILE_PX + _WORDS_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, rows * step_y + _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_WORDS_SIZE)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = _GAP_PX + column * step_x, _GAP_PX + row * step_y
        image = Image.fromarray(tile.fitted().levels_HWC)
        sheet.paste(image, (x + (TILE_PX - image.width) // 2, y + TILE_PX - image.height))
        words = tile.words if len(tile.words) <= _MAX_WORDS else "…" + tile.words[1 - _MAX_WORDS :]
        draw.text((x, y + TILE_PX + 1), words, fill=_INK, font=font)
    return sheet


def png(image: Image.Image | npt.NDArray[np.uint8]) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
