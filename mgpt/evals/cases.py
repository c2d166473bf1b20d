"""Held-out questions with their true answers, one `Case` for every turn that is put to the model.

A case holds the conversation up to a question, its last answer left empty, and the truth: text, or
pictures as they went into the tokeniser. Earlier turns carry the true answers, so that each turn is
measured by itself. What a case does not know: who answers it. The model, a constant answer and the
truth sent through the VQGAN (the ceiling) are all scored alike.

    cases = build_cases(dataset, "vqa", num_samples=64, seed=0, truth_picture=read)
    cases[0].question        # "How many objects are there?<|image|>"
    cases[0].truth.text      # "two"
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mgpt.data.dataset import TokenisedDataset
from mgpt.errors import DataError
from mgpt.tasks.registry import SampleView, can_serve, task
from mgpt.tokens.chat import IMAGE_SYMBOL, Conversation, ImageSlot, Part

TruthPicture = Callable[[int, str], np.ndarray]
"""(index of the sample in its data set, field) -> uint8 [H, W, 3] as it was tokenised."""


@dataclass(frozen=True)
class Reply:
    """One answer, whoever gave it: its text and its pictures (uint8 [H, W, 3]) in order."""

    text: str
    images: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Case:
    """One question put to an answerer, with its truth.

    `key` names it for every random draw; `codes` are the VQ codes [h, w] of all the sample's
    pictures by field. `question_images` is the last picture before the answer, if there is one.
    """

    key: str
    task: str
    meta: Mapping[str, object]
    conversation: Conversation
    codes: Mapping[str, np.ndarray]
    question: str
    answer_fields: tuple[str, ...]
    question_images: tuple[np.ndarray, ...]
    truth: Reply

    @property
    def group(self) -> str:
        """Cases that share a constant answer: same question about a picture, same picture sizes.

        Without a picture a text question says all there is to know: all such cases are one group.
        """
        if not self.answer_fields:
            return self.question if self.question_images else ""
        sizes = " ".join(str(self.codes[field].shape) for field in self.answer_fields)
        # Pictures from text are scored by their number of objects, which the text tells.
        told = len(true_objects(self.meta)) if self.task == "text_to_image" else ""
        return f"{told} {sizes}"


def build_cases(
    dataset: TokenisedDataset,
    task_name: str,
    num_samples: int,
    seed: int,
    truth_picture: TruthPicture,
) -> list[Case]:
    """The cases of one task: every turn of `num_samples` held-out samples, in a keyed order.

    The order is that of sha256(seed, task, sample identity): a larger `num_samples` only adds.
    Raises DataError when the data set serves the task with no sample at all, or only with samples
    that are no rendered scenes.
    """
    chosen, num_scenes = [], 0
    for index in range(len(dataset)):
        shard, number = dataset.locate(index)
        meta = shard.meta(number)
        num_scenes += is_scene(meta)
        if can_serve(task_name, meta, shard.shapes(number)) and is_measurable(task_name, meta):
            chosen.append(index)
    if not num_scenes:
        raise DataError(
            f"{dataset.folder}: mgpt evaluate measures rendered scenes only (mgpt pack "
            f"source=scenes), and none of the {len(dataset)} samples here is one; look at answers "
            "about your own pictures with mgpt generate, and give the pictures to a training as "
            "held_out.sources for the loss on them"
        )
    if not chosen:
        raise DataError(
            f"{dataset.folder}: no held-out sample serves the task {task_name!r}; "
            "pack more of them, or leave the task out of tasks"
        )
    chosen.sort(key=lambda index: _rank(seed, task_name, dataset.identity(index)))
    cases: list[Case] = []
    for index in chosen[:num_samples]:
        cases.extend(_cases_of_sample(dataset, index, task_name, truth_picture))
    return cases


def is_measurable(task_name: str, meta: Mapping[str, object]) -> bool:
    """Whether the checker can read the true answer: it knows rendered scenes, and of those that are
    drawn from text alone, scenes of one or two objects."""
    if not is_scene(meta):
        return False
    if task_name != "text_to_image":
        return True
    return meta.get("kind") == "objects" and len(true_objects(meta)) in (1, 2)


def is_scene(meta: Mapping[str, object]) -> bool:
    """Whether a sample is a rendered scene, which brings the truth of all that can be measured."""
    return isinstance(meta.get("truth"), Mapping)


def true_objects(meta: Mapping[str, object]) -> list[Mapping[str, str]]:
    """The objects of a sample's exact scene, empty where it has none."""
    truth = meta.get("truth")
    objects = truth.get("objects", []) if isinstance(truth, Mapping) else []
    return list(objects)


def _rank(seed: int, task_name: str, identity: tuple[str, str]) -> bytes:
    return hashlib.sha256(f"evaluate/{seed}/{task_name}/{identity}".encode()).digest()


def _cases_of_sample(
    dataset: TokenisedDataset, index: int, task_name: str, truth_picture: TruthPicture
) -> list[Case]:
    sample = dataset.sample(index)
    shapes = {field: codes_HW.shape for field, codes_HW in sample.codes.items()}
    whole = task(task_name).build(SampleView(sample.meta, shapes, dataset.latent_px), 0)
    assert isinstance(whole, Conversation), f"{task_name} is no conversation"
    cases = []
    for number, turn in enumerate(whole.turns):
        asked = whole.ask(number)
        question_fields = tuple(
            field
            for earlier in asked.turns
            for field in _fields(earlier.question) + _fields(earlier.answer)
        )[-1:]
        cases.append(
            Case(
                key=f"{sample.key}/{task_name}/{number}",
                task=task_name,
                meta=sample.meta,
                conversation=asked,
                codes=sample.codes,
                question=_as_text(turn.question),
                answer_fields=tuple(_fields(turn.answer)),
                question_images=tuple(truth_picture(index, field) for field in question_fields),
                truth=Reply(
                    text=_as_text(tuple(part for part in turn.answer if isinstance(part, str))),
                    images=tuple(truth_picture(index, field) for field in _fields(turn.answer)),
                ),
            )
        )
    return cases


def _fields(parts: tuple[Part, ...]) -> list[str]:
    return [part.field for part in parts if isinstance(part, ImageSlot)]


def _as_text(parts: tuple[Part, ...]) -> str:
    return "".join(IMAGE_SYMBOL if isinstance(part, ImageSlot) else part for part in parts)
