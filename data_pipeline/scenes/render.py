"""Ray casting of a few solids over a ground plane: one pass, everything a truth needs.

`render` casts one ray a subpixel and returns a `Frame`: the antialiased picture and, at ray
resolution, depth, normals and which part each ray met. It knows solids and surfaces, not
scenes: what a cube is called, or where it may stand, is decided elsewhere.

Shape suffixes: H, W picture; R, C rows and columns of rays (H, W times `supersample`).

Example:
    >>> parts = [Part(Sphere((0.0, 0.0, 0.5), 0.5), rgb=(208, 32, 42), owner=0, label="sphere")]
    >>> render(parts, Camera(), Light(), height=64, width=64).colour_HW3.shape
    (64, 64, 3)
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data_pipeline.scenes.backdrop import (
    GROUND,
    HORIZON,
    Backdrop,
    backdrop_of,
    lens_of,
    sky_colour,
)
from data_pipeline.scenes.scene import Camera, Light
from data_pipeline.scenes.shadows import blocked_light, towards_light
from data_pipeline.scenes.solids import Array, Point, Solid
from data_pipeline.scenes.vocabulary import Rgb

# Linear light; together they bring lit ground near sRGB 228 and shadow near 150.
_SUN, _AMBIENT = 0.74, 0.42
_GROUND_ALBEDO = 0.80
# Contact radii from a foot at which 1 - 0.6 exp(-0.9 r^2) is 1 in float32.
_LAST_CONTACT = 4.5

Point2 = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One solid with its surface.

    `owner` numbers the thing it belongs to (0, 1, ...), `label` is its segmentation class,
    `contact_radius` how far from its foot the ground is darkened (0: it does not touch). `bevel` is
    how far a shiny surface's normal bends outwards: a flat face mirrors one spot of the sky only,
    and bent a little, as by a bevelled edge, every shape has a highlight of its own.
    """

    solid: Solid
    rgb: Rgb
    owner: int
    label: str
    is_shiny: bool = False
    bevel: float = 0.8
    contact_radius: float = 0.0


@dataclass(frozen=True)
class Frame:
    """What one pass saw.

    `colour_HW3` is uint8 sRGB, `part_RC` the index of the part that each ray met, or GROUND or SKY.
    """

    colour_HW3: Array
    part_RC: Array
    parts: tuple[Part, ...]
    supersample: int
    hits: "Hits"

    @cached_property
    def depth_RC(self) -> Array:
        """float32 camera-axis depth (inf in the sky)."""
        return self.hits.distance_RC * self.hits.backdrop.cos_RC

    @cached_property
    def normal_3RC(self) -> Array:
        """The unit normal in camera axes (right, up, towards the camera; 0 in the sky)."""
        normal_3RC = np.zeros_like(self.hits.backdrop.direction_3RC)
        normal_3RC[2] = self.hits.part_RC == GROUND
        normal_3N = normal_3RC.reshape(3, -1)
        normal_3N[:, self.hits.place_M] = self.hits.normal_3M
        right, up, ahead = self.hits.backdrop.lens.axes
        axes = np.array([right, up, [-component for component in ahead]], np.float32)
        return np.tensordot(axes, normal_3RC, 1)

    def owner_mask(self, owner: int) -> Array:
        """Boolean [R, C]: the rays that met a part of this owner."""
        is_owned = np.array([part.owner == owner for part in self.parts] + [False, False])
        return is_owned[self.part_RC]

    def owner_box(self, owner: int) -> tuple[float, float, float, float] | None:
        """(x0, y0, x1, y1) in shares of width and height that just encloses the owner's rays."""
        mask = self.owner_mask(owner)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return None
        num_rows, num_columns = mask.shape
        return (
            float(columns[0] / num_columns),
            float(rows[0] / num_rows),
            float((columns[-1] + 1) / num_columns),
            float((rows[-1] + 1) / num_rows),
        )


def project(camera: Camera, point: Point, height: int, width: int) -> tuple[float, float]:
    """Where a scene point falls: (x, y) in shares of width and height."""
    row, column, _ = lens_of(camera, height, width).place(point)
    return column / width, row / height


def render(
    parts: list[Part],
    camera: Camera,
    light: Light,
    height: int,
    width: int,
    supersample: int = 2,
) -> Frame:
    """Cast height*width*supersample**2 rays and shade them; sizes in pixels."""
    backdrop = backdrop_of(lens_of(camera, height * supersample, width * supersample))
    hits = _cast(parts, backdrop)
    linear_3RC = _shade(parts, light, hits, supersample)
    linear_3HW = pixel_mean(linear_3RC, supersample)
    srgb_3HW = np.where(
        linear_3HW < 0.0031308,
        12.92 * linear_3HW,
        1.055 * np.maximum(linear_3HW, 1e-6) ** (1 / 2.4) - 0.055,
    )
    colour_3HW = np.clip(srgb_3HW * 255 + 0.5, 0, 255).astype(np.uint8)
    return Frame(
        colour_HW3=np.ascontiguousarray(colour_3HW.transpose(1, 2, 0)),
        part_RC=hits.part_RC,
        parts=tuple(parts),
        supersample=supersample,
        hits=hits,
    )


def pixel_mean(values_XRC: Array, supersample: int) -> Array:
    """[X, H, W]: mean over the subpixels of each pixel."""
    first, *others = (
        values_XRC[:, row::supersample, column::supersample]
        for row in range(supersample)
        for column in range(supersample)
    )
    total = first.copy()
    for other in others:
        total += other
    total /= supersample**2
    return total


class Hits(NamedTuple):
    """What each ray met first: distance and part (or GROUND or SKY); of the M rays that met parts
    also their place among all, part by part, and the scene-axes normal there."""

    backdrop: Backdrop
    distance_RC: Array
    part_RC: Array
    place_M: Array
    normal_3M: Array
    point_3M: Array
    borders: list[int]
    """0, and where each part's rays end among the M."""


def _cast(parts: list[Part], backdrop: Backdrop) -> Hits:
    lens, direction_3RC = backdrop.lens, backdrop.direction_3RC
    distance_RC, part_RC = backdrop.distance_RC.copy(), backdrop.part_RC.copy()
    windows = [lens.window(*part.solid.bound()) for part in parts]
    for index, (part, window) in enumerate(zip(parts, windows, strict=True)):
        t = part.solid.hit(lens.position, tuple(direction_3RC[(slice(None), *window)]))
        closer = t < distance_RC[window]
        np.copyto(distance_RC[window], t, where=closer)
        np.copyto(part_RC[window], np.int16(index), where=closer)
    direction_3N = direction_3RC.reshape(3, -1)
    places, points, normals = [], [], []
    for index, (part, (rows, columns)) in enumerate(zip(parts, windows, strict=True)):
        row_M, column_M = np.nonzero(part_RC[rows, columns] == index)
        place_M = (row_M + rows.start) * lens.columns + (column_M + columns.start)
        t_M = distance_RC.ravel()[place_M]
        point_3M = np.array(lens.position, np.float32)[:, None] + t_M * direction_3N[:, place_M]
        places.append(place_M)
        points.append(point_3M)
        normals.append(np.array(part.solid.normal(tuple(point_3M)), np.float32))
    empty_30 = np.zeros((3, 0), np.float32)
    return Hits(
        backdrop,
        distance_RC,
        part_RC,
        np.concatenate([np.zeros(0, np.intp), *places]),
        np.concatenate([empty_30, *normals], axis=1),
        np.concatenate([empty_30, *points], axis=1),
        np.cumsum([0, *map(len, places)]).tolist(),
    )


def _shade(parts: list[Part], light: Light, hits: Hits, supersample: int) -> Array:
    """[3, R, C] linear colour."""
    backdrop = hits.backdrop
    towards = np.array(towards_light(light), np.float32)
    facing_M = _dot(towards, hits.normal_3M)
    blocked_N, through_T = blocked_light(parts, light, hits, facing_M, supersample)
    lit_3N = _lit_ground(parts, backdrop, towards, blocked_N, through_T)
    lit_3N[:, backdrop.sky_S] = backdrop.sky_colour_3S
    sunlit_M = through_T[blocked_N[hits.place_M]]
    sun_M = _SUN * np.maximum(facing_M, 0) * sunlit_M
    # Light from all sides is weaker from below.
    ambient_M = _AMBIENT * (0.75 + 0.25 * hits.normal_3M[2])
    albedo_P3 = np.array([_linear(part.rgb) for part in parts], np.float32).reshape(-1, 3)
    lit_3M = np.repeat(albedo_P3.T, np.diff(hits.borders), axis=1) * (sun_M + ambient_M)
    view_3M = backdrop.direction_3RC.reshape(3, -1)[:, hits.place_M]
    for part, ends in zip(parts, pairwise(hits.borders), strict=True):
        if part.is_shiny:
            mine = slice(*ends)
            lit_3M[:, mine] = _gloss(
                part,
                lit_3M[:, mine],
                hits.point_3M[:, mine],
                hits.normal_3M[:, mine],
                view_3M[:, mine],
                towards,
                sunlit_M[mine],
            )
    lit_3N[:, hits.place_M] = lit_3M
    return lit_3N.reshape(3, *hits.part_RC.shape)


def _dot(vector: Array, array_3M: Array) -> Array:
    """Their dot products [M], added in one order on every processor, as BLAS does not."""
    return vector[0] * array_3M[0] + vector[1] * array_3M[1] + vector[2] * array_3M[2]


def _lit_ground(
    parts: list[Part], backdrop: Backdrop, towards: Array, blocked_N: Array, through_T: Array
) -> Array:
    """[3, N] linear colour of every ray's point as if it were ground."""
    full_sun = _SUN * np.maximum(towards[2], 0)
    sun_N = np.full(blocked_N.shape, full_sun, np.float32)
    shaded = np.flatnonzero(blocked_N)
    sun_N[shaded] = full_sun * through_T[blocked_N[shaded]]
    # The light from all sides is kept off the ground beside a foot.
    ambient_N = _open_sky(parts, backdrop)
    ambient_N *= np.float32(_AMBIENT)
    level_N = np.float32(_GROUND_ALBEDO) * (sun_N + ambient_N)
    haze_N = backdrop.haze_RC.ravel()
    lit_3N = np.empty((3, len(level_N)), np.float32)
    for lit_N, horizon in zip(lit_3N, HORIZON, strict=True):
        np.subtract(np.float32(horizon), level_N, out=lit_N)
        lit_N *= haze_N
        lit_N += level_N
    return lit_3N


def _linear(rgb: Rgb) -> tuple[float, float, float]:
    red, green, blue = (
        c / 12.92 if (c := level / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for level in rgb
    )
    return red, green, blue


def _open_sky(parts: list[Part], backdrop: Backdrop) -> Array:
    """[N] share of the ambient light that the ground receives beside things' feet."""
    share_RC = np.ones_like(backdrop.haze_RC)
    for part in parts:
        if part.contact_radius > 0:
            foot = part.solid.bound()[0]
            # Beyond this nothing is left of the darkening in float32.
            last = foot[1] + _LAST_CONTACT * part.contact_radius
            row = int(backdrop.nearness_R.searchsorted(-last))
            x_RC, y_RC = backdrop.ground_3RC[0, row:], backdrop.ground_3RC[1, row:]
            away_RC = ((x_RC - foot[0]) ** 2 + (y_RC - foot[1]) ** 2) / part.contact_radius**2
            away_RC *= -0.9
            np.exp(away_RC, out=away_RC)
            away_RC *= 0.6
            share_RC[row:] *= 1 - away_RC
    return share_RC.ravel()


def _gloss(
    part: Part,
    lit_3M: Array,
    point_3M: Array,
    normal_3M: Array,
    view_3M: Array,
    towards: Array,
    sunlit_M: Array,
) -> Array:
    """Add the mirrored sky and the highlight of a shiny surface to its lit colour."""
    centre, radius = part.solid.bound()
    outward_3M = (point_3M - np.array(centre, np.float32)[:, None]) / radius
    bent_3M = normal_3M + part.bevel * outward_3M
    bent_3M /= np.sqrt((bent_3M**2).sum(0))
    cosine_M = -(view_3M * bent_3M).sum(0)
    mirrored_3M = view_3M + 2 * cosine_M * bent_3M
    highlight_M = np.maximum(_dot(towards, mirrored_3M), 0) ** 7
    fresnel_M = 0.03 + 0.5 * (1 - np.clip(cosine_M, 0, 1)) ** 5
    sky_3M = sky_colour(mirrored_3M[2])
    mixed_3M = lit_3M + fresnel_M * (sky_3M - lit_3M)
    return mixed_3M + 1.8 * highlight_M * (0.25 + 0.75 * sunlit_M)
