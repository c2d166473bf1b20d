"""Streams finished samples: pictures of every field, words, and the exact truth as JSON.

A sample is a pure function of (config, index), so processes can make disjoint ranges of one
corpus and the result does not depend on who made what.

Example:
    >>> cfg = CorpusConfig(num_scenes=100, split="train", seed=0, area_px=64)
    >>> sample = make_sample(cfg, index=3)
    >>> sample.json["caption"], sample.images["image"].shape
    ('a large yellow shiny sphere left of a small orange matte cone', (64, 64, 3))
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.scenes import truth
from data_pipeline.scenes.figure import joint_positions, scene_parts
from data_pipeline.scenes.pictures import (
    box_picture,
    depth_picture,
    normals_picture,
    segmentation_picture,
    skeleton_picture,
)
from data_pipeline.scenes.render import Frame, project, render
from data_pipeline.scenes.scene import KINDS, Kind, Scene, Split, draws, sample_scene
from data_pipeline.scenes.solids import Array
from mgpt.errors import ConfigError

OBJECT_TASKS = (
    "text_dialog",
    "text_to_image",
    "caption",
    "vqa",
    "multi_image_dialog",
    "edit",
    "segmentation",
    "depth",
    "normals",
    "detection",
    "depth_to_image",
    "segmentation_to_image",
    "normals_to_image",
)
MANNEQUIN_TASKS = ("text_to_image", "caption", "vqa", "pose", "pose_to_image")
# What words and one picture are enough for.
PICTURE_TASKS = ("text_dialog", "text_to_image", "caption", "vqa")
VIEWS_TASKS = ("multi_view",)

# Added to a sample's index for its second picture, so that no sample shows another's scene.
_OTHER_SCENE = 1 << 32
# Widths and heights are multiples of this, so that few distinct sizes occur.
_SIDE_STEP_PX = 8


@dataclass(frozen=True)
class CorpusConfig:
    """What corpus to make.

    `area_px` is the side in pixels of the square whose area each picture has; `view_area_px`
    the same for turntable views (None: like `area_px`). `kind_weights` and `aspect_weights`
    (keys `width:height`) are relative frequencies. Without `targets` a sample is one picture with
    caption and questions, for `PICTURE_TASKS`: a fifth of the work.
    """

    num_scenes: int
    split: Split
    seed: int = 0
    area_px: int = 64
    view_area_px: int | None = None
    num_views: int = 4
    num_edits: int = 2
    targets: bool = True
    kind_weights: dict[Kind, float] = field(
        default_factory=lambda: {"objects": 0.8, "mannequin": 0.1, "views": 0.1}
    )
    aspect_weights: dict[str, float] = field(
        default_factory=lambda: {"1:1": 0.8, "3:2": 0.1, "2:3": 0.1}
    )

    def __post_init__(self) -> None:
        problems = []
        if not 16 <= self.area_px <= 2048:
            problems.append(f"area_px={self.area_px} is the side of a square, 16 to 2048")
        if self.num_views < 1 or self.num_edits < 1:
            problems.append(
                f"num_views={self.num_views} and num_edits={self.num_edits}: at least 1 each"
            )
        if unknown := set(self.kind_weights) - set(KINDS):
            problems.append(f"kind_weights: {sorted(unknown)} unknown; there are {KINDS}")
        if not self.targets and self.kind_weights.get("views"):
            problems.append("targets=false leaves nothing of views; give kind_weights.views=0")
        if problems:
            raise ConfigError("; ".join(problems))


class Sample(NamedTuple):
    """One raw sample; `images` maps field names to uint8 [H, W, 3], `json` is JSON-ready."""

    key: str
    json: dict[str, Any]
    images: dict[str, Array]


def iter_samples(cfg: CorpusConfig, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
    """Samples start..stop-1 of the corpus (all of it by default), in order."""
    for index in range(start, cfg.num_scenes if stop is None else min(stop, cfg.num_scenes)):
        yield make_sample(cfg, index)


def make_sample(cfg: CorpusConfig, index: int) -> Sample:
    """The sample with this index."""
    rng = draws(cfg.seed, f"sample/{cfg.split}", index)
    kind: Kind = _weighted(cfg.kind_weights, rng)
    aspect = _weighted(cfg.aspect_weights, rng)
    area_px = (cfg.view_area_px if kind == "views" else None) or cfg.area_px
    height, width = picture_size(area_px, aspect if kind != "views" else "1:1")
    scene = sample_scene(cfg.seed, cfg.split, kind, index)
    if not cfg.targets:
        json, images = _picture_sample(cfg.split, scene, rng, height, width)
    elif kind == "objects":
        json, images = _objects_sample(cfg, scene, rng, index, height, width)
    elif kind == "mannequin":
        json, images = _mannequin_sample(scene, rng, height, width)
    else:
        json, images = _views_sample(cfg, scene, height, width)
    json = {"kind": kind, "split": cfg.split, "caption": truth.caption(scene), **json}
    return Sample(f"{cfg.split}-{index:08d}", json, images)


def picture_size(area_px: int, aspect: str) -> tuple[int, int]:
    """(height, width) in pixels of a picture of area_px**2 with the aspect `width:height`."""
    across, down = (int(part) for part in aspect.split(":"))
    if across == down:
        return area_px, area_px
    width = area_px * (across / down) ** 0.5
    height = area_px * (down / across) ** 0.5
    return tuple(round(side / _SIDE_STEP_PX) * _SIDE_STEP_PX for side in (height, width))


def _weighted(weights: dict[Any, float], rng: np.random.Generator) -> Any:
    names = list(weights)
    shares = np.array([weights[name] for name in names], float)
    return names[rng.choice(len(names), p=shares / shares.sum())]


def _render(scene: Scene, height: int, width: int, azimuth_deg: float = 0.0) -> Frame:
    return render(scene_parts(scene, azimuth_deg), scene.camera, scene.light, height, width)


def _objects_truth(scene: Scene, frame: Frame) -> list[dict[str, Any]]:
    listed = []
    for owner, one in enumerate(scene.objects):
        box = frame.owner_box(owner)
        assert box is not None, f"{one} is hidden"
        centre = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        listed.append({**one.attributes._asdict(), "box": list(box), "centre": centre})
    return listed


def _pairs(questions: list[truth.Question]) -> list[list[str]]:
    return [[one.question, one.answer] for one in questions]


def _objects_sample(
    cfg: CorpusConfig, scene: Scene, rng: np.random.Generator, index: int, height: int, width: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    frame = _render(scene, height, width)
    listed = _objects_truth(scene, frame)
    sought = int(rng.integers(len(listed)))
    questions = truth.questions(scene, rng, 4)
    other = sample_scene(cfg.seed, cfg.split, "objects", _OTHER_SCENE + index)
    other_questions = truth.second_picture_questions(scene, other, rng)
    other_frame = _render(other, height, width)
    images = {
        "image": frame.colour_HW3,
        "depth": depth_picture(frame),
        "normals": normals_picture(frame),
        "segmentation": segmentation_picture(frame),
        "detection": box_picture(frame.colour_HW3, listed[sought]["box"]),
        "other": other_frame.colour_HW3,
    }
    chain = truth.edit_chain(scene, cfg.split, rng, cfg.num_edits)
    edited = []
    for step, edit in enumerate(chain, start=1):
        edited_frame = _render(edit.scene, height, width)
        images[f"edit_{step}"] = edited_frame.colour_HW3
        edited.append({"objects": _objects_truth(edit.scene, edited_frame)})
    json = {
        "tasks": list(OBJECT_TASKS),
        "qa": _pairs(questions),
        "dialog": [list(turn) for turn in truth.dialog(cfg.split, rng, 2)],
        "edits": [edit.instruction for edit in chain],
        "object": f"the {scene.objects[sought].short_phrase}",
        "box": listed[sought]["box"],
        "other_qa": _pairs(other_questions),
        "truth": {
            "objects": listed,
            "edits": edited,
            "other": {"objects": _objects_truth(other, other_frame)},
            "qa_kinds": [one.kind for one in questions],
            "other_qa_kinds": [one.kind for one in other_questions],
        },
    }
    return json, images


def _mannequin_truth(scene: Scene, frame: Frame, joints: dict[str, Any]) -> dict[str, Any]:
    assert scene.mannequin is not None
    return {
        "objects": [],
        "mannequin": {
            "pose": scene.mannequin.pose,
            "shirt_colour": scene.mannequin.shirt_colour,
            "box": list(frame.owner_box(0) or ()),
            "joints": {name: list(place) for name, place in joints.items()},
        },
    }


def _joints(scene: Scene, height: int, width: int) -> dict[str, Any]:
    """The places of a mannequin's joints in the picture, in pixels."""
    assert scene.mannequin is not None
    return {
        name: project(scene.camera, place, height, width)
        for name, place in joint_positions(scene.mannequin).items()
    }


def _mannequin_sample(
    scene: Scene, rng: np.random.Generator, height: int, width: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    frame = _render(scene, height, width)
    joints = _joints(scene, height, width)
    questions = truth.questions(scene, rng, 3)
    json = {
        "tasks": list(MANNEQUIN_TASKS),
        "qa": _pairs(questions),
        "truth": {
            **_mannequin_truth(scene, frame, joints),
            "qa_kinds": [one.kind for one in questions],
        },
    }
    return json, {"image": frame.colour_HW3, "pose": skeleton_picture(joints, height, width)}


def _picture_sample(
    split: Split, scene: Scene, rng: np.random.Generator, height: int, width: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    frame = _render(scene, height, width)
    questions = truth.questions(scene, rng, 4)
    if scene.mannequin:
        seen = _mannequin_truth(scene, frame, _joints(scene, height, width))
    else:
        seen = {"objects": _objects_truth(scene, frame)}
    json = {
        "tasks": list(PICTURE_TASKS),
        "qa": _pairs(questions),
        "dialog": [list(turn) for turn in truth.dialog(split, rng, 2)],
        "truth": {**seen, "qa_kinds": [one.kind for one in questions]},
    }
    return json, {"image": frame.colour_HW3}


def _views_sample(
    cfg: CorpusConfig, scene: Scene, height: int, width: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    assert scene.ball is not None
    images, views = {}, []
    for number in range(cfg.num_views):
        azimuth_deg = 360 * number / cfg.num_views
        frame = _render(scene, height, width, azimuth_deg)
        images[f"view_{number:02d}"] = frame.colour_HW3
        ball_box = frame.owner_box(1)
        views.append(
            {
                "azimuth_deg": azimuth_deg,
                "objects": _objects_truth(scene, frame),
                "ball_box": list(ball_box) if ball_box else None,
            }
        )
    json = {
        "tasks": list(VIEWS_TASKS),
        "truth": {
            "objects": views[0]["objects"],
            "ball": {"colour": scene.ball.colour, "azimuth_deg": scene.ball.azimuth_deg},
            "views": views,
        },
    }
    return json, images
