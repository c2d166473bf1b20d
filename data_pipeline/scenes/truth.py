"""What is true of a scene, in words: captions, questions, edits and talk.

Everything is derived from the scene's description, never from pixels, and every answer is the
only right one in the closed vocabulary. Which questions are asked is drawn from the generator
that the caller passes in.

Example:
    >>> caption(sample_scene(seed=7, split="train", kind="objects"))
    'a small cyan matte cylinder'
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data_pipeline.scenes.scene import (
    SLOT_RADII,
    Scene,
    SceneObject,
    Split,
    in_split,
    sample_attributes,
    widest_free_slot,
)
from data_pipeline.scenes.vocabulary import (
    COLOURS,
    MATERIALS,
    SHAPES,
    SIZES,
    article,
    mannequin_phrase,
)

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SIDE_WORDS = {1: ("",), 2: (" on the left", " on the right")}
_SIDE_WORDS[3] = (" on the left", " in the middle", " on the right")


class Question(NamedTuple):
    """One question with its short answer; `kind` groups questions with one set of answers."""

    kind: str
    question: str
    answer: str


class Edit(NamedTuple):
    """An instruction and the scene after it."""

    instruction: str
    scene: Scene


def caption(scene: Scene) -> str:
    """The scene in one phrase; objects are named from left to right."""
    if scene.mannequin is not None:
        return mannequin_phrase(scene.mannequin.pose, scene.mannequin.shirt_colour)
    phrases = [one.phrase for one in scene.objects]
    if scene.ball is not None:
        return f"{phrases[0]} with a small {scene.ball.colour} ball on its side"
    if len(phrases) == 3:
        return f"from left to right, {phrases[0]}, {phrases[1]} and {phrases[2]}"
    return " left of ".join(phrases)


def questions(scene: Scene, rng: np.random.Generator, num: int) -> list[Question]:
    """`num` different questions about the scene, of kinds as different as it allows."""
    pool = _mannequin_questions(scene) if scene.mannequin else _object_questions(scene, rng)
    by_kind: dict[str, list[Question]] = {}
    for question in pool:
        by_kind.setdefault(question.kind, []).append(question)
    kinds = sorted(by_kind)
    chosen = [
        by_kind[kinds[place]][rng.integers(len(by_kind[kinds[place]]))]
        for place in rng.permutation(len(kinds))
    ]
    return chosen[:num]


def _object_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    objects = scene.objects
    pool = [Question("count", "How many objects are there?", _NUMBERS[len(objects)])]
    sides = _SIDE_WORDS[len(objects)]
    shapes = [one.shape for one in objects]
    for one, side in zip(objects, sides, strict=True):
        name = one.short_phrase
        which = one.shape if shapes.count(one.shape) == 1 else f"object{side}"
        pool += [
            Question("colour", f"What colour is the {which}?", one.colour),
            Question("shape", f"What shape is the {one.colour} object?", one.shape),
            Question("size", f"Is the {name} small or large?", one.size),
            Question("material", f"Is the {name} matte or shiny?", one.material),
        ]
        if side:
            pool.append(Question("place", f"What is{side}?", f"{article(name)} {name}"))
    for left, right in pairwise(objects):
        first, second = (left, right) if rng.random() < 0.5 else (right, left)
        where = str(rng.choice(["left", "right"]))
        is_so = (first is left) == (where == "left")
        pool.append(
            Question(
                "relation",
                f"Is the {first.short_phrase} {where} of the {second.short_phrase}?",
                _yes(is_so),
            )
        )
    # Half of the questions about presence are to be answered with yes.
    absent = [shape for shape in SHAPES if shape not in shapes]
    asked = str(rng.choice(absent if rng.random() < 0.5 else shapes))
    pool.append(Question("presence", f"Is there a {asked}?", _yes(asked in shapes)))
    return pool


def _mannequin_questions(scene: Scene) -> list[Question]:
    assert scene.mannequin is not None
    pose, colour = scene.mannequin.pose, scene.mannequin.shirt_colour
    pool = [Question("colour", "What colour is the shirt?", colour)]
    for side in ("left", "right"):
        state = "down"
        if f"the {side} arm" in pose or "both arms" in pose:
            state = pose.split()[-1]
        elif "hips" in pose:
            state = "on the hip"
        pool += [
            Question("arm", f"Where is the {side} arm?", state),
            Question("presence", f"Is the {side} arm up?", _yes(state == "up")),
        ]
    return pool


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def second_picture_questions(
    first: Scene, second: Scene, rng: np.random.Generator
) -> list[Question]:
    """Questions put with a second picture: about it alone, and comparing it with the first."""
    num_first, num_second = len(first.objects), len(second.objects)
    alone = questions(second, rng, 2)
    compared = [
        Question(
            "compare count",
            "Does this picture show more objects than the first?",
            _yes(num_second > num_first),
        )
    ]
    shape = str(rng.choice(SHAPES))
    in_both = all(any(one.shape == shape for one in scene.objects) for scene in (first, second))
    compared.append(
        Question("compare shape", f"Is there a {shape} in both pictures?", _yes(in_both))
    )
    ordered = [alone[0], compared[rng.integers(2)], *alone[1:]]
    return ordered if rng.random() < 0.5 else [ordered[1], ordered[0], *ordered[2:]]


def edit_chain(scene: Scene, split: Split, rng: np.random.Generator, num: int) -> list[Edit]:
    """`num` edits, each applied to the scene that the one before it left; all stay in the split."""
    chain: list[Edit] = []
    for _ in range(num):
        options = [edit for make in _EDITS for edit in make(scene, split, rng)]
        edit = options[rng.integers(len(options))]
        chain.append(edit)
        scene = edit.scene
    return chain


def _with_object(scene: Scene, place: int, one: SceneObject) -> Scene:
    objects = (*scene.objects[:place], one, *scene.objects[place + 1 :])
    return replace(scene, objects=objects)


def _recolour(scene: Scene, split: Split, rng: np.random.Generator) -> list[Edit]:
    place = int(rng.integers(len(scene.objects)))
    old = scene.objects[place]
    taken = {one.colour for one in scene.objects}
    options = [
        new
        for colour in COLOURS
        if colour not in taken and in_split((new := replace(old, colour=colour)).attributes, split)
    ]
    if not options:
        return []
    new = options[rng.integers(len(options))]
    return [Edit(f"Make the {old.short_phrase} {new.colour}.", _with_object(scene, place, new))]


def _reshape(scene: Scene, split: Split, rng: np.random.Generator) -> list[Edit]:
    place = int(rng.integers(len(scene.objects)))
    old = scene.objects[place]
    options = [
        new
        for shape in SHAPES
        if shape != old.shape and in_split((new := replace(old, shape=shape)).attributes, split)
    ]
    if not options:
        return []
    new = options[rng.integers(len(options))]
    instruction = f"Turn the {old.short_phrase} into a {new.shape}."
    return [Edit(instruction, _with_object(scene, place, new))]


def _remove(scene: Scene, split: Split, rng: np.random.Generator) -> list[Edit]:
    if len(scene.objects) < 2:
        return []
    place = int(rng.integers(len(scene.objects)))
    kept = scene.objects[:place] + scene.objects[place + 1 :]
    instruction = f"Remove the {scene.objects[place].short_phrase}."
    return [Edit(instruction, replace(scene, objects=kept))]


def _add(scene: Scene, split: Split, rng: np.random.Generator) -> list[Edit]:
    if len(scene.objects) > 1:
        return []
    left, right = widest_free_slot(scene)
    fitting = [size for size, radius in SIZES.items() if SLOT_RADII * radius < right - left]
    if not fitting:
        return []
    taken = tuple(one.colour for one in scene.objects)
    new = sample_attributes(rng, split, taken, size=str(rng.choice(fitting)))
    half = SLOT_RADII * new.radius / 2
    new = replace(
        new,
        x=float(rng.uniform(left + half, right - half)),
        y=float(rng.uniform(-0.3, 0.3)),
    )
    is_left = new.x < scene.objects[0].x
    side = "left" if is_left else "right"
    objects = (new, *scene.objects) if is_left else (*scene.objects, new)
    return [Edit(f"Add {new.phrase} on the {side}.", replace(scene, objects=objects))]


_EDITS: tuple[Callable[[Scene, Split, np.random.Generator], list[Edit]], ...] = (
    _recolour,
    _reshape,
    _remove,
    _add,
)

_MIXTURES = {("red", "yellow"): "orange", ("yellow", "blue"): "green", ("red", "blue"): "purple"}
_OPPOSITES = {"small": "large", "large": "small", "matte": "shiny", "shiny": "matte"}
_OPPOSITES |= {"left": "right", "right": "left", "up": "down", "down": "up"}
_KINDS = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "material": MATERIALS}


def dialog(split: Split, rng: np.random.Generator, num: int) -> list[tuple[str, str]]:
    """`num` turns of talk about the world of the scenes, without a picture."""
    topics = rng.permutation(len(_TOPICS))[:num]
    return [_TOPICS[topic](split, rng) for topic in topics]


def _mixture(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    pair = list(_MIXTURES)[rng.integers(len(_MIXTURES))]
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    return f"What colour do you get from {first} and {second}?", _MIXTURES[pair]


def _opposite(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    word = list(_OPPOSITES)[rng.integers(len(_OPPOSITES))]
    return f"What is the opposite of {word}?", _OPPOSITES[word]


def _counting(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    start = int(rng.integers(1, 7))
    stop = start + int(rng.integers(2, 4))
    question = f"Count from {_NUMBERS[start]} to {_NUMBERS[stop]}."
    return question, ", ".join(_NUMBERS[start : stop + 1])


def _sum(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    first, second = (int(n) for n in rng.integers(1, 6, size=2))
    cubes = f"{_NUMBERS[first]} and {_NUMBERS[second]}"
    return f"How many are {cubes}?", _NUMBERS[first + second]


def _kind_of_word(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    kind = list(_KINDS)[rng.integers(len(_KINDS))]
    word = _KINDS[kind][rng.integers(len(_KINDS[kind]))]
    return f"Is {word} a colour, a shape, a size or a material?", f"a {kind}"


def _two_objects(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    left = sample_attributes(rng, split, ()).phrase
    right = sample_attributes(rng, split, ()).phrase
    return f"Describe a scene with {right} on the right and {left} on the left.", (
        f"{left} left of {right}"
    )


def _word_in_phrase(split: Split, rng: np.random.Generator) -> tuple[str, str]:
    one = sample_attributes(rng, split, ())
    kind = list(_KINDS)[rng.integers(len(_KINDS))]
    return f"Name the {kind} of {one.phrase}.", str(getattr(one, kind))


_TOPICS: tuple[Callable[[Split, np.random.Generator], tuple[str, str]], ...] = (
    _mixture,
    _opposite,
    _counting,
    _sum,
    _kind_of_word,
    _two_objects,
    _word_in_phrase,
)
