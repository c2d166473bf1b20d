"""The pictures that state a truth: depth, normals, segmentation, a drawn box, a skeleton.

Each takes what the renderer measured and returns uint8 [H, W, 3]; none looks at the coloured
picture to find anything out.

Example:
    >>> frame = render(scene_parts(scene), scene.camera, scene.light, 64, 64)
    >>> depth_picture(frame).shape
    (64, 64, 3)
"""

import numpy as np

from data_pipeline.scenes.render import Frame, pixel_mean
from data_pipeline.scenes.solids import Array
from data_pipeline.scenes.vocabulary import (
    BOX_COLOUR,
    DEPTH_FAR,
    DEPTH_NEAR,
    LIMBS,
    SEGMENTATION_COLOURS,
    line_width_px,
)


def _as_picture(values_XRC: Array, supersample: int) -> Array:
    """Values [X, R, C] in 0..1 as uint8 [H, W, X]."""
    levels_XHW = (pixel_mean(values_XRC, supersample) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(levels_XHW.transpose(1, 2, 0))


def depth_picture(frame: Frame) -> Array:
    """Grey by inverse camera-axis depth, `vocabulary.depth_level`: near white, sky black."""
    far = 1 / DEPTH_FAR
    level_RC = np.clip((1 / frame.depth_RC - far) / (1 / DEPTH_NEAR - far), 0, 1)
    grey = _as_picture(level_RC[None], frame.supersample)
    return np.repeat(grey, 3, axis=-1)


def normals_picture(frame: Frame) -> Array:
    """(n + 1) / 2 of the camera-axes normal (right, up, towards the camera); sky mid-grey."""
    return _as_picture(frame.normal_3RC * 0.5 + 0.5, frame.supersample)


def segmentation_picture(frame: Frame) -> Array:
    """One flat colour a class, without antialiasing: each pixel takes its first ray's class."""
    labels = [part.label for part in frame.parts] + ["sky", "ground"]
    palette = np.array([SEGMENTATION_COLOURS[label] for label in labels], np.uint8)
    return palette[frame.part_RC[:: frame.supersample, :: frame.supersample]]


def box_picture(picture_HW3: Array, box: tuple[float, float, float, float]) -> Array:
    """The picture with the box (x0, y0, x1, y1 in shares) drawn around what it encloses.

    The line lies outside the box where the picture leaves room, and along its edge elsewhere.
    """
    height, width, _ = picture_HW3.shape
    line = line_width_px(height, width)
    left, right = int(box[0] * width) - line, int(np.ceil(box[2] * width)) + line
    top, bottom = int(box[1] * height) - line, int(np.ceil(box[3] * height)) + line
    rows = slice(max(top, 0), min(bottom, height))
    columns = slice(max(left, 0), min(right, width))
    drawn_HW3 = picture_HW3.copy()
    inside_HW3 = drawn_HW3[rows, columns]
    kept_HW3 = inside_HW3[line:-line, line:-line].copy()
    inside_HW3[:] = BOX_COLOUR
    inside_HW3[line:-line, line:-line] = kept_HW3
    return drawn_HW3


def skeleton_picture(joints: dict[str, tuple[float, float]], height: int, width: int) -> Array:
    """The limbs of `vocabulary.LIMBS` on black; joints are (x, y) in shares."""
    x = np.arange(width, dtype=np.float32)[None, :] + 0.5
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5
    radius = 0.7 * line_width_px(height, width)
    picture_HW3 = np.zeros((height, width, 3), np.float32)
    for limb in LIMBS:
        (ax, ay), (bx, by) = (
            (joints[name][0] * width, joints[name][1] * height) for name in (limb.start, limb.end)
        )
        length2 = max((bx - ax) ** 2 + (by - ay) ** 2, 1e-6)
        share_HW = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length2, 0, 1)
        away_HW = np.hypot(x - ax - share_HW * (bx - ax), y - ay - share_HW * (by - ay))
        cover_HW1 = np.clip(radius + 0.5 - away_HW, 0, 1)[..., None]
        picture_HW3 += cover_HW1 * (np.array(limb.colour, np.float32) - picture_HW3)
    return (picture_HW3 + 0.5).astype(np.uint8)
