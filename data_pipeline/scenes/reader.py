"""Reads pictures of the embedded scenes back: objects, segmentation, depth, normals, box, pose.

The checker of everything a model draws. It looks at pixels alone: what is coloured against the
neutral ground is an object; its hue names its colour; its outline, shading and highlight name
its shape, size and material. Names come from `vocabulary`; the references that patches are
compared with come from `references.json`, measured once on training renders by
`tests/data_pipeline/scenes/fit_reader.py`. It knows no model and no renderer, and bears the blur,
noise and colour shifts of a lossy picture code.

Pictures are uint8 [H, W, 3], 32 to 128 pixels a side. All places are in pixels from the top
left corner; boxes are (x0, y0, x1, y1) with x1 and y1 just outside. Shape suffixes: H, W
picture; h, w the cut-out of one object; F features.

Example:
    >>> [(seen.shape, seen.colour) for seen in read_scene(picture_HW3)]
    [('cube', 'red'), ('cone', 'blue')]
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipeline.scenes.vocabulary import (
    BOX_COLOUR,
    COLOURS,
    DEPTH_FAR,
    DEPTH_NEAR,
    LIMBS,
    SEGMENTATION_COLOURS,
    VIEW_SIZE,
    line_width_px,
)

Array = np.ndarray
Box = tuple[float, float, float, float]
Place = tuple[float, float]

# A pixel is coloured when its largest and smallest channel differ by this much; the ground, the
# sky and shadows stay under 40 with noise.
_COLOURED = 48
# A patch smaller than this share of the picture (18 pixels of 64 x 64) is no object.
_LEAST_SHARE = 0.0045
# A second colour in a patch is an object of its own when a rim of one pixel is less than this
# share of it: colours that bleed along an outline are all rim.
_MOST_RIM = 0.55
# Features are sampled on a grid of this many points a side, that many standard deviations of the
# patch to each side of its centre.
_GRID, _REACH = 8, 2.0
# By how much red and blue lead over green in the line of a box: 255 as drawn, 100 when blurred;
# in purple and pink objects 75 at most.
_LEAST_BOX_LEAD = 80
_REFERENCES_FILE = Path(__file__).with_name("references.json")


@dataclass(frozen=True)
class SeenObject:
    """One object as seen: its four names, its box and the centre of that box, in pixels."""

    shape: str
    colour: str
    size: str
    material: str
    box: Box
    centre: Place


@dataclass(frozen=True)
class References:
    """Named means in a linear discriminant space: features @ projection lie near their own."""

    names: tuple[str, ...]
    means: Array
    projection: Array

    def nearest(self, features_F: Array) -> str:
        """The name of the nearest mean."""
        away = ((features_F @ self.projection - self.means) ** 2).sum(-1)
        return self.names[int(away.argmin())]


@lru_cache(maxsize=1)
def _references() -> dict[str, References]:
    stored = json.loads(_REFERENCES_FILE.read_text())
    return {
        kind: References(
            tuple(entry["names"]), np.array(entry["means"]), np.array(entry["projection"])
        )
        for kind, entry in stored.items()
    }


def read_scene(picture_HW3: Array) -> list[SeenObject]:
    """The objects in a picture, from left to right."""
    references = _references()
    seen = []
    picture = picture_HW3.astype(np.float32)
    for mask_HW in object_masks(picture_HW3):
        own = _own_colour(picture, mask_HW)
        figure = references["figure"].nearest(_figure_features(picture, mask_HW, own))
        shape, size, material = figure.split()
        colour = references["colour"].nearest(_colour_features(own))
        x0, y0, x1, y1 = box = _mask_box(mask_HW)
        centre = ((x0 + x1) / 2, (y0 + y1) / 2)
        seen.append(SeenObject(shape, colour, size, material, box, centre))
    return sorted(seen, key=lambda one: one.centre[0])


def object_masks(picture_HW3: Array) -> list[Array]:
    """Boolean [H, W] masks of the coloured patches that are large enough to be objects."""
    red, green, blue = (picture_HW3[..., channel] for channel in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    is_coloured = high - low > _COLOURED
    least = _LEAST_SHARE * is_coloured.size
    hue_HW = np.full(is_coloured.shape, -1)
    hue_HW[is_coloured] = _nearest_hue(picture_HW3[is_coloured].astype(np.float32))
    masks: list[Array] = []
    for patch in _patches(is_coloured, least):
        # What is rarer than the least patch is none.
        hues = np.flatnonzero(np.bincount(hue_HW[patch]) >= least)
        parts = [
            part
            for hue in hues
            for part in _patches(patch & (hue_HW == hue), least)
            if _rim_share(part) < _MOST_RIM
        ]
        masks += parts if len(parts) > 1 else [patch]
    return masks


def _rim_share(mask_HW: Array) -> float:
    """Share of a patch's pixels that have a side on its outside."""
    padded = np.pad(mask_HW, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return 1 - float((inner & mask_HW).sum() / mask_HW.sum())


def _patches(mask_HW: Array, least: float) -> list[Array]:
    """The connected patches (by sides) of at least that many pixels."""
    from skimage.measure import label

    if np.count_nonzero(mask_HW) < least:
        return []
    labels_HW = label(mask_HW, connectivity=1)
    areas = np.bincount(labels_HW.ravel())
    return [labels_HW == index for index in range(1, len(areas)) if areas[index] >= least]


def _mask_box(mask_HW: Array) -> Box:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _hue(rgb: Array) -> Array:
    """[..., 2]: hue of float RGB as a point on a hexagon; blind to shade and to added white."""
    spread = np.maximum(rgb.max(-1) - rgb.min(-1), 1e-3)
    red, green, blue = (rgb[..., channel] for channel in range(3))
    across, along = red - 0.5 * (green + blue), np.sqrt(0.75) * (green - blue)
    return np.stack([across / spread, along / spread], -1)


def _nearest_hue(rgb: Array) -> Array:
    """[...] index into COLOURS of the nearest hue of float RGB."""
    return ((_hue(rgb)[..., None, :] - _hue_palette()) ** 2).sum(-1).argmin(-1)


@lru_cache(maxsize=1)
def _hue_palette() -> Array:
    return _hue(np.array(list(COLOURS.values()), np.float32))


def _own_colour(picture: Array, mask_HW: Array) -> Array:
    """[3]: the median colour of the more colourful half of a patch, highlights left out."""
    inside = picture[mask_HW]
    spread = inside.max(-1) - inside.min(-1)
    return np.median(inside[spread >= np.median(spread)], axis=0)


def colour_features(picture_HW3: Array, mask_HW: Array) -> Array:
    """[4]: hue (two), saturation and brightness of a patch's own colour."""
    return _colour_features(_own_colour(picture_HW3.astype(np.float32), mask_HW))


def _colour_features(own: Array) -> Array:
    high, low = own.max(), own.min()
    return np.array([*_hue(own), (high - low) / max(high, 1.0), high / 255])


def figure_features(picture_HW3: Array, mask_HW: Array) -> Array:
    """[6 + 2 * 8 * 8]: what tells shape, size and material of a patch.

    Cover is how much of the object's own tint a pixel has: 0 on anything grey, so in highlights
    too. Its moments place and scale the grid on which cover and brightness are then sampled,
    so that the features bear blur and do not hang on single pixels of an outline.
    """
    picture = picture_HW3.astype(np.float32)
    return _figure_features(picture, mask_HW, _own_colour(picture, mask_HW))


def _figure_features(picture: Array, mask_HW: Array, own: Array) -> Array:
    height, width = mask_HW.shape
    tint = own - own.mean()
    x0, y0, x1, y1 = (int(side) for side in _mask_box(mask_HW))
    margin = max(2, round(0.15 * (y1 - y0)))
    top, left = max(y0 - margin, 0), max(x0 - margin, 0)
    cut_hw3 = picture[top : min(y1 + margin, height), left : min(x1 + margin, width)]
    grey_hw = cut_hw3.mean(-1)
    cover_hw = (cut_hw3 - grey_hw[..., None]) @ tint / max(float(tint @ tint), 1.0)
    brightness_hw = (grey_hw - own.mean()) / 128
    weight_hw = np.clip(cover_hw, 0, 1.2)
    area = weight_hw.sum()
    y, down, y_skew, y_peak = _moments(weight_hw.sum(1) / area)
    x, across, _, x_peak = _moments(weight_hw.sum(0) / area)
    scale = min(width / VIEW_SIZE[0], height / VIEW_SIZE[1])
    extents = [np.log(down / scale), np.log(across / scale), np.log(area / scale**2)]
    steps = np.linspace(-_REACH, _REACH, _GRID)
    grids = [
        _sample(channel_hw, y + down * steps, x + across * steps).ravel()
        for channel_hw in (cover_hw, brightness_hw)
    ]
    return np.concatenate([extents, [y_skew, y_peak, x_peak], *grids])


def _moments(shares: Array) -> tuple[float, float, float, float]:
    """Mean, standard deviation, skewness and kurtosis of a place along one axis."""
    place = np.arange(len(shares))
    mean = float(shares @ place)
    deviation = max(float(np.sqrt(shares @ (place - mean) ** 2)), 0.3)
    standard = (place - mean) / deviation
    return mean, deviation, float(shares @ standard**3), float(shares @ standard**4)


def _sample(channel_hw: Array, rows: Array, columns: Array) -> Array:
    """Bilinear samples at every (row, column); places outside take the nearest edge."""
    height, width = channel_hw.shape
    rows, columns = np.clip(rows, 0, height - 1.001), np.clip(columns, 0, width - 1.001)
    row, column = rows.astype(int), columns.astype(int)
    down, across = (rows - row)[:, None], columns - column
    above = channel_hw[row] * (1 - down) + channel_hw[row + 1] * down
    return above[:, column] * (1 - across) + above[:, column + 1] * across


def read_segmentation(picture_HW3: Array) -> Array:
    """[H, W] index into SEGMENTATION_COLOURS of the class whose colour is nearest."""
    palette = np.array(list(SEGMENTATION_COLOURS.values()), np.float32)
    away = picture_HW3.astype(np.float32)[..., None, :] - palette
    return (away**2).sum(-1).argmin(-1)


def read_depth(picture_HW3: Array) -> Array:
    """[H, W] camera-axis depth in scene units, the inverse of `vocabulary.depth_level`."""
    level_HW = picture_HW3.astype(np.float64).mean(-1) / 255
    return 1 / (level_HW * (1 / DEPTH_NEAR - 1 / DEPTH_FAR) + 1 / DEPTH_FAR)


def read_normals(picture_HW3: Array) -> Array:
    """[H, W, 3] unit normals (right, up, towards the camera); zero where none is drawn."""
    normal_HW3 = picture_HW3.astype(np.float64) / 127.5 - 1
    length_HW1 = np.linalg.norm(normal_HW3, axis=-1, keepdims=True)
    return np.where(length_HW1 > 0.5, normal_HW3 / np.maximum(length_HW1, 1e-6), 0)


def read_box(picture_HW3: Array) -> Box | None:
    """What the drawn box encloses, without its line, in pixels; None where no box is drawn."""
    picture = picture_HW3.astype(np.float32)
    red, green, blue = (picture[..., channel] for channel in range(3))
    lead_HW = np.minimum(red, blue) - green
    threshold = np.clip(0.6 * np.percentile(lead_HW, 98.5), 45, 0.4 * min(BOX_COLOUR[::2]))
    line_HW = lead_HW > threshold
    pieces = _patches(line_HW, least=4)
    if not pieces:
        return None
    candidates = [*pieces, np.logical_or.reduce(pieces)]
    drawn = [_drawn_share(mask_HW, lead_HW) for mask_HW in candidates]
    best = int(np.argmax(drawn))
    if drawn[best] < 0.6:
        return None
    x0, y0, x1, y1 = _mask_box(candidates[best])
    line = line_width_px(*line_HW.shape)
    return x0 + line, y0 + line, x1 - line, y1 - line


def _drawn_share(mask_HW: Array, lead_HW: Array) -> float:
    """How much of the least drawn of a frame's four sides is there; 0 for a filled patch."""
    x0, y0, x1, y1 = (int(side) for side in _mask_box(mask_HW))
    band = line_width_px(*mask_HW.shape) + 1
    hole_hw = lead_HW[y0 + band : y1 - band, x0 + band : x1 - band]
    lead = lead_HW[mask_HW].mean()
    if lead < _LEAST_BOX_LEAD or hole_hw.size == 0 or hole_hw.mean() > 0.75 * lead:
        return 0.0
    cut_hw = mask_HW[y0:y1, x0:x1]
    sides = [cut_hw[:band].any(0), cut_hw[-band:].any(0)]
    sides += [cut_hw[:, :band].any(1), cut_hw[:, -band:].any(1)]
    return float(min(side.mean() for side in sides))


def read_pose(picture_HW3: Array) -> dict[str, Place]:
    """The joints (x, y) found in a skeleton drawing, in pixels, by name.

    Each limb's stroke is found by its colour; a joint lies where the strokes that share it end.
    A joint none of whose limbs is drawn is absent.
    """
    picture = picture_HW3.astype(np.float32)
    height, width, _ = picture.shape
    line = line_width_px(height, width)
    high = picture.max(-1)
    palette = np.array([limb.colour for limb in LIMBS], np.float32) / 255
    is_drawn = high > 96
    tint = picture[is_drawn] / high[is_drawn][:, None]
    limb_HW = np.full(is_drawn.shape, -1)
    limb_HW[is_drawn] = ((tint[:, None, :] - palette) ** 2).sum(-1).argmin(-1)
    ends: dict[int, tuple[Array, Array]] = {}
    for index in range(len(LIMBS)):
        pieces = _patches(limb_HW == index, least=2 * line)
        if pieces:
            ends[index] = _stroke_ends(max(pieces, key=np.sum), 0.7 * line)
    found: dict[str, list[Array]] = {}
    for index, (first, second) in ends.items():
        limb = LIMBS[index]
        straight = _gap(first, limb.start, index, ends) + _gap(second, limb.end, index, ends)
        crossed = _gap(second, limb.start, index, ends) + _gap(first, limb.end, index, ends)
        if crossed < straight:
            first, second = second, first
        found.setdefault(limb.start, []).append(first)
        found.setdefault(limb.end, []).append(second)
    places = {joint: np.median(places, axis=0) for joint, places in found.items()}
    return {joint: (float(place[0]), float(place[1])) for joint, place in places.items()}


def _stroke_ends(mask_HW: Array, radius: float) -> tuple[Array, Array]:
    """The two ends (x, y) of a straight stroke drawn with round caps of that radius."""
    y, x = np.nonzero(mask_HW)
    points = np.stack([x + 0.5, y + 0.5], -1)
    middle = points.mean(0)
    axis = np.linalg.svd(points - middle, full_matrices=False)[2][0]
    along = (points - middle) @ axis
    low, high = np.percentile(along, [2, 98])
    low, high = min(low + radius, 0.0), max(high - radius, 0.0)
    return middle + low * axis, middle + high * axis


def _gap(end: Array, joint: str, limb_index: int, ends: dict[int, tuple[Array, Array]]) -> float:
    """How far an end is from the strokes that it should meet at that joint; 0 for a free end."""
    gaps = [
        min(float(np.hypot(*(end - other))) for other in ends[index])
        for index in ends
        if index != limb_index and joint in (LIMBS[index].start, LIMBS[index].end)
    ]
    return float(np.mean(gaps)) if gaps else 0.0
