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


def build_cases(
    dataset: TokenisedDataset,
    task_name: str,
    num_samples: int,
    seed: int,
    truth_picture: TruthPicture,
    can_read: Callable[[Mapping[str, object]], bool] = lambda meta: True,
) -> list[Case]:
    """The cases of one task: every turn of `num_samples` held-out samples, in a keyed order.

    The order is that of sha256(seed, task, sample identity): a larger `num_samples` only adds.
    Args:
        task_name: a task's name, or the file of a task of the user's own.
        can_read: whether the scorer can measure a sample, given its JSON.

    Raises DataError if no sample of the data set serves the task.
    """
    name = task(task_name).name
    chosen = serving(dataset, task_name, can_read)
    if not chosen:
        raise DataError(
            f"{dataset.folder}: no held-out sample serves the task {name!r}; "
            "pack more of them, or leave the task out of tasks"
        )
    chosen.sort(key=lambda index: _rank(seed, name, dataset.identity(index)))
    cases: list[Case] = []
    for index in chosen[:num_samples]:
        cases.extend(_cases_of_sample(dataset, index, task_name, truth_picture))
    return cases


def serving(
    dataset: TokenisedDataset,
    task_name: str,
    can_read: Callable[[Mapping[str, object]], bool] = lambda meta: True,
) -> list[int]:
    """Indices of the samples that serve a task and can be measured."""
    found = []
    for index in range(len(dataset)):
        shard, number = dataset.locate(index)
        meta = shard.meta(number)
        if can_serve(task_name, meta, shard.shapes(number)) and can_read(meta):
            found.append(index)
    return found


def _rank(seed: int, task_name: str, identity: tuple[str, str]) -> bytes:
    return hashlib.sha256(f"evaluate/{seed}/{task_name}/{identity}".encode()).digest()


def _cases_of_sample(
    dataset: TokenisedDataset, index: int, task_name: str, truth_picture: TruthPicture
) -> list[Case]:
    sample = dataset.sample(index)
    shapes = {field: codes_HW.shape for field, codes_HW in sample.codes.items()}
    wanted = task(task_name)
    whole = wanted.build(SampleView(sample.meta, shapes, dataset.latent_px), 0)
    assert isinstance(whole, Conversation), f"{wanted.name} is no conversation"
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
                key=f"{sample.key}/{wanted.name}/{number}",
                task=wanted.name,
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
