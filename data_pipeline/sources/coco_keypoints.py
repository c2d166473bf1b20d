"""COCO keypoints: photographs, and pictures of their people's poses drawn from the annotations.

`input` is COCO's `person_keypoints_<set>.json`, `pictures` the folder of the photographs; where
`captions_<set>.json` stands beside it, the first caption of each comes along. A sample has the
fields `image` and `pose` and serves `pose`, with a caption also `pose_to_image`. A photograph
without an annotated joint is refused (`no_keypoints`). Of the annotations only the joints are
held, 0.2 kB a person.

    mgpt pack source=coco_keypoints input=annotations/person_keypoints_train2017.json \\
         pictures=train2017 output=raw/pose
"""

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.raw.shards import Picture, RawSample, Rejected
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, SourceFile, shard_name
from data_pipeline.sources.record_files import BadRecord, JsonStream, open_records
from data_pipeline.sources.records import pictures_folder, read_picture
from mgpt.errors import ConfigError, DataError
from mgpt.files.storage import Location, locate

# COCO's seventeen joints in its order: nose, eyes, ears, shoulders, elbows, wrists, hips, knees,
# ankles, the left one first. Limbs as its API lists them; colours once around the circle.
NUM_JOINTS = 17
LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
MAX_SIDE_PX = 1 << 14  # beyond it a size in the annotations is a mistake


@dataclass
class _Photo:
    """What the annotations say of a photograph: poses are float32 [17, 3] (x, y, visibility)."""

    file: Any
    width: Any
    height: Any
    caption: str = ""
    poses: list[np.ndarray] = field(default_factory=list)
    problem: str = ""


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive photographs, in the order of the annotations.

    Raises:
        ConfigError: no input.
        DataError: annotations that cannot be read, or without photographs.
    """
    if cfg.input is None:
        raise ConfigError("source=coco_keypoints needs input=<person_keypoints_….json>")
    path = locate(cfg.input)
    photos = _read_annotations(path)
    if not photos:
        raise DataError(f"{path}: no `images` in it; give COCO's person_keypoints_<set>.json")
    ids, step = list(photos), cfg.samples_per_shard
    folder = pictures_folder(cfg)
    return [
        Part(
            shard_name(start // step),
            len(ids[start : start + step]),
            functools.partial(_read, folder, {one: photos[one] for one in ids[start:][:step]}),
            start,
            input_files(path),
        )
        for start in range(0, len(ids), step)
    ]


def _read_annotations(path: Location) -> dict[Any, _Photo]:
    """Photographs by their ids."""
    photos: dict[Any, _Photo] = {}
    poses: list[tuple[Any, np.ndarray | None]] = []
    captions: dict[Any, str] = {}
    for section, item in _items(path):
        if section == "images":
            image = item.get("file_name"), item.get("width"), item.get("height")
            photos[item.get("id")] = _Photo(*image)
        elif section == "annotations" and item.get("num_keypoints", 1):
            poses.append((item.get("image_id"), _pose(item.get("keypoints"))))
    for beside in input_files(path)[1:]:
        for section, item in _items(beside) if beside.is_file() else ():
            if section == "annotations" and isinstance(item.get("caption"), str):
                captions.setdefault(item.get("image_id"), item["caption"].strip())
    for one, pose in poses:
        photo = photos.get(one)
        if photo is not None and pose is None:
            photo.problem = "an annotation without 17 joints of three numbers"
        elif photo is not None and pose is not None:
            photo.poses.append(pose)
    for one, photo in photos.items():
        photo.caption = captions.get(one, "")
    return photos


def input_files(path: Location) -> tuple[Location, ...]:
    """The annotations, and where the captions of the same set would be."""
    beside = path.with_name(path.name.replace("person_keypoints", "captions"))
    return (path,) if beside == path else (path, beside)


def _items(path: Location) -> Iterator[tuple[str, dict[str, Any]]]:
    """(section, item) of the file's lists of objects, one at a time."""
    with open_records(path) as stream:
        json_stream = JsonStream(stream, path)
        for section in json_stream.members():
            if json_stream.peek() != "[":
                json_stream.value()
                continue
            for _, item in json_stream.elements():
                if isinstance(item, dict):
                    yield section, item


def _pose(keypoints: object) -> np.ndarray | None:
    try:
        pose_J3 = np.asarray(keypoints, dtype=np.float32).reshape(NUM_JOINTS, 3)
    except (TypeError, ValueError):
        return None
    return pose_J3 if np.isfinite(pose_J3).all() else None


def _read(
    folder: Location, photos: dict[Any, _Photo]
) -> Iterator[RawSample | Rejected | SourceFile]:
    for one, photo in photos.items():
        key = f"{one:012d}" if isinstance(one, int) and one >= 0 else str(one)
        seen: list[SourceFile] = []
        try:
            yield _sample(key, photo, folder, seen)
        except BadRecord as bad:
            yield Rejected(key, bad.reason, bad.detail)
        yield from seen


def _sample(key: str, photo: _Photo, folder: Location, seen: list[SourceFile]) -> RawSample:
    if photo.problem:
        raise BadRecord("bad_keypoints", photo.problem)
    if not any((pose_J3[:, 2] > 0).any() for pose_J3 in photo.poses):
        raise BadRecord("no_keypoints")
    size = photo.width, photo.height
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE_PX for side in size):
        raise BadRecord("bad_json", f"width and height are {size}")
    if not isinstance(photo.file, str):
        raise BadRecord("missing_picture", f"file_name is {photo.file!r}")
    pose = Picture(draw_poses(photo.poses, photo.width, photo.height), "png")
    pictures = {"image": read_picture(folder, photo.file, key, seen), "pose": pose}
    meta: dict[str, Any] = {"tasks": ["pose"], "file": photo.file}
    if photo.caption:
        meta |= {"tasks": ["pose", "pose_to_image"], "caption": photo.caption}
    return RawSample(key, pictures, meta)


def draw_poses(poses: list[np.ndarray], width_px: int, height_px: int) -> bytes:
    """A PNG of the limbs, each in its colour, and white joints, on black; later people on top.

    Joints that COCO marks 0 are not drawn, nor limbs that end in one.
    """
    image = Image.new("RGB", (width_px, height_px))
    draw = ImageDraw.Draw(image)
    line_px = max(2, round((width_px * height_px) ** 0.5 / 80))
    radius = line_px * 0.75
    for pose_J3 in poses:
        points = [(float(x), float(y)) if seen > 0 else None for x, y, seen in pose_J3]
        for limb, (start, end) in enumerate(LIMBS):
            one, other = points[start], points[end]
            if one and other:
                colour = f"hsv({limb * 360 // len(LIMBS)}, 100%, 100%)"
                draw.line([one, other], colour, line_px)
        for x, y in filter(None, points):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), "white")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
