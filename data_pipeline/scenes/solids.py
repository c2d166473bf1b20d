"""Analytic ray intersections of the convex solids that scenes are built of.

Every solid answers three questions about arrays of rays or points: where a ray first meets it
(`hit`), which way its surface faces at a point (`normal`), and which sphere encloses it
(`bound`). It knows nothing of colour, light or camera. Convexity is relied upon elsewhere: a
convex solid never shadows its own lit side.

Points and directions are triples (x, y, z) of float32 arrays of one shape, or of floats that
broadcast; z is up, y points away from the viewer. Directions have unit length.

Example:
    >>> import numpy as np
    >>> ball = Sphere(centre=(0.0, 0.0, 1.0), radius=1.0)
    >>> ray = np.zeros(1, np.float32), np.ones(1, np.float32), np.zeros(1, np.float32)
    >>> ball.hit((0.0, -5.0, 1.0), ray)
    array([4.], dtype=float32)
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray
Point = tuple[float, float, float]
# x, y, z, each a float32 array or a float.
Triple = tuple[Any, Any, Any]

_NEVER = np.float32(np.inf)
_TINY = np.float32(1e-7)


class Solid(Protocol):
    """What the renderer needs of a solid."""

    def hit(self, origin: Triple, direction: Triple) -> Array:
        """Distance to the first surface point in front of the origin, inf where missed."""
        ...

    def normal(self, point: Triple) -> Triple:
        """Outward unit normal at points of the surface."""
        ...

    def bound(self) -> tuple[Point, float]:
        """Centre and radius of an enclosing sphere."""
        ...


def _from(centre: Point, point: Triple) -> Triple:
    """Coordinates relative to a centre."""
    return point[0] - centre[0], point[1] - centre[1], point[2] - centre[2]


def _front(t: Array, is_hit: Array) -> Array:
    return np.where(is_hit & (t > 0), t, _NEVER)


def _inverse(component: Array) -> Array:
    # A ray parallel to a slab gets a huge finite slope, so that no 0 * inf arises.
    return 1 / np.where(np.abs(component) < _TINY, _TINY, component)


@dataclass(frozen=True)
class Sphere:
    """A ball."""

    centre: Point
    radius: float

    def hit(self, origin: Triple, direction: Triple) -> Array:
        x, y, z = _from(self.centre, origin)
        dx, dy, dz = direction
        b = x * dx + y * dy + z * dz
        disc = b * b - (x * x + y * y + z * z - self.radius**2)
        return _front(-b - np.sqrt(np.maximum(disc, 0)), disc > 0)

    def normal(self, point: Triple) -> Triple:
        x, y, z = _from(self.centre, point)
        return x / self.radius, y / self.radius, z / self.radius

    def bound(self) -> tuple[Point, float]:
        return self.centre, self.radius


@dataclass(frozen=True)
class Cube:
    """A cube turned by `yaw` radians about the vertical."""

    centre: Point
    half_edge: float
    yaw: float

    def _local(self, v: Triple) -> Triple:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return cos * v[0] + sin * v[1], cos * v[1] - sin * v[0], v[2]

    def hit(self, origin: Triple, direction: Triple) -> Array:
        local = self._local(_from(self.centre, origin))
        near: Any = -_NEVER
        far: Any = _NEVER
        for o, d in zip(local, self._local(direction), strict=True):
            inverse = _inverse(d)
            middle, half = -o * inverse, self.half_edge * np.abs(inverse)
            near, far = np.maximum(near, middle - half), np.minimum(far, middle + half)
        return _front(near, near < far)

    def normal(self, point: Triple) -> Triple:
        local = np.stack(self._local(_from(self.centre, point)))
        axis = np.abs(local).argmax(axis=0)[None]
        face = np.zeros_like(local)
        np.put_along_axis(face, axis, np.sign(np.take_along_axis(local, axis, 0)), 0)
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return cos * face[0] - sin * face[1], sin * face[0] + cos * face[1], face[2]

    def bound(self) -> tuple[Point, float]:
        return self.centre, self.half_edge * math.sqrt(3)


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder; `centre` is the middle of its axis."""

    centre: Point
    radius: float
    half_height: float

    def hit(self, origin: Triple, direction: Triple) -> Array:
        x, y, z = _from(self.centre, origin)
        dx, dy, dz = direction
        a = np.maximum(dx * dx + dy * dy, _TINY)
        b = x * dx + y * dy
        disc = b * b - a * (x * x + y * y - self.radius**2)
        root = np.sqrt(np.maximum(disc, 0))
        inverse = _inverse(dz)
        middle, half = -z * inverse, self.half_height * np.abs(inverse)
        near = np.maximum((-b - root) / a, middle - half)
        far = np.minimum((-b + root) / a, middle + half)
        return _front(near, (disc > 0) & (near < far))

    def normal(self, point: Triple) -> Triple:
        x, y, z = _from(self.centre, point)
        # A point lies on a cap when it is relatively closer to the cap's plane than to the side.
        is_cap = np.abs(z) / self.half_height > np.hypot(x, y) / self.radius
        side = np.where(is_cap, 0, 1 / self.radius)
        return x * side, y * side, np.where(is_cap, np.sign(z), 0).astype(np.float32)

    def bound(self) -> tuple[Point, float]:
        return self.centre, math.hypot(self.radius, self.half_height)


@dataclass(frozen=True)
class Cone:
    """An upright cone, apex up; `centre` is the middle of its base."""

    centre: Point
    radius: float
    height: float

    def hit(self, origin: Triple, direction: Triple) -> Array:
        x, y, z = _from(self.centre, origin)
        dx, dy, dz = direction
        slope2 = (self.radius / self.height) ** 2
        drop = z - self.height
        a = dx * dx + dy * dy - slope2 * dz * dz
        a = np.where(np.abs(a) < _TINY, _TINY, a)
        b = x * dx + y * dy - slope2 * drop * dz
        disc = b * b - a * (x * x + y * y - slope2 * drop * drop)
        root = np.sqrt(np.maximum(disc, 0))
        base = -z * _inverse(dz)
        on_base = (x + base * dx) ** 2 + (y + base * dy) ** 2 < self.radius**2
        best = _front(base, on_base)
        for t in ((-b - root) / a, (-b + root) / a):
            level = z + t * dz
            best = np.minimum(best, _front(t, (disc > 0) & (level > 0) & (level < self.height)))
        return best

    def normal(self, point: Triple) -> Triple:
        x, y, z = _from(self.centre, point)
        is_base = z < 1e-3 * self.height
        slant = math.hypot(self.radius, self.height)
        reach = np.maximum(np.hypot(x, y), _TINY)
        side = np.where(is_base, 0, self.height / slant / reach)
        up = np.where(is_base, -1, self.radius / slant).astype(np.float32)
        return x * side, y * side, up

    def bound(self) -> tuple[Point, float]:
        # The sphere through the apex and the base circle, or the base's own where the cone is flat.
        x, y, z = self.centre
        if self.height <= self.radius:
            return self.centre, self.radius
        radius = (self.height**2 + self.radius**2) / (2 * self.height)
        return (x, y, z + self.height - radius), radius


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` of the segment from `start` to `end`."""

    start: Point
    end: Point
    radius: float

    def hit(self, origin: Triple, direction: Triple) -> Array:
        x, y, z = _from(self.start, origin)
        dx, dy, dz = direction
        ax, ay, az = _from(self.start, self.end)
        length2 = ax * ax + ay * ay + az * az
        along, shift = ax * dx + ay * dy + az * dz, ax * x + ay * y + az * z
        dot = dx * x + dy * y + dz * z
        a = np.maximum(length2 - along * along, _TINY)
        b = length2 * dot - shift * along
        c = length2 * (x * x + y * y + z * z) - shift * shift - self.radius**2 * length2
        disc = b * b - a * c
        t = (-b - np.sqrt(np.maximum(disc, 0))) / a
        place = shift + t * along
        side = _front(t, (disc > 0) & (place > 0) & (place < length2))
        caps = (Sphere(end, self.radius).hit(origin, direction) for end in (self.start, self.end))
        return np.minimum(side, np.minimum(*caps))

    def normal(self, point: Triple) -> Triple:
        x, y, z = _from(self.start, point)
        ax, ay, az = _from(self.start, self.end)
        share = np.clip((x * ax + y * ay + z * az) / (ax * ax + ay * ay + az * az), 0, 1)
        inverse = 1 / self.radius
        return (x - share * ax) * inverse, (y - share * ay) * inverse, (z - share * az) * inverse

    def bound(self) -> tuple[Point, float]:
        (ax, ay, az), (bx, by, bz) = self.start, self.end
        middle = ((ax + bx) / 2, (ay + by) / 2, (az + bz) / 2)
        return middle, math.dist(self.start, self.end) / 2 + self.radius
