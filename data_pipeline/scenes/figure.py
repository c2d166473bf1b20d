"""From a scene's description to the parts that the renderer takes, and the mannequin's joints.

It decides what a cube or a mannequin measures. It knows no picture.

Example:
    >>> [part.label for part in scene_parts(sample_scene(seed=7, split="train", kind="objects"))]
    ['cylinder']
"""

import math

from data_pipeline.scenes.render import Part
from data_pipeline.scenes.scene import Mannequin, Scene, SceneObject
from data_pipeline.scenes.solids import Capsule, Cone, Cube, Cylinder, Point, Solid, Sphere
from data_pipeline.scenes.vocabulary import COLOURS, JOINTS, Rgb

_SKIN: Rgb = (226, 196, 170)
_TROUSERS: Rgb = (70, 74, 88)
_SHOES: Rgb = (48, 44, 46)

# Shoulder and elbow angles in degrees from hanging straight down, outwards being positive; the
# forearm's angle counts from the same downward line.
_ARMS: dict[str, tuple[float, float]] = {
    "down": (16, 10),
    "up": (158, 170),
    "out": (90, 90),
    "hip": (52, -48),
}
# (right arm, left arm), the mannequin's own.
_POSE_ARMS: dict[str, tuple[str, str]] = {
    "both arms down": ("down", "down"),
    "the left arm up": ("down", "up"),
    "the right arm up": ("up", "down"),
    "both arms up": ("up", "up"),
    "both arms out": ("out", "out"),
    "the left arm out": ("down", "out"),
    "the right arm out": ("out", "down"),
    "both hands on the hips": ("hip", "hip"),
}

_NECK_Z, _HIP_Z, _THIGH, _SHIN, _UPPER_ARM, _FOREARM = 1.62, 0.98, 0.47, 0.43, 0.36, 0.34


def scene_parts(scene: Scene, azimuth_deg: float = 0.0) -> list[Part]:
    """The parts of a scene turned by `azimuth_deg`; owner i is object i, or the mannequin (0).

    The ball of a turntable has the owner after its object.
    """
    if scene.mannequin is not None:
        return _mannequin_parts(scene.mannequin)
    parts = [
        _object_part(scene_object, owner, azimuth_deg)
        for owner, scene_object in enumerate(scene.objects)
    ]
    if scene.ball is not None:
        host = scene.objects[0]
        angle = math.radians(scene.ball.azimuth_deg + azimuth_deg)
        radius = 0.36 * host.radius
        # Just clear of the body's side at the height where it hangs.
        side = {"sphere": 1.2, "cube": 1.05, "cylinder": 0.84, "cone": 0.84}[host.shape]
        reach = side * host.radius
        centre = (
            host.x + reach * math.sin(angle),
            host.y - reach * math.cos(angle),
            0.9 * host.radius,
        )
        parts.append(
            Part(Sphere(centre, radius), COLOURS[scene.ball.colour], owner=1, label="sphere")
        )
    return parts


def _object_part(one: SceneObject, owner: int, azimuth_deg: float) -> Part:
    r, x, y = one.radius, one.x, one.y
    yaw = math.radians(one.yaw_deg + azimuth_deg)
    solids: dict[str, Solid] = {
        "sphere": Sphere((x, y, r), r),
        "cube": Cube((x, y, 0.8 * r), 0.8 * r, yaw),
        "cylinder": Cylinder((x, y, 1.1 * r), 0.58 * r, 1.1 * r),
        "cone": Cone((x, y, 0.0), 0.98 * r, 2.05 * r),
    }
    return Part(
        solids[one.shape],
        COLOURS[one.colour],
        owner,
        label=one.shape,
        is_shiny=one.material == "shiny",
        bevel=4.0 if one.shape == "cube" else 0.8,
        contact_radius={"sphere": 0.75, "cube": 1.15, "cylinder": 0.85, "cone": 1.1}[one.shape] * r,
    )


def joint_positions(mannequin: Mannequin) -> dict[str, Point]:
    """Scene position of each of `vocabulary.JOINTS`; the mannequin stands at the origin."""

    def turn(name: str) -> float:
        return mannequin.jitter_deg.get(name, 0.0)

    def swing(origin: Point, side: int, angle_deg: float, length: float) -> Point:
        angle = math.radians(angle_deg)
        return (
            origin[0] + side * length * math.sin(angle),
            origin[1],
            origin[2] - length * math.cos(angle),
        )

    neck = (0.0, 0.0, _NECK_Z)
    joints: dict[str, Point] = {"neck": neck}
    joints["head"] = swing(neck, 1, 180 + turn("left head"), 0.30)
    # It faces the viewer, so its own right is at the picture's left.
    for name, side, arm in zip(("right", "left"), (-1, 1), _POSE_ARMS[mannequin.pose], strict=True):
        upper, lower = _ARMS[arm]
        bend = turn(f"{name} shoulder")
        shoulder = (side * 0.27, 0.0, _NECK_Z - 0.07)
        elbow = swing(shoulder, side, upper + bend, _UPPER_ARM)
        hip = (side * 0.14, 0.0, _HIP_Z)
        leg = 7 + turn(f"{name} hip") * 0.7
        knee = swing(hip, side, leg, _THIGH)
        joints[f"{name} shoulder"], joints[f"{name} elbow"] = shoulder, elbow
        joints[f"{name} hand"] = swing(elbow, side, lower + bend + turn(f"{name} elbow"), _FOREARM)
        joints[f"{name} hip"], joints[f"{name} knee"] = hip, knee
        joints[f"{name} foot"] = swing(knee, side, leg * 0.5, _SHIN)
    return {name: joints[name] for name in JOINTS}


def _mannequin_parts(mannequin: Mannequin) -> list[Part]:
    joints = joint_positions(mannequin)
    shirt = COLOURS[mannequin.shirt_colour]
    head = joints["head"]
    pieces: list[tuple[Solid, Rgb, float]] = [
        (Sphere((head[0], head[1], head[2] + 0.02), 0.2), _SKIN, 0.0),
        (Capsule(joints["neck"], head, 0.075), _SKIN, 0.0),
        (Capsule(joints["right shoulder"], joints["left shoulder"], 0.12), shirt, 0.0),
        (Capsule((-0.12, 0.0, _HIP_Z + 0.1), (-0.15, 0.0, _NECK_Z - 0.1), 0.16), shirt, 0.0),
        (Capsule((0.12, 0.0, _HIP_Z + 0.1), (0.15, 0.0, _NECK_Z - 0.1), 0.16), shirt, 0.0),
        (Capsule(joints["right hip"], joints["left hip"], 0.135), _TROUSERS, 0.0),
    ]
    for side in ("right", "left"):
        shoulder, elbow, hand = (joints[f"{side} {n}"] for n in ("shoulder", "elbow", "hand"))
        hip, knee, foot = (joints[f"{side} {n}"] for n in ("hip", "knee", "foot"))
        toe = (foot[0], foot[1] - 0.14, 0.075)
        pieces += [
            (Capsule(shoulder, elbow, 0.095), shirt, 0.0),
            (Capsule(elbow, hand, 0.075), _SKIN, 0.0),
            (Sphere(hand, 0.1), _SKIN, 0.0),
            (Capsule(hip, knee, 0.125), _TROUSERS, 0.0),
            (Capsule(knee, foot, 0.1), _TROUSERS, 0.0),
            (Capsule((foot[0], foot[1], 0.075), toe, 0.085), _SHOES, 0.3),
        ]
    return [
        Part(solid, rgb, owner=0, label="mannequin", contact_radius=contact)
        for solid, rgb, contact in pieces
    ]
