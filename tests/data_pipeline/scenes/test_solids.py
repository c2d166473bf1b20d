"""Each solid's hit lies on its surface, in front of everything else inside, with its normal."""

import numpy as np
import pytest

from data_pipeline.scenes.solids import Capsule, Cone, Cube, Cylinder, Solid, Sphere


def _distance_to_sphere(p):
    return np.linalg.norm(p - [0.2, 0.1, 0.9], axis=-1) - 0.7


def _distance_to_cube(p):
    cos, sin = np.cos(0.4), np.sin(0.4)
    x, y, z = (p - [0.2, 0.1, 0.6]).T
    local = np.stack([cos * x + sin * y, cos * y - sin * x, z])
    return np.abs(local).max(0) - 0.6


def _distance_to_cylinder(p):
    x, y, z = (p - [0.2, 0.1, 0.8]).T
    return np.maximum(np.hypot(x, y) - 0.5, np.abs(z) - 0.8)


def _distance_to_cone(p):
    x, y, z = (p - [0.2, 0.1, 0.1]).T
    return np.maximum(np.hypot(x, y) - 0.6 * (1 - z / 1.3), -z)


def _distance_to_capsule(p):
    start, end = np.array([-0.3, 0.1, 0.4]), np.array([0.4, -0.2, 1.1])
    share = np.clip((p - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
    return np.linalg.norm(p - start - share[:, None] * (end - start), axis=-1) - 0.3


SOLIDS = {
    "sphere": (Sphere((0.2, 0.1, 0.9), 0.7), _distance_to_sphere),
    "cube": (Cube((0.2, 0.1, 0.6), 0.6, 0.4), _distance_to_cube),
    "cylinder": (Cylinder((0.2, 0.1, 0.8), 0.5, 0.8), _distance_to_cylinder),
    "cone": (Cone((0.2, 0.1, 0.1), 0.6, 1.3), _distance_to_cone),
    "capsule": (Capsule((-0.3, 0.1, 0.4), (0.4, -0.2, 1.1), 0.3), _distance_to_capsule),
}


def _rays(num=3000):
    """Rays from all around towards the solids, most but not all of which meet them."""
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(num, 3))
    origin *= 5 / np.linalg.norm(origin, axis=1, keepdims=True)
    aim = rng.normal((0.2, 0.1, 0.8), 0.6, size=(num, 3))
    direction = aim - origin
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return origin.astype(np.float32), direction.astype(np.float32)


def _hit(solid: Solid, origin, direction):
    return solid.hit(tuple(origin.T), tuple(direction.T))


@pytest.mark.parametrize("name", SOLIDS)
def test_hit_is_the_first_point_of_the_surface(name):
    solid, distance = SOLIDS[name]
    origin, direction = _rays()
    t = _hit(solid, origin, direction)
    is_hit = np.isfinite(t)
    assert 0.2 < is_hit.mean() < 0.95
    np.testing.assert_allclose(
        distance(origin[is_hit] + t[is_hit, None] * direction[is_hit]), 0, atol=2e-3
    )
    # Marching along the ray meets no inside earlier, and none at all on a miss.
    steps = np.linspace(0, 9, 240)
    inside = np.stack([distance(origin + s * direction) < -2e-3 for s in steps])
    first = np.where(inside.any(0), steps[inside.argmax(0)], np.inf)
    assert (t <= first + 1e-3).all()


@pytest.mark.parametrize("name", SOLIDS)
def test_normal_is_the_gradient_of_the_distance(name):
    solid, distance = SOLIDS[name]
    origin, direction = _rays()
    t = _hit(solid, origin, direction)
    is_hit = np.isfinite(t)
    points = origin[is_hit] + t[is_hit, None] * direction[is_hit]
    normal = np.stack(solid.normal(tuple(points.T)), -1)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=2e-3)
    step = 1e-3
    axes = np.eye(3) * step
    gradient = np.stack([distance(points + a) - distance(points - a) for a in axes], -1)
    gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
    agrees = (normal * gradient).sum(-1) > 0.999
    # At an edge the difference quotient straddles two faces.
    assert agrees.mean() > 0.97


@pytest.mark.parametrize("name", SOLIDS)
def test_bound_encloses_every_hit(name):
    solid, _ = SOLIDS[name]
    origin, direction = _rays()
    t = _hit(solid, origin, direction)
    is_hit = np.isfinite(t)
    centre, radius = solid.bound()
    points = origin[is_hit] + t[is_hit, None] * direction[is_hit]
    assert np.linalg.norm(points - np.array(centre), axis=-1).max() <= radius + 1e-3
