"""Scorers of the built-in scenes: answers are read back by colours and silhouettes, never a model.

Samples of `source=scenes` bring the exact truth of what they show (`truth` in their JSON), so that
every one of the sixteen tasks is measured by what a person would ask: whether the objects, the
attributes, the joints are right. `SCENE_SCORERS` has each task's metrics with their units and the
goals of the quickstart. Samples without such a truth are measured by `mgpt.evals.scorers`.

    SCENE_SCORERS["caption"].score(case, Reply("a large red matte sphere"))
    # {"attributes_right": 1.0}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from data_pipeline.scenes.reader import read_box, read_pose, read_scene, read_segmentation
from data_pipeline.scenes.vocabulary import parse_mannequin, parse_objects
from mgpt.evals.cases import Case, Reply
from mgpt.evals.metrics import RIGHT, Metric, Scorer
from mgpt.evals.pictures import box_iou, labels_iou, mean_angle_deg, mean_difference
from mgpt.evals.texts import plain

_KEPT_READINGS = 2048  # of 64 px: 25 MB
JOINT_TOLERANCE = 0.1
"""A joint counts as found within this share of the picture's diagonal (PCK@0.1)."""


def is_scene(meta: Mapping[str, Any]) -> bool:
    """Whether a sample is a rendered scene, which brings the truth of all that can be measured."""
    return isinstance(meta.get("truth"), Mapping)


def true_objects(meta: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The objects of a sample's exact scene; empty if it has none."""
    truth = meta.get("truth")
    objects = truth.get("objects", []) if isinstance(truth, Mapping) else []
    return list(objects)


def _shows_one_or_two(meta: Mapping[str, Any]) -> bool:
    """Whether a scene that is drawn from text alone can be read back: one or two objects."""
    return is_scene(meta) and meta.get("kind") == "objects" and len(true_objects(meta)) in (1, 2)


def _num_objects(case: Case) -> str:
    return str(len(true_objects(case.meta)))


def _answer_right(case: Case, reply: Reply) -> dict[str, float]:
    return {"answer_right": float(plain(reply.text) == plain(case.truth.text))}


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
    return {"mean_iou": labels_iou(truth, given)}


def _depth(case: Case, reply: Reply) -> dict[str, float]:
    return {"depth_error": mean_difference(case.truth.images[0], reply.images[0])}


def _normals(case: Case, reply: Reply) -> dict[str, float]:
    angle = mean_angle_deg(case.truth.images[0], reply.images[0])
    return {} if angle is None else {"angle_error": angle}


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
    pixel_error = {"pixel_error": mean_difference(case.truth.images[0], reply.images[0])}
    return pixel_error | _objects_right(case, reply)


def _pixels(case: Case, reply: Reply) -> dict[str, float]:
    return {"pixel_error": mean_difference(case.truth.images[0], reply.images[0])}


def _views(case: Case, reply: Reply) -> dict[str, float]:
    pairs = list(zip(case.truth.images, reply.images, strict=True))
    return {
        "pixel_error": float(np.mean([mean_difference(truth, given) for truth, given in pairs])),
        "views_right": float(
            np.mean([_objects(truth) == _objects(given) for truth, given in pairs])
        ),
    }


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


_ANSWER = Metric("answer_right", RIGHT, True, goal=0.85)
_OBJECTS = Metric("objects_right", RIGHT, True, goal=0.5)
_PIXELS = Metric("pixel_error", "share of full scale", False)


def _scorer(
    measure: Callable[[Case, Reply], dict[str, float]],
    *metrics: Metric,
    can_read: Callable[[Mapping[str, Any]], bool] = is_scene,
    told: Callable[[Case], str] = lambda case: "",
) -> Scorer:
    return Scorer(metrics, measure, can_read=can_read, told=told)


SCENE_SCORERS: dict[str, Scorer] = {
    "text_to_image": _scorer(
        _text_to_image,
        Metric("one_object_right", RIGHT, True, goal=0.85),
        Metric("two_objects_right", RIGHT, True, goal=0.65),
        can_read=_shows_one_or_two,
        told=_num_objects,  # the text names as many as are counted in the answer
    ),
    "caption": _scorer(_attributes_right, Metric("attributes_right", RIGHT, True, goal=0.85)),
    "vqa": _scorer(_answer_right, Metric("answer_right", RIGHT, True, goal=0.88)),
    "text_dialog": _scorer(_answer_right, _ANSWER),
    "multi_image_dialog": _scorer(_answer_right, _ANSWER),
    "edit": _scorer(_objects_right, _OBJECTS),
    "segmentation": _scorer(_segmentation, Metric("mean_iou", "IoU", True, goal=0.85)),
    "depth": _scorer(_depth, Metric("depth_error", "share of the depth range", False, goal=0.014)),
    "normals": _scorer(_normals, Metric("angle_error", "degrees", False, goal=5.0)),
    "pose": _scorer(_pose, Metric("joints_found", "share of joints", True, goal=0.98)),
    "detection": _scorer(_detection, Metric("box_iou", "IoU", True, goal=0.7)),
    "depth_to_image": _scorer(_from_condition, _PIXELS, _OBJECTS),
    "segmentation_to_image": _scorer(_from_condition, _PIXELS, _OBJECTS),
    "normals_to_image": _scorer(_from_condition, _PIXELS, _OBJECTS),
    "pose_to_image": _scorer(_pixels, _PIXELS),
    "multi_view": _scorer(_views, _PIXELS, Metric("views_right", "share of views", True, goal=0.4)),
}
"""By task. The first metric of each decides which constant answer is the best."""
