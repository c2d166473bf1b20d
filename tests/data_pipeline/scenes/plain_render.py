"""The renderer without its shortcuts: every formula over every ray, nothing kept or left out.

What `data_pipeline.scenes.render` must equal, bit for bit. Lenses, lights and surfaces are the
renderer's own; which rays are looked at, and in how many pieces, is done the plain way here.
"""

import math

import numpy as np

from data_pipeline.scenes import render as fast
from data_pipeline.scenes import shadows
from data_pipeline.scenes.backdrop import GROUND, HORIZON, SKY, lens_of, sky_colour


def plain_render(parts, camera, light, height, width, supersample=2):
    """Colour uint8 [H, W, 3], depth [R, C], camera-axes normal [3, R, C], part [R, C]."""
    lens = lens_of(camera, height * supersample, width * supersample)
    direction_3RC, cos_RC = lens.rays()
    distance_RC, part_RC, normal_3RC = _cast(parts, lens, direction_3RC)
    lit_3N = _shade(
        parts,
        light,
        lens.position,
        direction_3RC.reshape(3, -1),
        (distance_RC.ravel(), part_RC.ravel(), normal_3RC.reshape(3, -1)),
        _subpixels(part_RC.shape, supersample),
        supersample**2,
    )
    linear_3HW = fast.pixel_mean(lit_3N.reshape(direction_3RC.shape), supersample)
    low, high = 12.92 * linear_3HW, np.maximum(linear_3HW, 1e-6) ** (1 / 2.4)
    srgb_3HW = np.where(linear_3HW < 0.0031308, low, 1.055 * high - 0.055)
    colour_3HW = np.clip(srgb_3HW * 255 + 0.5, 0, 255).astype(np.uint8)
    right, up, ahead = lens.axes
    axes = np.array([right, up, [-component for component in ahead]], np.float32)
    normal_3RC = np.tensordot(axes, normal_3RC, 1)
    return colour_3HW.transpose(1, 2, 0), distance_RC * cos_RC, normal_3RC, part_RC


def _subpixels(shape_RC, supersample):
    """[N]: which of its pixel's rays each one is."""
    row_R1, column_C = np.arange(shape_RC[0])[:, None], np.arange(shape_RC[1])
    return (row_R1 % supersample * supersample + column_C % supersample).ravel()


def _cast(parts, lens, direction_3RC):
    is_down = direction_3RC[2] < -1e-4
    fall = np.where(is_down, direction_3RC[2], -1)
    distance_RC = np.where(is_down, -lens.position[2] / fall, np.inf).astype(np.float32)
    part_RC = np.where(is_down, GROUND, SKY).astype(np.int16)
    normal_3RC = np.zeros_like(direction_3RC)
    normal_3RC[2] = is_down
    for index, part in enumerate(parts):
        t = part.solid.hit(lens.position, tuple(direction_3RC))
        closer = t < distance_RC
        distance_RC[closer] = t[closer]
        part_RC[closer] = index
    for index, part in enumerate(parts):
        mine = part_RC == index
        point = tuple(
            origin + distance_RC[mine] * axis[mine]
            for origin, axis in zip(lens.position, direction_3RC, strict=True)
        )
        for axis, component in zip(normal_3RC, part.solid.normal(point), strict=True):
            axis[mine] = component
    return distance_RC, part_RC, normal_3RC


def _sunlit(parts, light, point_3N, part_N, facing_N, group_N, num_groups):
    tries = max(1, shadows._SAMPLES // num_groups) if light.radius_deg > 0 else 1
    directions = shadows.light_directions(light, tries * num_groups if light.radius_deg > 0 else 1)
    middle, spread = shadows.towards_light(light), math.tan(math.radians(light.radius_deg))
    is_blocked = np.zeros((tries, len(part_N)), bool)
    for index, part in enumerate(parts):
        is_near = shadows.near_light(part, point_3N, middle, spread)
        candidates = np.flatnonzero(is_near & (part_N != index) & (facing_N > 0))
        origin = tuple(point_3N[:, candidates])
        for attempt in range(tries):
            which = (attempt * num_groups + group_N[candidates]) % directions.shape[1]
            hit = part.solid.hit(origin, tuple(directions[:, which]))
            is_blocked[attempt, candidates] |= hit < np.inf
    return 1 - is_blocked.mean(0, dtype=np.float32)


def _shade(parts, light, position, direction_3N, hits, group_N, num_groups):
    distance_N, part_N, normal_3N = hits
    is_sky, is_ground = part_N == SKY, part_N == GROUND
    t_N = np.where(is_sky, np.float32(0), distance_N)
    point_3N = np.array(position, np.float32)[:, None] + t_N * direction_3N
    towards = np.array(shadows.towards_light(light), np.float32)
    facing_N = fast._dot(towards, normal_3N)
    lifted_3N = point_3N + 2e-3 * normal_3N
    sunlit_N = _sunlit(parts, light, lifted_3N, part_N, facing_N, group_N, num_groups)
    sun_N = fast._SUN * np.maximum(facing_N, 0) * sunlit_N
    open_N = np.ones_like(t_N)
    for part in parts:
        if part.contact_radius > 0:
            x, y, _ = part.solid.bound()[0]
            away_N = ((point_3N[0] - x) ** 2 + (point_3N[1] - y) ** 2) / part.contact_radius**2
            open_N *= 1 - 0.6 * np.exp(-0.9 * away_N)
    ambient_N = fast._AMBIENT * (0.75 + 0.25 * normal_3N[2]) * np.where(is_ground, open_N, 1)
    albedo = [fast._linear(part.rgb) for part in parts]
    albedo_P3 = np.array([*albedo, (0, 0, 0), (fast._GROUND_ALBEDO,) * 3], np.float32)
    lit_3N = albedo_P3.T[:, part_N] * (sun_N + ambient_N)
    haze_N = np.where(is_ground, np.clip((t_N - 8) / 14, 0, 1), 0)
    lit_3N += haze_N * (np.array(HORIZON, np.float32)[:, None] - lit_3N)
    lit_3N[:, is_sky] = sky_colour(direction_3N[2, is_sky])
    for index, part in enumerate(parts):
        if part.is_shiny:
            mine = part_N == index
            surface = (lit_3N, point_3N, normal_3N, direction_3N)
            seen = (np.ascontiguousarray(values[:, mine]) for values in surface)
            lit_3N[:, mine] = fast._gloss(part, *seen, towards, sunlit_N[mine])
    return lit_3N
