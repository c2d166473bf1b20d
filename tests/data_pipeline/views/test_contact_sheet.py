"""Contact sheets and histograms show what they were given."""

import io
from collections import Counter

import numpy as np
from PIL import Image

from data_pipeline.views.contact_sheet import TILE_PX, Tile, contact_sheet, png
from data_pipeline.views.histogram import bins, draw_bars, most_frequent


def plain(colour, height=32, width=32) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_every_tile_is_on_the_sheet_in_order():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    tiles = [Tile(plain(colour), f"{n}") for n, colour in enumerate(colours)]
    sheet = np.asarray(contact_sheet(tiles, columns=2))
    first = [np.argwhere((sheet == colour).all(-1)).min(0) for colour in colours]
    assert first[0][0] == first[1][0] < first[2][0] and first[0][1] == first[2][1] < first[1][1]
    for colour in colours:
        assert (sheet == colour).all(-1).sum() == TILE_PX**2, "32 px scaled up by a whole number"


def test_large_tiles_are_scaled_down_and_no_tiles_give_a_sheet():
    assert Tile(plain(0, 512, 256), "a").fitted().levels_HWC.shape == (TILE_PX, TILE_PX // 2, 3)
    assert contact_sheet([]).size[0] > 0


def test_png_keeps_every_pixel_and_its_bytes():
    levels_HWC = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = png(levels_HWC)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), levels_HWC)
    assert data == png(levels_HWC)


def test_bins_hold_every_count_in_round_ranges():
    counts = Counter({3: 2, 17: 1, 104: 4})
    found = bins(counts, most=11)
    assert found[0] == ("0 to 9", 2) and found[1] == ("10 to 19", 1)
    assert found[-1] == ("100 to 109", 4) and sum(count for _, count in found) == 7
    assert bins(Counter({5: 1, 7: 2})) == [("5", 1), ("6", 0), ("7", 2)]
    assert bins(Counter()) == []


def test_most_frequent_puts_the_rest_together():
    assert most_frequent({"a": 1, "b": 3, "c": 1, "d": 1}, 2) == [
        ("b", 3),
        ("a", 1),
        ("2 others", 2),
    ]


def test_bars_are_as_long_as_their_counts():
    image = np.asarray(draw_bars("lengths", [("a", 30), ("b", 60), ("c", 0)]))
    is_bar = (image == (43, 108, 176)).all(-1)
    lengths = sorted({int(row.sum()) for row in is_bar if row.any()})
    assert abs(lengths[-1] - 2 * lengths[-2]) <= 2 and lengths[0] <= 1
    assert draw_bars("nothing", []).width == image.shape[1]
