"""What a camera sees before anything stands there: its rays, the ground they meet, the sky.

All of it depends on the camera and the size of the picture alone, so the pictures of one scene
(edits, views) share it.

Shape suffixes: R, C rows and columns of rays; S rays that see the sky.

    >>> backdrop = backdrop_of(lens_of(Camera(), rows=128, columns=128))
    >>> backdrop.direction_3RC.shape
    (3, 128, 128)
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipeline.scenes.scene import Camera
from data_pipeline.scenes.solids import Array, Point

# As indices they point behind the last part, to where lists of per-part values end with these two.
SKY, GROUND = -2, -1

HORIZON, _ZENITH = (0.86, 0.88, 0.90), (0.58, 0.68, 0.82)
# Scene units by which the places of ground points are out at most, where shadows fall.
_SLACK = 0.05

Point2 = tuple[float, float]


@dataclass(frozen=True)
class Lens:
    """A camera resolved for one grid of rays: where it is, its axes and its focal length."""

    position: Point
    axes: tuple[Point, Point, Point]
    focal_rays: float
    rows: int
    columns: int

    def place(self, point: Point) -> tuple[float, float, float]:
        """Row and column, in rays, where a scene point falls, and its camera-axis depth."""
        offset = [p - o for p, o in zip(point, self.position, strict=True)]
        right, up, ahead = (
            sum(o * a for o, a in zip(offset, axis, strict=True)) for axis in self.axes
        )
        column = self.columns / 2 + self.focal_rays * right / ahead
        return self.rows / 2 - self.focal_rays * up / ahead, column, ahead

    def window(self, centre: Point, radius: float) -> tuple[slice, slice]:
        """The rows and columns of rays that can meet a sphere; generous by a ray."""
        row, column, ahead = self.place(centre)
        reach = self.focal_rays * radius / math.sqrt(max(ahead**2 - radius**2, 1e-6))
        # Off the axis the silhouette of a sphere is stretched by 1 / cos of its angle.
        away = math.hypot(row - self.rows / 2, column - self.columns / 2)
        reach *= math.hypot(1, away / self.focal_rays)
        return (
            slice(max(0, int(row - reach) - 1), max(0, min(self.rows, int(row + reach) + 2))),
            slice(
                max(0, int(column - reach) - 1), max(0, min(self.columns, int(column + reach) + 2))
            ),
        )

    def rays(self) -> tuple[Array, Array]:
        """Unit directions [3, R, C] and their cosine with the camera's axis [R, C]."""
        across = (np.arange(self.columns) + 0.5 - self.columns / 2)[None, :] / self.focal_rays
        above = (self.rows / 2 - 0.5 - np.arange(self.rows))[:, None] / self.focal_rays
        cos_RC = 1 / np.sqrt(across**2 + above**2 + 1)
        direction_3RC = np.stack(
            [
                (across * right + (above * up + ahead)) * cos_RC
                for right, up, ahead in zip(*self.axes, strict=True)
            ]
        )
        return direction_3RC.astype(np.float32), cos_RC.astype(np.float32)


def lens_of(camera: Camera, rows: int, columns: int) -> Lens:
    pitch = math.radians(camera.pitch_deg)
    cos, sin = math.cos(pitch), math.sin(pitch)
    return Lens(
        position=(0.0, -camera.distance * cos, camera.target_z + camera.distance * sin),
        axes=((1.0, 0.0, 0.0), (0.0, sin, cos), (0.0, cos, -sin)),
        focal_rays=camera.distance * min(columns / camera.view_width, rows / camera.view_height),
        rows=rows,
        columns=columns,
    )


class Backdrop(NamedTuple):
    """What a camera sees of a scene without parts: a function of the lens alone.

    `ground_3RC` are the points where rays meet the ground (the camera's own where they do not),
    `haze_RC` how far the ground has melted into the horizon there, `nearness_R` minus the y that a
    row's rays meet, rising, -inf where the row sees sky. Nothing may be written to any of it.
    """

    lens: Lens
    direction_3RC: Array
    cos_RC: Array
    distance_RC: Array
    part_RC: Array
    ground_3RC: Array
    haze_RC: Array
    nearness_R: Array
    sky_S: Array
    sky_colour_3S: Array

    def ground_window(self, low: Point2, high: Point2) -> tuple[slice, slice]:
        """Rows and columns of rays that can meet the ground between two corners (x, y)."""
        # A row's rays meet the ground at one y but for rounding; it falls from row to row.
        rows = slice(
            int(self.nearness_R.searchsorted(-high[1] - _SLACK)),
            int(self.nearness_R.searchsorted(_SLACK - low[1])),
        )
        if rows.start >= rows.stop:
            return slice(0, 0), slice(0, 0)
        # Where a given x falls moves one way from row to row: the outer rows bound the columns.
        outer = [self.ground_3RC[0, row] for row in (rows.start, rows.stop - 1)]
        first = min(int(x_C.searchsorted(low[0] - _SLACK)) for x_C in outer)
        last = max(int(x_C.searchsorted(high[0] + _SLACK)) for x_C in outer)
        return rows, slice(first, last)


@lru_cache(maxsize=4)
def backdrop_of(lens: Lens) -> Backdrop:
    direction_3RC, cos_RC = lens.rays()
    is_down = direction_3RC[2] < -1e-4
    fall = np.where(is_down, direction_3RC[2], -1)
    distance_RC = np.where(is_down, -lens.position[2] / fall, np.inf).astype(np.float32)
    t_RC = np.where(is_down, distance_RC, np.float32(0))
    ground_3RC = np.array(lens.position, np.float32)[:, None, None] + t_RC * direction_3RC
    sky_S = np.flatnonzero(~is_down)
    return Backdrop(
        lens=lens,
        direction_3RC=direction_3RC,
        cos_RC=cos_RC,
        distance_RC=distance_RC,
        part_RC=np.where(is_down, GROUND, SKY).astype(np.int16),
        ground_3RC=ground_3RC,
        # The ground melts into the horizon, as in a photographer's cove.
        haze_RC=np.where(is_down, np.clip((t_RC - 8) / 14, 0, 1), 0),
        nearness_R=np.where(is_down.all(1), -ground_3RC[1].max(1), -np.inf),
        sky_S=sky_S,
        sky_colour_3S=sky_colour(direction_3RC[2].ravel()[sky_S]),
    )


def sky_colour(up: Array) -> Array:
    """[3, ...] linear sky colour for the upward component of a direction."""
    height = np.clip(up * 3.0, 0, 1)
    return np.stack([h + (z - h) * height for h, z in zip(HORIZON, _ZENITH, strict=True)])
