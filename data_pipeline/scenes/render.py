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

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipeline.scenes.scene import Camera, Light
from data_pipeline.scenes.solids import Array, Point, Solid
from mgpt.tasks.scene_words import Rgb

# As indices they point behind the last part, to where lists of per-part values end with these two.
SKY, GROUND = -2, -1

# Linear light; together they bring lit ground near sRGB 228 and shadow near 150.
_SUN, _AMBIENT = 0.74, 0.42
_GROUND_ALBEDO = (0.80, 0.80, 0.80)
_HORIZON, _ZENITH = (0.86, 0.88, 0.90), (0.58, 0.68, 0.82)
_SHADOW_SAMPLES = 12


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

    `colour_HW3` is uint8 sRGB. `depth_RC` is float32 camera-axis depth (inf in the sky),
    `normal_3RC` the unit normal in camera axes (right, up, towards the camera; 0 in the sky),
    `part_RC` the index of the part met, or GROUND or SKY.
    """

    colour_HW3: Array
    depth_RC: Array
    normal_3RC: Array
    part_RC: Array
    parts: tuple[Part, ...]
    supersample: int

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


@dataclass(frozen=True)
class _Lens:
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
                (across * right + above * up + ahead) * cos_RC
                for right, up, ahead in zip(*self.axes, strict=True)
            ]
        )
        return direction_3RC.astype(np.float32), cos_RC.astype(np.float32)


def _lens(camera: Camera, rows: int, columns: int) -> _Lens:
    pitch = math.radians(camera.pitch_deg)
    cos, sin = math.cos(pitch), math.sin(pitch)
    return _Lens(
        position=(0.0, -camera.distance * cos, camera.target_z + camera.distance * sin),
        axes=((1.0, 0.0, 0.0), (0.0, sin, cos), (0.0, cos, -sin)),
        focal_rays=camera.distance * min(columns / camera.view_width, rows / camera.view_height),
        rows=rows,
        columns=columns,
    )


def project(camera: Camera, point: Point, height: int, width: int) -> tuple[float, float]:
    """Where a scene point falls: (x, y) in shares of width and height."""
    row, column, _ = _lens(camera, height, width).place(point)
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
    lens = _lens(camera, height * supersample, width * supersample)
    direction_3RC, cos_RC = lens.rays()
    hits = _cast(parts, lens, direction_3RC)
    linear_3RC = _shade(parts, light, lens.position, direction_3RC, hits, supersample)
    linear_3HW = pixel_mean(linear_3RC, supersample)
    srgb_3HW = np.where(
        linear_3HW < 0.0031308,
        12.92 * linear_3HW,
        1.055 * np.maximum(linear_3HW, 1e-6) ** (1 / 2.4) - 0.055,
    )
    colour_3HW = np.clip(srgb_3HW * 255 + 0.5, 0, 255).astype(np.uint8)
    right, up, ahead = lens.axes
    axes = np.array([right, up, [-component for component in ahead]], np.float32)
    return Frame(
        colour_HW3=np.ascontiguousarray(colour_3HW.transpose(1, 2, 0)),
        depth_RC=hits.distance_RC * cos_RC,
        normal_3RC=np.tensordot(axes, hits.normal_3RC, 1),
        part_RC=hits.part_RC,
        parts=tuple(parts),
        supersample=supersample,
    )


def pixel_mean(values_XRC: Array, supersample: int) -> Array:
    """[X, H, W]: mean over the subpixels of each pixel."""
    total = sum(
        values_XRC[:, row::supersample, column::supersample]
        for row in range(supersample)
        for column in range(supersample)
    )
    return np.asarray(total) / supersample**2


class _Hits(NamedTuple):
    """What each ray met first: distance, part (or GROUND or SKY) and scene-axes normal."""

    distance_RC: Array
    part_RC: Array
    normal_3RC: Array


def _cast(parts: list[Part], lens: _Lens, direction: Array) -> _Hits:
    is_down = direction[2] < -1e-4
    fall = np.where(is_down, direction[2], -1)
    distance_RC = np.where(is_down, -lens.position[2] / fall, np.inf).astype(np.float32)
    part_RC = np.where(is_down, GROUND, SKY).astype(np.int16)
    normal_3RC = np.zeros_like(direction)
    normal_3RC[2] = is_down
    for index, part in enumerate(parts):
        window = lens.window(*part.solid.bound())
        t = part.solid.hit(lens.position, tuple(direction[(slice(None), *window)]))
        closer = t < distance_RC[window]
        distance_RC[window][closer] = t[closer]
        part_RC[window][closer] = index
    for index, part in enumerate(parts):
        window = lens.window(*part.solid.bound())
        mine = part_RC[window] == index
        t = distance_RC[window][mine]
        point = tuple(
            origin + t * axis[mine]
            for origin, axis in zip(lens.position, direction[(slice(None), *window)], strict=True)
        )
        for axis, component in zip(normal_3RC, part.solid.normal(point), strict=True):
            axis[window][mine] = component
    return _Hits(distance_RC, part_RC, normal_3RC)


def _towards(light: Light) -> Point:
    """Unit vector towards the middle of the light."""
    azimuth, elevation = math.radians(light.azimuth_deg), math.radians(light.elevation_deg)
    level = math.cos(elevation)
    return -math.sin(azimuth) * level, -math.cos(azimuth) * level, math.sin(elevation)


def _light_directions(light: Light, num: int) -> Array:
    """[num, 3] unit vectors towards the light, spread evenly over its disc (a sunflower)."""
    x, y, z = _towards(light)
    level = math.hypot(x, y)
    side, over = (y / level, -x / level, 0.0), (-x * z / level, -y * z / level, level)
    place = np.arange(num) + 0.5
    reach = math.tan(math.radians(light.radius_deg)) * np.sqrt(place / num)
    angle = place * math.pi * (3 - math.sqrt(5))
    offsets = np.outer(reach * np.cos(angle), side) + np.outer(reach * np.sin(angle), over)
    directions = np.array([x, y, z]) + offsets
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)


def _sunlit(
    parts: list[Part],
    light: Light,
    point_3N: Array,
    part_N: Array,
    facing_N: Array,
    group_N: Array,
    num_groups: int,
) -> Array:
    """Share of the light that reaches each point, [N] in 0..1.

    Each of the subpixels of a pixel (`group_N`) tries its own few directions to the light, so
    their mean over the pixel is smooth while a ray pays for few.
    """
    tries = max(1, _SHADOW_SAMPLES // num_groups) if light.radius_deg > 0 else 1
    directions = _light_directions(light, tries * num_groups if light.radius_deg > 0 else 1)
    middle = _towards(light)
    spread = math.tan(math.radians(light.radius_deg))
    is_blocked = np.zeros((tries, len(part_N)), bool)
    for index, part in enumerate(parts):
        centre, radius = part.solid.bound()
        offset = [c - p for c, p in zip(centre, point_3N, strict=True)]
        ahead = sum(o * m for o, m in zip(offset, middle, strict=True))
        aside2 = sum(o * o for o in offset) - ahead * ahead
        reach = radius + spread * np.maximum(ahead, 0)
        candidates = np.flatnonzero(
            (aside2 < reach * reach) & (ahead > -radius) & (part_N != index) & (facing_N > 0)
        )
        if not len(candidates):
            continue
        origin = tuple(point_3N[:, candidates])
        for attempt in range(tries):
            which = (attempt * num_groups + group_N[candidates]) % len(directions)
            towards = tuple(np.take(directions.T, which, axis=1))
            is_blocked[attempt, candidates] |= part.solid.hit(origin, towards) < np.inf
    return 1 - is_blocked.mean(0, dtype=np.float32)


def _sky(up: Array) -> Array:
    """[3, ...] linear sky colour for the upward component of a direction."""
    height = np.clip(up * 3.0, 0, 1)
    return np.stack([h + (z - h) * height for h, z in zip(_HORIZON, _ZENITH, strict=True)])


def _shade(
    parts: list[Part],
    light: Light,
    position: Point,
    direction_3RC: Array,
    hits: _Hits,
    supersample: int,
) -> Array:
    """[3, R, C] linear colour."""
    rows, columns = hits.part_RC.shape
    part_N = hits.part_RC.ravel()
    is_sky, is_ground = part_N == SKY, part_N == GROUND
    t_N = np.where(is_sky, np.float32(0), hits.distance_RC.ravel())
    normal_3N, direction_3N = hits.normal_3RC.reshape(3, -1), direction_3RC.reshape(3, -1)
    point_3N = np.array(position, np.float32)[:, None] + t_N * direction_3N
    towards = np.array(_towards(light), np.float32)
    facing_N = towards @ normal_3N
    subpixel = np.arange(rows)[:, None] % supersample * supersample
    group_N = (subpixel + np.arange(columns) % supersample).ravel()
    sunlit_N = _sunlit(
        parts, light, point_3N + 2e-3 * normal_3N, part_N, facing_N, group_N, supersample**2
    )
    sun_N = _SUN * np.maximum(facing_N, 0) * sunlit_N
    # Light from all sides is weaker from below, and is kept off the ground beside a foot.
    ambient_N = _AMBIENT * (0.75 + 0.25 * normal_3N[2])
    ambient_N *= np.where(is_ground, _open_sky(parts, point_3N[0], point_3N[1]), 1)
    albedo_P3 = np.array([_linear(part.rgb) for part in parts] + [(0, 0, 0), _GROUND_ALBEDO])
    lit_3N = albedo_P3.T.astype(np.float32)[:, part_N] * (sun_N + ambient_N)
    # The ground melts into the horizon, as in a photographer's cove.
    haze_N = np.where(is_ground, np.clip((t_N - 8) / 14, 0, 1), 0)
    lit_3N += haze_N * (np.array(_HORIZON, np.float32)[:, None] - lit_3N)
    lit_3N[:, is_sky] = _sky(direction_3N[2, is_sky])
    for index, part in enumerate(parts):
        if part.is_shiny:
            mine = np.flatnonzero(part_N == index)
            lit_3N[:, mine] = _gloss(
                part,
                lit_3N[:, mine],
                point_3N[:, mine],
                normal_3N[:, mine],
                direction_3N[:, mine],
                towards,
                sunlit_N[mine],
            )
    return lit_3N.reshape(3, rows, columns)


def _linear(rgb: Rgb) -> tuple[float, float, float]:
    red, green, blue = (
        c / 12.92 if (c := level / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for level in rgb
    )
    return red, green, blue


def _open_sky(parts: list[Part], x: Array, y: Array) -> Array:
    """Share of the ambient light that the ground at (x, y) receives beside things' feet."""
    share = np.ones_like(x)
    for part in parts:
        if part.contact_radius > 0:
            foot = part.solid.bound()[0]
            reach2 = ((x - foot[0]) ** 2 + (y - foot[1]) ** 2) / part.contact_radius**2
            share *= 1 - 0.6 * np.exp(-0.9 * reach2)
    return share


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
    highlight_M = np.maximum(towards @ mirrored_3M, 0) ** 7
    fresnel_M = 0.03 + 0.5 * (1 - np.clip(cosine_M, 0, 1)) ** 5
    sky_3M = _sky(mirrored_3M[2])
    mixed_3M = lit_3M + fresnel_M * (sky_3M - lit_3M)
    return mixed_3M + 1.8 * highlight_M * (0.25 + 0.75 * sunlit_M)
