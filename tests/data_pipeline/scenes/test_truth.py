"""Words agree with the scene they are about; each check answers from the scene afresh."""

import re
from itertools import pairwise

import numpy as np
import pytest

from data_pipeline.scenes import truth
from data_pipeline.scenes.scene import in_split, sample_scene
from data_pipeline.scenes.vocabulary import (
    COLOURS,
    MATERIALS,
    SHAPES,
    SIZES,
    parse_mannequin,
    parse_objects,
)

NUM = 200
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _scenes(kind="objects", split="train"):
    return [sample_scene(5, split, kind, index) for index in range(NUM)]


def _named(scene, phrase):
    """The one object that a short phrase such as `red cube` names."""
    colour, shape = phrase.split()
    (one,) = [one for one in scene.objects if (one.colour, one.shape) == (colour, shape)]
    return one


def _answer(scene, question):
    """The answer to a question about objects, found independently of how it was made."""
    objects = sorted(scene.objects, key=lambda one: one.x)
    if question == "How many objects are there?":
        return NUMBERS[len(objects)]
    if found := re.fullmatch(r"What colour is the (object )?(.+)\?", question):
        if found[1]:
            return {"on the left": objects[0], "on the right": objects[-1]}.get(
                found[2], objects[1] if len(objects) == 3 else None
            ).colour
        (one,) = [one for one in objects if one.shape == found[2]]
        return one.colour
    if found := re.fullmatch(r"What shape is the (\w+) object\?", question):
        (one,) = [one for one in objects if one.colour == found[1]]
        return one.shape
    if found := re.fullmatch(r"Is the (\w+ \w+) small or large\?", question):
        return _named(scene, found[1]).size
    if found := re.fullmatch(r"Is the (\w+ \w+) matte or shiny\?", question):
        return _named(scene, found[1]).material
    if found := re.fullmatch(r"What is (on the left|in the middle|on the right)\?", question):
        place = {"on the left": 0, "in the middle": 1, "on the right": -1}[found[1]]
        words = f"{objects[place].colour} {objects[place].shape}"
        return f"an {words}" if words[0] == "o" else f"a {words}"
    if found := re.fullmatch(r"Is the (\w+ \w+) (left|right) of the (\w+ \w+)\?", question):
        first, second = _named(scene, found[1]), _named(scene, found[3])
        return "yes" if (first.x < second.x) == (found[2] == "left") else "no"
    found = re.fullmatch(r"Is there a (\w+)\?", question)
    assert found, question
    return "yes" if found[1] in {one.shape for one in objects} else "no"


def test_captions_name_all_objects_from_left_to_right():
    for scene in _scenes():
        assert parse_objects(truth.caption(scene)) == [one.attributes for one in scene.objects]


def test_captions_of_mannequins_and_turntables():
    for scene in _scenes("mannequin"):
        read = parse_mannequin(truth.caption(scene))
        assert read == (scene.mannequin.pose, scene.mannequin.shirt_colour)
    for scene in _scenes("views"):
        assert parse_objects(truth.caption(scene)) == [scene.objects[0].attributes]
        assert f"{scene.ball.colour} ball" in truth.caption(scene)


def test_answers_are_right_and_every_kind_is_asked():
    kinds = set()
    for index, scene in enumerate(_scenes()):
        questions = truth.questions(scene, np.random.default_rng(index), 5)
        assert len({one.question for one in questions}) == len(questions)
        for one in questions:
            kinds.add(one.kind)
            assert one.answer == _answer(scene, one.question), one
    assert kinds == {
        "colour", "count", "material", "place", "presence", "relation", "shape", "size"
    }  # fmt: skip


def test_yes_and_no_are_about_as_frequent():
    answers = [
        one.answer
        for index, scene in enumerate(_scenes())
        for one in truth.questions(scene, np.random.default_rng(index), 8)
        if one.kind in ("presence", "relation")
    ]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_answers_about_the_mannequin():
    for index, scene in enumerate(_scenes("mannequin")):
        pose = scene.mannequin.pose
        for one in truth.questions(scene, np.random.default_rng(index), 3):
            if found := re.fullmatch(r"Where is the (left|right) arm\?", one.question):
                if "hips" in pose:
                    state = "on the hip"
                elif found[1] in pose or "both" in pose:
                    state = re.search(r"(up|out|down)$", pose)[0]
                else:
                    state = "down"
                assert one.answer == state
            elif found := re.fullmatch(r"Is the (left|right) arm up\?", one.question):
                is_up = pose in (f"the {found[1]} arm up", "both arms up")
                assert one.answer == ("yes" if is_up else "no")
            else:
                assert (one.question, one.answer) == (
                    "What colour is the shirt?",
                    scene.mannequin.shirt_colour,
                )


def test_questions_with_a_second_picture():
    scenes = _scenes()
    for index, (first, second) in enumerate(pairwise(scenes)):
        for one in truth.second_picture_questions(first, second, np.random.default_rng(index)):
            if one.kind == "compare count":
                is_more = len(second.objects) > len(first.objects)
                assert one.answer == ("yes" if is_more else "no")
            elif one.kind == "compare shape":
                shape = re.fullmatch(r"Is there a (\w+) in both pictures\?", one.question)[1]
                has = [any(o.shape == shape for o in s.objects) for s in (first, second)]
                assert one.answer == ("yes" if all(has) else "no")
            else:
                assert one.answer == _answer(second, one.question)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_edits_do_what_they_say_and_nothing_else(split):
    verbs = set()
    for index, scene in enumerate(_scenes(split=split)):
        for edit in truth.edit_chain(scene, split, np.random.default_rng(index), 3):
            verb = edit.instruction.split()[0]
            verbs.add(verb)
            old, new = list(scene.objects), list(edit.scene.objects)
            assert all(in_split(one.attributes, split) for one in new)
            gone = [one for one in old if one not in new]
            come = [one for one in new if one not in old]
            if verb == "Add":
                assert not gone and len(come) == 1
                assert parse_objects(edit.instruction) == [come[0].attributes]
                assert new[0 if edit.instruction.endswith("left.") else -1] == come[0]
            elif verb == "Remove":
                assert not come and edit.instruction == f"Remove the {gone[0].short_phrase}."
            else:
                (before,), (after,) = gone, come
                assert before.short_phrase in edit.instruction
                if verb == "Make":
                    assert edit.instruction.endswith(f" {after.colour}.")
                    assert before.shape == after.shape and before.colour != after.colour
                else:
                    assert edit.instruction.endswith(f" a {after.shape}.")
                    assert before.colour == after.colour and before.shape != after.shape
                assert (before.x, before.y) == (after.x, after.y)
            scene = edit.scene
    assert verbs == {"Make", "Turn", "Remove", "Add"}


def test_talk_without_a_picture_is_right():
    rng = np.random.default_rng(0)
    kinds = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "material": MATERIALS}
    for question, answer in (turn for _ in range(NUM) for turn in truth.dialog("train", rng, 2)):
        if found := re.fullmatch(r"How many are (\w+) and (\w+)\?", question):
            assert NUMBERS.index(answer) == sum(NUMBERS.index(word) for word in found.groups())
        elif found := re.fullmatch(r"Count from (\w+) to (\w+)\.", question):
            first, last = (NUMBERS.index(word) for word in found.groups())
            assert answer == ", ".join(NUMBERS[first : last + 1])
        elif found := re.fullmatch(r"Is (\w+) a colour, .+\?", question):
            assert found[1] in kinds[answer.split()[1]]
        elif found := re.fullmatch(r"Name the (\w+) of (.+)\.", question):
            (words,) = parse_objects(found[2])
            assert answer == getattr(words, found[1])
        elif question.startswith("Describe a scene"):
            right, left = parse_objects(question)
            assert parse_objects(answer) == [left, right]
        else:
            assert re.match(r"What (colour do you get|is the opposite)", question)
            assert answer not in question.split()
