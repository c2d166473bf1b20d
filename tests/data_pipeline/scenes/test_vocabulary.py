"""The vocabulary is closed, unambiguous, and split as stated."""

from itertools import product

import numpy as np
import pytest

from data_pipeline.scenes.vocabulary import (
    COLOURS,
    JOINTS,
    LIMBS,
    MATERIALS,
    POSES,
    SHAPES,
    SIZES,
    is_held_out,
    is_pose_held_out,
    mannequin_phrase,
    object_phrase,
    parse_mannequin,
    parse_objects,
)


def test_each_shape_and_colour_hold_out_one_of_four():
    for shape, colour in product(SHAPES, COLOURS):
        held = [is_held_out(shape, colour, *rest) for rest in product(SIZES, MATERIALS)]
        assert sum(held) == 1


def test_each_pose_and_each_shirt_is_in_both_splits():
    for pose in POSES:
        assert sum(is_pose_held_out(pose, colour) for colour in COLOURS) == 2
    for colour in COLOURS:
        assert sum(is_pose_held_out(pose, colour) for pose in POSES) == 2


def test_phrases_are_read_back():
    for words in product(SHAPES, COLOURS, SIZES, MATERIALS):
        assert [tuple(one) for one in parse_objects(object_phrase(*words))] == [words]
    for pose, colour in product(POSES, COLOURS):
        assert parse_mannequin(mannequin_phrase(pose, colour)) == (pose, colour)


@pytest.mark.parametrize(
    "text",
    ["a large red cube", "a red large matte cube", "a large red matte cuboid", "large matte", ""],
)
def test_phrases_out_of_the_grammar_are_not_read(text):
    assert parse_objects(text) == []


def test_a_pose_must_be_whole():
    assert parse_mannequin("a mannequin in a red shirt with the left arm") is None
    assert parse_mannequin("a large red matte cube") is None


def test_colours_are_apart():
    palette = np.array(list(COLOURS.values()), float)
    away = np.linalg.norm(palette[:, None] - palette, axis=-1)
    assert away[~np.eye(len(palette), dtype=bool)].min() > 80


def test_limbs_join_known_joints_into_one_body():
    reached = {LIMBS[0].start}
    for _ in LIMBS:
        reached |= {
            joint for limb in LIMBS if {limb.start, limb.end} & reached for joint in limb[:2]
        }
    assert reached == set(JOINTS)
    assert len({limb.colour for limb in LIMBS}) == len(LIMBS)
