"""Samples are pure functions of (config, index), whole, and true to their pictures."""

import doctest
import json

import numpy as np
import pytest

from data_pipeline.scenes import corpus, scene, solids
from data_pipeline.scenes.corpus import CorpusConfig, iter_samples, make_sample, picture_size
from data_pipeline.scenes.vocabulary import (
    BOX_COLOUR,
    DEPTH_FAR,
    DEPTH_NEAR,
    JOINTS,
    SEGMENTATION_COLOURS,
    depth_level,
)
from mgpt.errors import ConfigError


def _config(kind="objects", **changes):
    settings = {"num_scenes": 12, "split": "train", "seed": 2, "kind_weights": {kind: 1.0}}
    return CorpusConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def samples():
    return {
        kind: list(iter_samples(_config(kind, aspect_weights={"1:1": 1.0})))
        for kind in ("objects", "mannequin", "views")
    }


@pytest.mark.parametrize("module", [corpus, scene, solids])
def test_the_worked_examples_are_true(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_any_range_gives_the_same_bytes():
    cfg = CorpusConfig(num_scenes=9, split="heldout", seed=4)
    whole = list(iter_samples(cfg))
    for index in (0, 4, 8):
        (alone,) = iter_samples(cfg, index, index + 1)
        assert alone.key == whole[index].key and alone.json == whole[index].json
        for field, picture in alone.images.items():
            assert (picture == whole[index].images[field]).all()
    longer = make_sample(CorpusConfig(num_scenes=99, split="heldout", seed=4), 4)
    assert longer.json == whole[4].json


def test_samples_are_whole(samples):
    fields = {
        "objects": "image depth normals segmentation detection other edit_1 edit_2",
        "mannequin": "image pose",
        "views": "view_00 view_01 view_02 view_03",
    }
    for kind, each in samples.items():
        for sample in each:
            assert set(sample.images) == set(fields[kind].split())
            assert json.loads(json.dumps(sample.json)) == sample.json
            for picture in sample.images.values():
                assert picture.dtype == np.uint8 and picture.shape == (64, 64, 3)
            assert sample.json["caption"] and sample.json["tasks"]
    assert len({sample.key for sample in samples["objects"]}) == 12


@pytest.mark.parametrize("kind", ["objects", "mannequin"])
def test_without_targets_the_picture_and_its_words_stay(kind, samples):
    for index, whole in enumerate(samples[kind]):
        sample = make_sample(_config(kind, aspect_weights={"1:1": 1.0}, targets=False), index)
        assert sample.json["caption"] == whole.json["caption"]
        assert list(sample.images) == ["image"]
        assert (sample.images["image"] == whole.images["image"]).all()
        assert set(sample.json["tasks"]) == {"text_dialog", "text_to_image", "caption", "vqa"}
        assert len(sample.json["qa"]) == len(sample.json["truth"]["qa_kinds"]) >= 3
        assert sample.json["truth"]["objects"] == whole.json["truth"]["objects"]


def test_mistakes_of_a_corpus_are_said_together():
    with pytest.raises(ConfigError) as caught:
        _config("views", area_px=8, num_views=0, targets=False)
    for part in ("area_px=8", "num_views=0", "kind_weights.views=0"):
        assert part in str(caught.value)


def test_every_task_but_none_other_is_served(samples):
    served = {task for each in samples.values() for task in each[0].json["tasks"]}
    assert served == {
        "text_dialog", "text_to_image", "caption", "vqa", "multi_image_dialog", "edit",
        "segmentation", "depth", "normals", "pose", "detection", "depth_to_image",
        "segmentation_to_image", "normals_to_image", "pose_to_image", "multi_view",
    }  # fmt: skip


def test_pictures_have_the_asked_area_and_aspect():
    for aspect, (height, width) in {"1:1": (64, 64), "3:2": (56, 80), "2:3": (80, 56)}.items():
        assert picture_size(64, aspect) == (height, width)
        (sample,) = iter_samples(_config(num_scenes=1, aspect_weights={aspect: 1.0}))
        assert sample.images["image"].shape == (height, width, 3)


def test_boxes_enclose_the_class_in_the_segmentation(samples):
    for sample in samples["objects"]:
        segmentation = sample.images["segmentation"]
        for one in sample.json["truth"]["objects"]:
            is_class = (segmentation == SEGMENTATION_COLOURS[one["shape"]]).all(-1)
            x0, y0, x1, y1 = (64 * side for side in one["box"])
            inside = is_class[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
            assert inside.mean() > 0.4
        shapes = {one["shape"] for one in sample.json["truth"]["objects"]}
        drawn = {tuple(colour) for colour in segmentation.reshape(-1, 3).tolist()}
        assert drawn == {SEGMENTATION_COLOURS[name] for name in (*shapes, "ground", "sky")}


def test_the_drawn_box_surrounds_the_sought_object(samples):
    for sample in samples["objects"]:
        is_line = (sample.images["detection"] == BOX_COLOUR).all(-1)
        x0, y0, x1, y1 = (64 * side for side in sample.json["box"])
        assert not is_line[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].any()
        rows, columns = np.nonzero(is_line)
        assert (columns.min(), rows.min()) == (int(x0) - 2, int(y0) - 2)
        unchanged = sample.images["detection"][~is_line] == sample.images["image"][~is_line]
        assert unchanged.all()
        colour, shape = sample.json["object"].split()[1:]
        sought = [
            one
            for one in sample.json["truth"]["objects"]
            if (one["colour"], one["shape"]) == (colour, shape)
        ]
        assert [one["box"] for one in sought] == [sample.json["box"]]


def test_edited_pictures_differ_where_the_edit_is(samples):
    for sample in samples["objects"]:
        before = sample.images["image"].astype(int)
        for step in (1, 2):
            after = sample.images[f"edit_{step}"].astype(int)
            share = (np.abs(after - before).max(-1) > 24).mean()
            assert 0.005 < share < 0.4
            before = after


def test_depth_picture_is_bright_where_near(samples):
    depth = samples["objects"][0].images["depth"]
    assert (depth[-1].astype(int) > depth[20].astype(int)).all()
    assert depth_level(DEPTH_NEAR) == 1 and depth_level(DEPTH_FAR) == 0
    assert (depth[..., 0] == depth[..., 2]).all()


def test_the_skeleton_passes_through_the_joints(samples):
    for sample in samples["mannequin"]:
        joints = sample.json["truth"]["mannequin"]["joints"]
        assert tuple(joints) == JOINTS
        for x, y in joints.values():
            assert sample.images["pose"][int(64 * y), int(64 * x)].max() > 200


def test_the_ball_comes_round(samples):
    for sample in samples["views"]:
        views = sample.json["truth"]["views"]
        assert [view["azimuth_deg"] for view in views] == [0, 90, 180, 270]
        front, right, _, left = (view["ball_box"] for view in views)
        centre = views[0]["objects"][0]["centre"][0]
        assert front is not None and left is not None
        assert (left[0] + left[2]) / 2 < centre
        assert right is None or (right[0] + right[2]) / 2 > centre
        area = [(box[2] - box[0]) * (box[3] - box[1]) if box else 0 for box in (front, right)]
        assert area[0] > area[1]
