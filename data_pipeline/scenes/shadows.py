"""Which rays of the light reach a point: soft shadows of solids on the ground and on each other.

Shape suffixes: N all rays of a frame, M those that met a part, L of these the lit side, K points
that may lie in one part's shadow; T tries a ray, D directions to the light.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.scenes.backdrop import GROUND, Point2
from data_pipeline.scenes.scene import Light
from data_pipeline.scenes.solids import Array, Point, Triple

if TYPE_CHECKING:
    from data_pipeline.scenes.render import Hits, Part

_SAMPLES = 12


def towards_light(light: Light) -> Point:
    """Unit vector towards the middle of the light."""
    azimuth, elevation = math.radians(light.azimuth_deg), math.radians(light.elevation_deg)
    level = math.cos(elevation)
    return -math.sin(azimuth) * level, -math.cos(azimuth) * level, math.sin(elevation)


@lru_cache(maxsize=4)
def light_directions(light: Light, num: int) -> Array:
    """[3, num] unit vectors towards the light, spread evenly over its disc (a sunflower)."""
    x, y, z = towards_light(light)
    level = math.hypot(x, y)
    side, over = (y / level, -x / level, 0.0), (-x * z / level, -y * z / level, level)
    place = np.arange(num) + 0.5
    reach = math.tan(math.radians(light.radius_deg)) * np.sqrt(place / num)
    angle = place * math.pi * (3 - math.sqrt(5))
    offsets = np.outer(reach * np.cos(angle), side) + np.outer(reach * np.sin(angle), over)
    directions = np.array([x, y, z]) + offsets
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.ascontiguousarray(directions.T, np.float32)


def _shadow_reach(
    centre: Point, radius: float, middle: Point, spread: float
) -> tuple[Point2, Point2] | None:
    """Corners (x, y) of a piece of ground that holds all of a ball's shadow; None: it has no end.

    A ray towards the light that passes the ball at `aside` from its centre and `ahead` of its foot
    needs aside < radius + spread * ahead.
    """
    level, rise = math.hypot(middle[0], middle[1]), middle[2]
    if rise <= spread * level:
        return None
    longest = (centre[2] + radius) / (rise - spread * level)
    aside = radius + spread * longest
    # A point lies at centre - ahead * middle, give or take `aside`, -radius < ahead < longest.
    ends = [sorted((-radius * m, longest * m)) for m in middle[:2]]
    low = centre[0] - aside - ends[0][1], centre[1] - aside - ends[1][1]
    high = centre[0] + aside - ends[0][0], centre[1] + aside - ends[1][0]
    return low, high


def blocked_light(
    parts: "list[Part]", light: Light, hits: "Hits", facing_M: Array, supersample: int
) -> tuple[Array, Array]:
    """How many of the directions to the light that each ray's point tries are blocked, [N], and
    the share of the light that comes through by that number.

    Each of the subpixels of a pixel tries its own few, so their mean over the pixel is smooth
    while a ray pays for few.
    """
    num_groups = supersample**2
    tries = max(1, _SAMPLES // num_groups) if light.radius_deg > 0 else 1
    directions_3D = light_directions(light, tries * num_groups if light.radius_deg > 0 else 1)
    middle = towards_light(light)
    spread = math.tan(math.radians(light.radius_deg))
    columns = hits.backdrop.lens.columns
    blocked_TN = np.zeros((tries, hits.part_RC.size), bool)
    part_M = np.repeat(np.arange(len(parts)), np.diff(hits.borders))
    place_L = hits.place_M[facing_M > 0]
    point_3L = (hits.point_3M + 2e-3 * hits.normal_3M)[:, facing_M > 0]
    part_L = part_M[facing_M > 0]
    for index, part in enumerate(parts):
        ground_K, ground_3K = _shaded_ground(part, hits, middle, spread)
        chosen_L = np.flatnonzero(near_light(part, point_3L, middle, spread) & (part_L != index))
        place_K = np.concatenate([ground_K, place_L[chosen_L]])
        if not len(place_K):
            continue
        origin_3K = np.concatenate([ground_3K, point_3L[:, chosen_L]], axis=1)
        row_K, column_K = np.divmod(place_K, columns)
        group_K = row_K % supersample * supersample + column_K % supersample
        which_TK = np.arange(tries)[:, None] * num_groups + group_K
        which_TK %= directions_3D.shape[1]
        towards = tuple(axis_D.take(which_TK) for axis_D in directions_3D)
        blocked_TN[:, place_K] |= part.solid.hit(tuple(origin_3K), towards) < np.inf
    through_T = 1 - np.arange(tries + 1, dtype=np.float32) / tries
    return blocked_TN.sum(0, dtype=np.uint8), through_T


def near_light(part: "Part", point: Triple | Array, middle: Point, spread: float) -> Array:
    """Whether the ball around a part may stand between each point and some of the light."""
    centre, radius = part.solid.bound()
    offset = [c - p for c, p in zip(centre, point, strict=True)]
    ahead = offset[0] * middle[0] + offset[1] * middle[1] + offset[2] * middle[2]
    aside2 = offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2 - ahead * ahead
    reach = radius + spread * np.maximum(ahead, 0)
    return (aside2 < reach * reach) & (ahead > -radius)


def _shaded_ground(part: "Part", hits: "Hits", middle: Point, spread: float) -> tuple[Array, Array]:
    """Places [K] and points [3, K] of the ground that may lie in a part's shadow."""
    backdrop = hits.backdrop
    reach = _shadow_reach(*part.solid.bound(), middle, spread)
    rows, columns = slice(0, backdrop.lens.rows), slice(0, backdrop.lens.columns)
    if reach is not None:
        rows, columns = backdrop.ground_window(*reach)
    point_3RC = backdrop.ground_3RC[:, rows, columns]
    lifted = point_3RC[0], point_3RC[1], point_3RC[2] + np.float32(2e-3)
    is_near_RC = near_light(part, lifted, middle, spread)
    row_K, column_K = np.nonzero(is_near_RC & (hits.part_RC[rows, columns] == GROUND))
    place_K = (row_K + rows.start) * backdrop.lens.columns + (column_K + columns.start)
    return place_K, np.stack([axis[row_K, column_K] for axis in lifted])
