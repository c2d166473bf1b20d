"""The renderer's measurements are exact, and its picture shows light and shadow."""

import math

import numpy as np
import pytest

from data_pipeline.scenes.backdrop import GROUND, SKY
from data_pipeline.scenes.figure import scene_parts
from data_pipeline.scenes.render import Part, project, render
from data_pipeline.scenes.scene import KINDS, Camera, Light, sample_scene
from data_pipeline.scenes.solids import Cube, Sphere
from tests.data_pipeline.scenes.plain_render import plain_render

CAMERA = Camera()
CENTRE, RADIUS = np.array([0.4, -0.2, 0.7]), 0.7
BALL = Part(Sphere(tuple(CENTRE), RADIUS), (208, 32, 42), owner=0, label="sphere")


def _camera_axes():
    pitch = math.radians(CAMERA.pitch_deg)
    cos, sin = math.cos(pitch), math.sin(pitch)
    eye = np.array([0, -CAMERA.distance * cos, CAMERA.target_z + CAMERA.distance * sin])
    return eye, np.array([[1, 0, 0], [0, sin, cos], [0, cos, -sin]])


def _sphere_by_hand(rows, columns):
    """Camera-axis depth and camera-axes normal of the ball for each ray, in float64."""
    eye, axes = _camera_axes()
    focal = CAMERA.distance * min(columns / CAMERA.view_width, rows / CAMERA.view_height)
    x = (np.arange(columns) + 0.5 - columns / 2) / focal
    y = (rows / 2 - np.arange(rows) - 0.5) / focal
    rays = np.stack([*np.broadcast_arrays(x[None, :], y[:, None], 1.0)], -1)
    centre = axes @ (CENTRE - eye)
    a, b = (rays**2).sum(-1), rays @ centre
    disc = b**2 - a * (centre @ centre - RADIUS**2)
    depth = np.where(disc > 0, (b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)
    normal = (np.where(disc > 0, depth, 0)[..., None] * rays - centre) / RADIUS
    return depth, normal * [1, 1, -1], disc


def test_depth_and_normals_of_a_sphere_are_the_analytic_ones():
    frame = render([BALL], CAMERA, Light(), 48, 64)
    depth, normal, disc = _sphere_by_hand(96, 128)
    mask = frame.owner_mask(0)
    # Rays that graze the outline may fall to either side of it in float32.
    clear = np.abs(disc) > 1e-4
    assert (mask == np.isfinite(depth))[clear].all()
    inside = mask & clear
    np.testing.assert_allclose(frame.depth_RC[inside], depth[inside], atol=2e-3)
    np.testing.assert_allclose(frame.normal_3RC[:, inside].T, normal[inside], atol=2e-2)


def test_ground_depth_and_normal():
    frame = render([], CAMERA, Light(), 64, 64)
    eye, axes = _camera_axes()
    rows, columns = np.nonzero(frame.part_RC == GROUND)
    focal = CAMERA.distance * 128 / CAMERA.view_width
    rays = np.stack([(columns - 63.5) / focal, (63.5 - rows) / focal, np.ones(len(rows))], -1)
    points = eye + (rays * frame.depth_RC[rows, columns][:, None]) @ axes
    far = frame.depth_RC[rows, columns] > 60
    np.testing.assert_allclose(points[~far][:, 2], 0, atol=2e-3)
    pitch = math.radians(CAMERA.pitch_deg)
    up = np.array([0, math.cos(pitch), math.sin(pitch)])[:, None]
    np.testing.assert_allclose(frame.normal_3RC[:, rows, columns], up + 0 * rows, atol=1e-5)
    assert np.isinf(frame.depth_RC[frame.part_RC == SKY]).all()


def test_box_just_encloses_the_owner():
    frame = render([BALL], CAMERA, Light(), 64, 64)
    x0, y0, x1, y1 = (round(128 * side) for side in frame.owner_box(0))
    mask = frame.owner_mask(0)
    assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
    assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
    assert frame.owner_box(1) is None


@pytest.mark.parametrize("size", [(64, 64), (56, 80), (80, 56)])
def test_projection_meets_the_picture(size):
    height, width = size
    frame = render([BALL], CAMERA, Light(), height, width)
    x0, y0, x1, y1 = frame.owner_box(0)
    x, y = project(CAMERA, tuple(CENTRE), height, width)
    assert abs(x - (x0 + x1) / 2) < 0.02 and abs(y - (y0 + y1) / 2) < 0.02


def test_the_nearer_part_hides_the_farther():
    behind = Part(Cube((0.4, 1.5, 0.3), 0.3, 0.0), (38, 84, 214), owner=1, label="cube")
    both = render([behind, BALL], CAMERA, Light(), 64, 64)
    alone = render([BALL], CAMERA, Light(), 64, 64)
    assert (both.owner_mask(0) == alone.owner_mask(0)).all()
    assert both.owner_mask(1).sum() < render([behind], CAMERA, Light(), 64, 64).owner_mask(1).sum()


def _ground_levels(light):
    frame = render([BALL], CAMERA, light, 64, 64)
    is_ground = (frame.part_RC == GROUND).reshape(64, 2, 64, 2).all((1, 3))
    bare = render([], CAMERA, light, 64, 64)
    darker = bare.colour_HW3.astype(int)[..., 0] - frame.colour_HW3[..., 0]
    return darker[is_ground & (darker > 0)], np.argwhere(is_ground & (darker > 40))


def test_shadow_falls_away_from_the_light():
    _, from_left = _ground_levels(Light(azimuth_deg=60))
    _, from_right = _ground_levels(Light(azimuth_deg=-60))
    assert from_left[:, 1].mean() > from_right[:, 1].mean() + 10


def test_a_wide_light_softens_the_shadow():
    hard, _ = _ground_levels(Light(radius_deg=0.0))
    soft, _ = _ground_levels(Light(radius_deg=8.0))
    between = [np.mean((levels > 25) & (levels < 60)) for levels in (hard, soft)]
    assert between[1] > between[0]


def test_shiny_has_a_white_highlight_and_matte_has_none():
    def least_channel(is_shiny):
        part = Part(BALL.solid, BALL.rgb, 0, "sphere", is_shiny=is_shiny)
        frame = render([part], CAMERA, Light(), 64, 64)
        inside = frame.owner_mask(0).reshape(64, 2, 64, 2).all((1, 3))
        return frame.colour_HW3[inside].min(-1).max()

    assert least_channel(True) > 180 and least_channel(False) < 80


def _assert_plain(parts, camera, light, height, width, supersample=2):
    frame = render(parts, camera, light, height, width, supersample)
    colour, depth, normal, part = plain_render(parts, camera, light, height, width, supersample)
    assert (frame.part_RC == part).all()
    np.testing.assert_array_equal(frame.colour_HW3, colour)
    np.testing.assert_array_equal(frame.depth_RC, depth)
    np.testing.assert_array_equal(frame.normal_3RC, normal)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_scene_has_the_pixels_of_the_plain_formulas(kind):
    for index in range(12):
        scene = sample_scene(5, "train", kind, index)
        parts = scene_parts(scene, azimuth_deg=40.0 * index)
        _assert_plain(parts, scene.camera, scene.light, *((64, 64), (48, 80), (80, 48))[index % 3])


@pytest.mark.parametrize(
    ("camera", "light", "supersample"),
    [
        (CAMERA, Light(radius_deg=0.0), 2),
        (CAMERA, Light(elevation_deg=4.0, radius_deg=5.0), 2),  # a shadow without an end
        (CAMERA, Light(elevation_deg=12.0, azimuth_deg=-100), 2),
        (CAMERA, Light(elevation_deg=88.0), 3),
        (Camera(pitch_deg=-3.0), Light(), 2),  # half of it is sky
        (Camera(distance=2.5, pitch_deg=60), Light(radius_deg=20.0), 1),
        (Camera(view_width=14.0), Light(), 2),
    ],
)
def test_any_camera_and_light_give_the_pixels_of_the_plain_formulas(camera, light, supersample):
    cube = Part(Cube((-0.9, 0.4, 0.4), 0.4, 0.3), (38, 84, 214), 1, "cube", contact_radius=0.6)
    shiny = Part(BALL.solid, BALL.rgb, 0, "sphere", is_shiny=True, contact_radius=0.5)
    beside = Part(Sphere((3.5, 2.0, 0.5), 0.5), (40, 160, 60), 2, "sphere")  # out of view or not
    _assert_plain([shiny, cube, beside], camera, light, 40, 56, supersample)
    _assert_plain([], camera, light, 40, 56, supersample)
