"""What is measured for each task, and how: scorers that look at text and pixels alone.

A scorer takes a case and a reply and returns named figures; a figure that does not apply to the
case is absent. `FIGURES` says which figures a task reports, in which unit, which way is better and
what the goal is. Pictures are read by `reader`, which knows colours and silhouettes, never a
model.

    score(case, Reply("a large red matte sphere"))      # {"attributes_right": 1.0}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from data_pipeline.scenes.reader import read_box, read_pose, read_scene, read_segmentation
from data_pipeline.scenes.vocabulary import parse_mannequin, parse_objects
from mgpt.evals.cases import Case, Reply, true_objects

MEASURES = "measures.json"
"""A task's figures, written last into its folder."""
_KEPT_READINGS = 2048  # of 64 px: 25 MB
JOINT_TOLERANCE = 0.1
"""A joint counts as found within this share of the picture's diagonal (PCK@0.1)."""


@dataclass(frozen=True)
class Figure:
    """One column of the table of measures. `goal` is in the figure's own unit."""

    name: str
    unit: str
    higher_is_better: bool
    goal: float | None = None


RIGHT = "share of answers"

FIGURES: dict[str, tuple[Figure, ...]] = {
    "text_to_image": (
        Figure("one_object_right", RIGHT, True, goal=0.85),
        Figure("two_objects_right", RIGHT, True, goal=0.65),
    ),
    "caption": (Figure("attributes_right", RIGHT, True, goal=0.85),),
    "vqa": (Figure("answer_right", RIGHT, True, goal=0.88),),
    "text_dialog": (Figure("answer_right", RIGHT, True, goal=0.85),),
    "multi_image_dialog": (Figure("answer_right", RIGHT, True, goal=0.85),),
    "edit": (Figure("objects_right", RIGHT, True, goal=0.5),),
    "segmentation": (Figure("mean_iou", "IoU", True, goal=0.85),),
    "depth": (Figure("depth_error", "share of the depth range", False, goal=0.014),),
    "normals": (Figure("angle_error", "degrees", False, goal=5.0),),
    "pose": (Figure("joints_found", "share of joints", True, goal=0.98),),
    "detection": (Figure("box_iou", "IoU", True, goal=0.7),),
    "depth_to_image": (
        Figure("pixel_error", "share of full scale", False),
        Figure("objects_right", RIGHT, True, goal=0.5),
    ),
    "segmentation_to_image": (
        Figure("pixel_error", "share of full scale", False),
        Figure("objects_right", RIGHT, True, goal=0.5),
    ),
    "normals_to_image": (
        Figure("pixel_error", "share of full scale", False),
        Figure("objects_right", RIGHT, True, goal=0.5),
    ),
    "pose_to_image": (Figure("pixel_error", "share of full scale", False),),
    "multi_view": (
        Figure("pixel_error", "share of full scale", False),
        Figure("views_right", "share of views", True, goal=0.4),
    ),
}


def score(case: Case, reply: Reply) -> dict[str, float]:
    """The figures of one reply. A missing picture scores as a black one of the right size."""
    images = list(reply.images[: len(case.truth.images)])
    images += [np.zeros_like(truth) for truth in case.truth.images[len(images) :]]
    images = [
        image if image.shape == truth.shape else np.zeros_like(truth)
        for image, truth in zip(images, case.truth.images, strict=True)
    ]
    return SCORERS[case.task](case, Reply(reply.text, tuple(images)))


def _answer_right(case: Case, reply: Reply) -> dict[str, float]:
    return {"answer_right": float(_plain(reply.text) == _plain(case.truth.text))}


def _attributes_right(case: Case, reply: Reply) -> dict[str, float]:
    """Every attribute of everything in the picture, named in the caption's order."""
    truth, given = (
        (parse_objects(text), parse_mannequin(text)) for text in (case.truth.text, reply.text)
    )
    return {"attributes_right": float(truth == given)}


def _text_to_image(case: Case, reply: Reply) -> dict[str, float]:
    wanted = Counter((item["shape"], item["colour"]) for item in true_objects(case.meta))
    right = float(_objects(reply.images[0]) == wanted)
    return {"one_object_right" if wanted.total() == 1 else "two_objects_right": right}


def _objects_right(case: Case, reply: Reply) -> dict[str, float]:
    return {
        "objects_right": float(_objects(reply.images[0]) == _objects(case.truth.images[0])),
    }


def _segmentation(case: Case, reply: Reply) -> dict[str, float]:
    """Mean over the classes of the truth of intersection over union."""
    truth, given = (_read(read_segmentation, one.images[0]) for one in (case.truth, reply))
    ious = [
        np.logical_and(truth == label, given == label).sum()
        / np.logical_or(truth == label, given == label).sum()
        for label in np.unique(truth)
    ]
    return {"mean_iou": float(np.mean(ious))}


def _depth(case: Case, reply: Reply) -> dict[str, float]:
    return {"depth_error": _mean_difference(case.truth.images[0], reply.images[0])}


def _normals(case: Case, reply: Reply) -> dict[str, float]:
    """Mean angle between true and given normals where the truth has a surface."""
    truth, given = (
        image.astype(np.float64) / 255 * 2 - 1 for image in (case.truth.images[0], reply.images[0])
    )
    length = np.linalg.norm(truth, axis=-1)
    surface = (length > 0.7) & (length < 1.3)
    cosine = (truth * given).sum(-1) / np.maximum(
        length * np.linalg.norm(given, axis=-1), np.finfo(np.float64).tiny
    )
    return {"angle_error": float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))[surface].mean())}


def _pose(case: Case, reply: Reply) -> dict[str, float]:
    truth, given = (_read(read_pose, one.images[0]) for one in (case.truth, reply))
    height, width = case.truth.images[0].shape[:2]
    tolerance = JOINT_TOLERANCE * float(np.hypot(height, width))
    found = [
        joint in given and float(np.hypot(*np.subtract(given[joint], place))) <= tolerance
        for joint, place in truth.items()
    ]
    return {"joints_found": float(np.mean(found))} if found else {}


def _detection(case: Case, reply: Reply) -> dict[str, float]:
    truth, given = (_read(read_box, one.images[0]) for one in (case.truth, reply))
    if truth is None:
        return {}
    return {"box_iou": box_iou(truth, given) if given is not None else 0.0}


def _from_condition(case: Case, reply: Reply) -> dict[str, float]:
    pixel_error = {"pixel_error": _mean_difference(case.truth.images[0], reply.images[0])}
    return pixel_error | _objects_right(case, reply)


def _pixels(case: Case, reply: Reply) -> dict[str, float]:
    return {"pixel_error": _mean_difference(case.truth.images[0], reply.images[0])}


def _views(case: Case, reply: Reply) -> dict[str, float]:
    pairs = list(zip(case.truth.images, reply.images, strict=True))
    return {
        "pixel_error": float(np.mean([_mean_difference(truth, given) for truth, given in pairs])),
        "views_right": float(
            np.mean([_objects(truth) == _objects(given) for truth, given in pairs])
        ),
    }


SCORERS: dict[str, Callable[[Case, Reply], dict[str, float]]] = {
    "text_dialog": _answer_right,
    "text_to_image": _text_to_image,
    "caption": _attributes_right,
    "vqa": _answer_right,
    "multi_image_dialog": _answer_right,
    "edit": _objects_right,
    "segmentation": _segmentation,
    "depth": _depth,
    "normals": _normals,
    "pose": _pose,
    "detection": _detection,
    "depth_to_image": _from_condition,
    "segmentation_to_image": _from_condition,
    "normals_to_image": _from_condition,
    "pose_to_image": _pixels,
    "multi_view": _views,
}


def box_iou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(shared / (sum(areas) - shared)) if shared > 0 else 0.0


def _objects(image: np.ndarray) -> Counter[tuple[str, str]]:
    return Counter((seen.shape, seen.colour) for seen in _read(read_scene, image))


_Reading = TypeVar("_Reading")


def _read(reader: Callable[[np.ndarray], _Reading], image: np.ndarray) -> _Reading:
    """What a reader sees in a picture. The same truth is met in every comparison and, as a
    constant answer, for many cases: a picture that was read lately is not read again."""
    return _read_bytes(reader, image.shape, image.tobytes())


@lru_cache(maxsize=_KEPT_READINGS)
def _read_bytes(
    reader: Callable[[np.ndarray], _Reading], shape: tuple[int, ...], data: bytes
) -> _Reading:
    return reader(np.frombuffer(data, np.uint8).reshape(shape))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _mean_difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).mean() / 255)
