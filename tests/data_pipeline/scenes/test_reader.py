"""The reader is right on held-out renders, plain and spoilt, and not fooled by what is absent."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.scenes.corpus import CorpusConfig, iter_samples
from data_pipeline.scenes.reader import (
    read_box,
    read_depth,
    read_normals,
    read_pose,
    read_scene,
    read_segmentation,
)
from data_pipeline.scenes.vocabulary import DEPTH_NEAR, SEGMENTATION_COLOURS


def _fit_script():
    path = Path(__file__).with_name("fit_reader.py")
    spec = importlib.util.spec_from_file_location("fit_reader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


spoil = _fit_script().spoil


@lru_cache(maxsize=4)
def _samples(kind, aspect="1:1", num=40, area_px=64):
    cfg = CorpusConfig(
        num_scenes=num,
        split="heldout",
        seed=11,
        area_px=area_px,
        kind_weights={kind: 1.0},
        aspect_weights={aspect: 1.0},
    )
    return list(iter_samples(cfg))


def _shares_right(samples, change=lambda picture: picture):
    """Share of pictures in which all of each attribute is read right."""
    right = {"shape": 0, "colour": 0, "size": 0, "material": 0}
    num = 0
    for sample in samples:
        truth = sample.json["truth"]
        for field, objects in (
            ("image", truth["objects"]),
            ("other", truth["other"]["objects"]),
            ("edit_1", truth["edits"][0]["objects"]),
        ):
            num += 1
            seen = read_scene(change(sample.images[field]))
            for name in right:
                right[name] += [getattr(one, name) for one in seen] == [o[name] for o in objects]
    return {name: count / num for name, count in right.items()}


@pytest.mark.parametrize("aspect", ["1:1", "3:2", "2:3"])
def test_plain_pictures_are_read_without_error(aspect):
    shares = _shares_right(_samples("objects", aspect, num=25))
    assert min(shares["shape"], shares["colour"], shares["size"]) >= 0.99
    assert shares["material"] >= 0.98


def test_spoilt_pictures_are_read():
    rng = np.random.default_rng(0)
    shares = _shares_right(_samples("objects"), lambda picture: spoil(picture, rng))
    assert min(shares["shape"], shares["colour"], shares["size"]) >= 0.97
    assert shares["material"] >= 0.92


def test_small_pictures_are_read():
    shares = _shares_right(_samples("objects", area_px=32))
    assert min(shares["shape"], shares["colour"], shares["size"]) >= 0.97


def test_boxes_of_seen_objects_are_the_true_ones():
    for sample in _samples("objects"):
        pairs = zip(read_scene(sample.images["image"]), sample.json["truth"]["objects"])
        for seen, one in pairs:
            # Right and below, away from the light, a shiny thing that mirrors has little hue left.
            shaded = 2.5 if one["material"] == "shiny" else 2
            most = [2, 2, shaded, shaded]
            assert (np.abs(np.array(seen.box) - 64 * np.array(one["box"])) <= most).all()


def test_nothing_is_seen_where_nothing_is():
    ground = np.full((64, 64, 3), 228, np.uint8)
    noise = np.random.default_rng(0).normal(228, 8, ground.shape).clip(0, 255).astype(np.uint8)
    for picture in (ground, noise, np.zeros_like(ground)):
        assert read_scene(picture) == []
        assert read_box(picture) is None
    assert read_pose(np.zeros_like(ground)) == {}


def test_another_shape_or_colour_is_seen_as_such():
    """A picture is not read as what it ought to be: edits change what is read."""
    changed = 0
    for sample in _samples("objects"):
        before = [(one.shape, one.colour) for one in read_scene(sample.images["image"])]
        after = [(one.shape, one.colour) for one in read_scene(sample.images["edit_1"])]
        changed += before != after
    assert changed == len(_samples("objects"))


def _overlap(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def test_a_drawn_box_is_found_and_only_a_drawn_one():
    overlaps = []
    for sample in _samples("objects"):
        found = read_box(sample.images["detection"])
        overlaps.append(_overlap(found, [64 * side for side in sample.json["box"]]))
        assert read_box(sample.images["image"]) is None
    assert np.mean(overlaps) > 0.9 and min(overlaps) > 0.7


def test_a_filled_blot_of_the_box_colour_is_no_box():
    picture = np.full((64, 64, 3), 228, np.uint8)
    picture[20:40, 20:40] = (255, 0, 255)
    assert read_box(picture) is None


def _joint_errors(samples, change):
    errors = []
    for sample in samples:
        found = read_pose(change(sample.images["pose"]))
        for joint, place in sample.json["truth"]["mannequin"]["joints"].items():
            errors.append(np.hypot(*(np.array(found[joint]) - 64 * np.array(place))))
    return np.array(errors)


def test_joints_are_found():
    samples = _samples("mannequin")
    assert _joint_errors(samples, lambda picture: picture).max() < 2.5
    rng = np.random.default_rng(0)
    spoilt = _joint_errors(samples, lambda picture: spoil(picture, rng))
    assert spoilt.mean() < 2.5 and (spoilt < 9).mean() > 0.98


def test_a_missing_limb_is_not_found():
    pose = _samples("mannequin")[0].images["pose"].copy()
    red, green, blue = pose.astype(int).transpose(2, 0, 1)
    # The right forearm is the yellow limb.
    pose[(green > 0.7 * red) & (red > 0.7 * green) & (blue < 0.3 * red)] = 0
    assert "right hand" not in read_pose(pose) and "left hand" in read_pose(pose)


def test_segmentation_survives_spoiling():
    rng = np.random.default_rng(0)
    names = list(SEGMENTATION_COLOURS)
    for sample in _samples("objects")[:10]:
        picture = sample.images["segmentation"]
        labels = read_segmentation(picture)
        palette = np.array(list(SEGMENTATION_COLOURS.values()), np.uint8)
        assert (palette[labels] == picture).all()
        assert (read_segmentation(spoil(picture, rng)) == labels).mean() > 0.97
        assert {names[label] for label in np.unique(labels)} >= {"ground", "sky"}


def test_depth_and_normals_are_read_in_their_units():
    sample = _samples("objects")[0]
    depth = read_depth(sample.images["depth"])
    assert DEPTH_NEAR <= depth.min() < 5.5 and depth[40, 1] < depth[20, 1] < depth[8, 1]
    normals = read_normals(sample.images["normals"])
    np.testing.assert_allclose(np.linalg.norm(normals[-1], axis=-1), 1, atol=1e-6)
    assert (normals[-1][:, 1] > 0.95).all()
