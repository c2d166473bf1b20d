"""Counts as a picture of horizontal bars, and numbers put into few bins.

    image = draw_bars("caption characters", bins(Counter({17: 3, 230: 1})))
    atomic_write("captions.png", png(image))

Pillow draws it; the bytes depend on the counts alone.
"""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH_PX = 640
_ROW_PX, _LEFT_PX, _RIGHT_PX, _TOP_PX = 20, 170, 90, 40
_PAPER, _INK, _BAR = (255, 255, 255), (45, 55, 72), (43, 108, 176)

Bars = Sequence[tuple[str, int]]


def bins(counts: Mapping[int, int], most: int = 20) -> list[tuple[str, int]]:
    """(range, count) of whole numbers, in at most `most` ranges of equal, round width."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = next(
        step * 10**power
        for power in range(20)
        for step in (1, 2, 5)
        if high // (step * 10**power) - low // (step * 10**power) < most
    )
    first = low // width
    totals = [0] * (high // width - first + 1)
    for value, count in counts.items():
        totals[value // width - first] += count
    starts = [(first + place) * width for place in range(len(totals))]
    names = [f"{one:,}" if width == 1 else f"{one:,} to {one + width - 1:,}" for one in starts]
    return list(zip(names, totals))


def most_frequent(counts: Mapping[str, int], most: int = 20) -> list[tuple[str, int]]:
    """(name, count) from the most frequent down; what is left over is one bar."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[most:])
    return ordered[:most] + ([(f"{len(ordered) - most} others", rest)] if rest else [])


def draw_bars(title: str, bars: Bars) -> Image.Image:
    """One bar a row, its name at the left, its count and share at the right."""
    total, highest = sum(count for _, count in bars), max((count for _, count in bars), default=0)
    image = Image.new("RGB", (WIDTH_PX, _TOP_PX + _ROW_PX * max(1, len(bars)) + 10), _PAPER)
    draw = ImageDraw.Draw(image)
    font, heading = ImageFont.load_default(12), ImageFont.load_default(16)
    draw.text((10, 10), f"{title} ({total:,})", fill=_INK, font=heading)
    room = WIDTH_PX - _LEFT_PX - _RIGHT_PX
    for row, (name, count) in enumerate(bars):
        y = _TOP_PX + row * _ROW_PX
        length = round(room * count / highest) if highest else 0
        draw.text((_LEFT_PX - 8, y + _ROW_PX // 2), name[:26], fill=_INK, font=font, anchor="rm")
        draw.rectangle((_LEFT_PX, y + 3, _LEFT_PX + length, y + _ROW_PX - 3), fill=_BAR)
        share = f"{count:,}  {100 * count / total:.1f} %" if total else "0"
        x = _LEFT_PX + length + 6
        draw.text((x, y + _ROW_PX // 2), share, fill=_INK, font=font, anchor="lm")
    return image
