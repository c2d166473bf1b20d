"""What a scene is, and how scenes are drawn from a seed.

A `Scene` is a plain description: objects on the ground or a mannequin, a camera and a light.
It holds everything that the renderer and the truths need, and nothing of pixels. Sampling is a
pure function of its arguments; every draw comes from a generator keyed by (seed, purpose,
index), so scenes can be made in any order and by any number of processes.

Lengths are in scene units, the ground is z = 0, x points right, y away from the viewer.

Example:
    >>> scene = sample_scene(seed=7, split="train", kind="objects")
    >>> [scene_object.shape for scene_object in scene.objects]
    ['cylinder']
"""

import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Literal, get_args

import numpy as np

from data_pipeline.scenes import vocabulary

Split = Literal["train", "heldout"]
Kind = Literal["objects", "mannequin", "views"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Width on the ground that every aspect ratio shows, and the room kept between two objects.
STAGE_WIDTH = 3.15
MIN_GAP = 0.2
# A slot is as wide as the widest shape (a turned cube), so that any change of shape still fits.
SLOT_RADII = 2.1


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on the viewer's side, looking at (0, 0, target_z).

    The focal length is chosen so that a rectangle of `view_width` x `view_height` scene units
    at the target fits the picture whatever its aspect ratio.
    """

    distance: float = 7.5
    pitch_deg: float = 11.0
    target_z: float = 0.64
    view_width: float = vocabulary.VIEW_SIZE[0]
    view_height: float = vocabulary.VIEW_SIZE[1]


@dataclass(frozen=True)
class Light:
    """A directional light; azimuth 0 is behind the viewer, positive to the left.

    `radius_deg` is its angular radius: 0 throws hard shadows, a few degrees soft ones.
    """

    azimuth_deg: float = 48.0
    elevation_deg: float = 50.0
    radius_deg: float = 5.0


@dataclass(frozen=True)
class SceneObject:
    """One object standing on the ground at (x, y), turned by `yaw_deg` about the vertical."""

    shape: str
    colour: str
    size: str
    material: str
    x: float
    y: float
    yaw_deg: float

    @property
    def radius(self) -> float:
        """The radius in scene units that all of the shape's measures derive from."""
        return vocabulary.SIZES[self.size]

    @property
    def attributes(self) -> vocabulary.WordedObject:
        """The four attributes that words name."""
        return vocabulary.WordedObject(self.shape, self.colour, self.size, self.material)

    @property
    def phrase(self) -> str:
        """`a large red matte cube`."""
        return vocabulary.object_phrase(*self.attributes)

    @property
    def short_phrase(self) -> str:
        """`red cube`: enough to point it out, since no colour occurs twice in a scene."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Ball:
    """The small ball on the side of a turntable object; it makes the azimuth visible."""

    colour: str
    azimuth_deg: float


@dataclass(frozen=True)
class Mannequin:
    """A jointed figure facing the viewer; `jitter_deg` turns its limbs a little, by name."""

    pose: str
    shirt_colour: str
    jitter_deg: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """Everything that is to be seen; objects stand in order from left to right."""

    kind: Kind
    camera: Camera
    light: Light
    objects: tuple[SceneObject, ...] = ()
    ball: Ball | None = None
    mannequin: Mannequin | None = None


def draws(seed: int, purpose: str, index: int) -> np.random.Generator:
    """The generator of all draws for one purpose of one sample."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def in_split(attributes: vocabulary.WordedObject, split: Split) -> bool:
    """Whether an object with these attributes may stand in a scene of the split."""
    return vocabulary.is_held_out(*attributes) == (split == "heldout")


def sample_scene(seed: int, split: Split, kind: Kind, index: int = 0) -> Scene:
    """The scene that is a pure function of (seed, split, kind, index).

    Objects of one scene differ in colour, stand apart and are fully in view at every aspect
    ratio; each has a combination of attributes of its split (`vocabulary.is_held_out`).
    """
    rng = draws(seed, f"scene/{split}/{kind}", index)
    light = Light(
        azimuth_deg=rng.uniform(42, 54),
        elevation_deg=rng.uniform(47, 53),
    )
    if kind == "objects":
        camera = Camera(distance=rng.uniform(7.4, 7.6), pitch_deg=rng.uniform(10, 12))
        num_objects = int(rng.choice([1, 2, 3], p=[0.5, 0.42, 0.08]))
        return Scene(kind, camera, light, objects=_sample_objects(rng, split, num_objects))
    if kind == "mannequin":
        camera = Camera(
            distance=rng.uniform(7.4, 7.6),
            pitch_deg=rng.uniform(5, 7),
            target_z=1.12,
            view_width=2.5,
            view_height=2.8,
        )
        return Scene(kind, camera, light, mannequin=_sample_mannequin(rng, split))
    assert kind == "views", f"kind {kind!r} is none of {KINDS}"
    camera = Camera(pitch_deg=rng.uniform(15, 17), view_width=2.5, view_height=2.3)
    turntable = sample_attributes(rng, split, (), size="large")
    others = [colour for colour in vocabulary.COLOURS if colour != turntable.colour]
    ball = Ball(colour=str(rng.choice(others)), azimuth_deg=float(rng.uniform(27, 33)))
    # The ball hangs in the middle of a cube's face.
    turntable = replace(turntable, yaw_deg=ball.azimuth_deg)
    return Scene(kind, camera, light, objects=(turntable,), ball=ball)


@lru_cache(maxsize=2)
def _combinations(split: Split) -> tuple[vocabulary.WordedObject, ...]:
    every = product(vocabulary.SHAPES, vocabulary.COLOURS, vocabulary.SIZES, vocabulary.MATERIALS)
    return tuple(
        words for words in map(vocabulary.WordedObject._make, every) if in_split(words, split)
    )


def sample_attributes(
    rng: np.random.Generator, split: Split, taken_colours: tuple[str, ...], size: str | None = None
) -> SceneObject:
    """An object of the split at the origin, of a colour that is not taken."""
    choices = [
        words
        for words in _combinations(split)
        if words.colour not in taken_colours and size in (None, words.size)
    ]
    words = choices[rng.integers(len(choices))]
    turn = rng.uniform(14, 30) * rng.choice([-1, 1])
    return SceneObject(*words, x=0.0, y=0.0, yaw_deg=float(turn))


def _sample_objects(
    rng: np.random.Generator, split: Split, num_objects: int
) -> tuple[SceneObject, ...]:
    """Objects from left to right, the free width of the stage shared out between them."""
    while True:
        chosen: list[SceneObject] = []
        for _ in range(num_objects):
            taken = tuple(one.colour for one in chosen)
            chosen.append(sample_attributes(rng, split, taken))
        widths = [SLOT_RADII * one.radius for one in chosen]
        free = STAGE_WIDTH - sum(widths) - MIN_GAP * (num_objects - 1)
        if free > 0:
            break
    shares = rng.dirichlet(np.full(num_objects + 1, 2.0)) * free
    left, placed = -STAGE_WIDTH / 2, []
    for one, width, share in zip(chosen, widths, shares, strict=False):
        left += share
        y = rng.uniform(-0.3, 0.3)
        placed.append(replace(one, x=float(left + width / 2), y=float(y)))
        left += width + MIN_GAP
    return tuple(placed)


def _sample_mannequin(rng: np.random.Generator, split: Split) -> Mannequin:
    choices = [
        (pose, colour)
        for pose in vocabulary.POSES
        for colour in vocabulary.COLOURS
        if vocabulary.is_pose_held_out(pose, colour) == (split == "heldout")
    ]
    pose, colour = choices[rng.integers(len(choices))]
    limbs = ("shoulder", "elbow", "hip", "head")
    jitter = {
        f"{side} {limb}": float(rng.uniform(-6, 6)) for side in ("left", "right") for limb in limbs
    }
    return Mannequin(pose, colour, jitter)


def widest_free_slot(scene: Scene) -> tuple[float, float]:
    """(left, right) x of the wider stretch of stage left or right of all objects."""
    first, last = scene.objects[0], scene.objects[-1]
    before = (-STAGE_WIDTH / 2, first.x - SLOT_RADII * first.radius / 2 - MIN_GAP)
    after = (last.x + SLOT_RADII * last.radius / 2 + MIN_GAP, STAGE_WIDTH / 2)
    return max(before, after, key=lambda slot: slot[1] - slot[0])
