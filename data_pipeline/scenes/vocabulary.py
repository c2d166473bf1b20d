"""The closed vocabulary of the embedded scenes: names, colours, sizes, poses and their split.

Everything that both sides must agree on stands here once: the renderer that draws the
scenes and the checker that reads pictures back. It knows no pixels, no model and no prompt
template.

Example:
    >>> object_phrase("cube", "red", "large", "matte")
    'a large red matte cube'
    >>> parse_objects("a small blue shiny cube left of a large red matte cone")[1]
    WordedObject(shape='cone', colour='red', size='large', material='matte')
"""

import re
from typing import NamedTuple

Rgb = tuple[int, int, int]

SHAPES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone")

# Hue apart from hue, and neighbours in hue (red/orange/yellow, red/pink) apart in lightness too,
# so that a name survives shading and a lossy picture code. sRGB.
COLOURS: dict[str, Rgb] = {
    "red": (208, 32, 42),
    "orange": (248, 126, 20),
    "yellow": (246, 220, 48),
    "green": (40, 158, 62),
    "cyan": (36, 190, 206),
    "blue": (38, 84, 214),
    "purple": (128, 58, 190),
    "pink": (248, 132, 190),
}

# Radius in scene units. The ratio of 1.6 makes the two unmistakable in perspective, and small ones
# are two latents wide in pictures of 64 px at 8x: narrower, their material is hard to learn.
SIZES: dict[str, float] = {"small": 0.43, "large": 0.684}

MATERIALS: tuple[str, ...] = ("matte", "shiny")

# Width and height in scene units that a picture of objects shows at the least, at any aspect
# ratio; it ties pixels to scene units.
VIEW_SIZE = (3.5, 3.1)

# Camera-axis depth in scene units that is drawn white and black; see `depth_level`.
DEPTH_NEAR = 4.6
DEPTH_FAR = 18.0

SEGMENTATION_COLOURS: dict[str, Rgb] = {
    "sky": (0, 0, 0),
    "ground": (72, 72, 84),
    "sphere": (232, 64, 64),
    "cube": (64, 112, 240),
    "cylinder": (64, 200, 96),
    "cone": (248, 208, 64),
    "mannequin": (208, 96, 224),
}

# Far from every object colour in min(R, B) - G, which is how the reader finds it.
BOX_COLOUR: Rgb = (255, 0, 255)

# Left and right are the mannequin's own; it faces the viewer.
POSES: tuple[str, ...] = (
    "both arms down",
    "the left arm up",
    "the right arm up",
    "both arms up",
    "both arms out",
    "the left arm out",
    "the right arm out",
    "both hands on the hips",
)

JOINTS: tuple[str, ...] = (
    "head",
    "neck",
    "right shoulder",
    "right elbow",
    "right hand",
    "left shoulder",
    "left elbow",
    "left hand",
    "right hip",
    "right knee",
    "right foot",
    "left hip",
    "left knee",
    "left foot",
)


class Limb(NamedTuple):
    """One stroke of a skeleton drawing: the two joints it joins and its sRGB colour."""

    start: str
    end: str
    colour: Rgb


# The body limbs of OpenPose's 18-point drawing, without the face, in its rainbow.
LIMBS: tuple[Limb, ...] = (
    Limb("neck", "right shoulder", (255, 0, 0)),
    Limb("right shoulder", "right elbow", (255, 128, 0)),
    Limb("right elbow", "right hand", (255, 255, 0)),
    Limb("neck", "left shoulder", (128, 255, 0)),
    Limb("left shoulder", "left elbow", (0, 255, 0)),
    Limb("left elbow", "left hand", (0, 255, 160)),
    Limb("neck", "right hip", (0, 255, 255)),
    Limb("right hip", "right knee", (0, 160, 255)),
    Limb("right knee", "right foot", (0, 64, 255)),
    Limb("neck", "left hip", (128, 64, 255)),
    Limb("left hip", "left knee", (200, 0, 255)),
    Limb("left knee", "left foot", (255, 0, 160)),
    Limb("neck", "head", (255, 255, 255)),
)


class WordedObject(NamedTuple):
    """The four attributes of one object as a caption names them."""

    shape: str
    colour: str
    size: str
    material: str


def is_held_out(shape: str, colour: str, size: str, material: str) -> bool:
    """Whether this combination of attributes belongs to the held-out scenes.

    Each (shape, colour) pair holds out exactly one of its four (size, material) combinations,
    so every word is learnt in training while a quarter of the 128 combinations is never seen.
    Shapes go in pairs so that a held-out scene can still be edited into a held-out scene.
    """
    index = SHAPES.index(shape) // 2 + list(COLOURS).index(colour)
    index += 2 * list(SIZES).index(size) + MATERIALS.index(material)
    return index % 4 == 0


def is_pose_held_out(pose: str, shirt_colour: str) -> bool:
    """Whether a mannequin with this pose and shirt belongs to the held-out scenes (a quarter)."""
    return (POSES.index(pose) + list(COLOURS).index(shirt_colour)) % 4 == 0


def object_phrase(shape: str, colour: str, size: str, material: str) -> str:
    """The phrase for one object, with its article: `a large red matte cube`."""
    return f"a {size} {colour} {material} {shape}"


def mannequin_phrase(pose: str, shirt_colour: str) -> str:
    """The phrase for a mannequin: `a mannequin in a red shirt with the left arm up`."""
    return f"a mannequin in {article(shirt_colour)} {shirt_colour} shirt with {pose}"


def article(word: str) -> str:
    """`an` before a vowel letter, else `a`; enough for this vocabulary."""
    return "an" if word[0] in "aeiou" else "a"


_OBJECT = re.compile(
    rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(MATERIALS)}) ({'|'.join(SHAPES)})\b"
)
_MANNEQUIN = re.compile(
    rf"\bmannequin in an? ({'|'.join(COLOURS)}) shirt with ({'|'.join(POSES)})(?! \w)"
)


def parse_objects(text: str) -> list[WordedObject]:
    """The objects a caption names, in the order in which it names them (left to right).

    A phrase that misses an attribute or uses a word outside the vocabulary is not counted.
    """
    return [
        WordedObject(shape=shape, colour=colour, size=size, material=material)
        for size, colour, material, shape in _OBJECT.findall(text.lower())
    ]


def parse_mannequin(text: str) -> tuple[str, str] | None:
    """(pose, shirt colour) of a mannequin caption, or None where the text names none."""
    found = _MANNEQUIN.search(text.lower())
    return (found.group(2), found.group(1)) if found else None


def depth_level(depth: float) -> float:
    """Brightness in [0, 1] of a camera-axis depth: linear in inverse depth, near is bright."""
    level = (1 / depth - 1 / DEPTH_FAR) / (1 / DEPTH_NEAR - 1 / DEPTH_FAR)
    return min(max(level, 0.0), 1.0)


def line_width_px(height: int, width: int) -> int:
    """Width of drawn lines: 2 px in a picture of 64x64, in proportion elsewhere, at least 1."""
    return max(1, round((height * width) ** 0.5 / 32))
