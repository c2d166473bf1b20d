"""Conversations and pretraining documents as ids, with the tokens that are trained.

    `<s>` question · separator · answer · separator · question ...      Conversation
    `<s>` content `</s>`                                                Document

The separator is the end-of-turn token. Of a conversation the answers are trained with their
separator, of a document every token after the first. Each piece of text is encoded by itself, and
that defines the ids; images are UniRep. This module knows neither prompts nor tasks.

    item = Conversation((Turn(("Describe this. ", ImageSlot("image")), ("a red cube",)),))
    tokens = tokenise(item, {"image": codes_HW}, vocab)     # ids, trained, guidance_cut
    counts = count(item, {"image": codes_HW.shape}, vocab)  # the same lengths without codes
    prompt_ids(item.ask(), {"image": codes_HW}, vocab)      # up to the question's separator

Source: Lumina-mGPT, arXiv 2408.02657, and its published code. Guidance drop is ours in what it
leaves open: all before the first trained image goes, `<s>` too, as in sampling's other branch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mgpt.errors import DataError
from mgpt.tokens.unirep import encode_grid, grid_length
from mgpt.tokens.vocab import Vocabulary

IMAGE_SYMBOL = "<|image|>"


@dataclass(frozen=True)
class ImageSlot:
    """The place of an image; `field` names it among a sample's picture fields."""

    field: str


class ImageCountError(DataError):
    """Another number of `<|image|>` in a conversation than it has images."""


Part = str | ImageSlot
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Turn:
    """A question and its answer; an answer still to be given is ()."""

    question: tuple[Part, ...]
    answer: tuple[Part, ...]


@dataclass(frozen=True)
class Conversation:
    """One or more turns."""

    turns: tuple[Turn, ...]

    def ask(self, turn: int = -1) -> "Conversation":
        """The turns up to `turn`, whose answer is taken away: what a model is to answer."""
        turn = turn % len(self.turns)
        return Conversation((*self.turns[:turn], replace(self.turns[turn], answer=())))


@dataclass(frozen=True)
class Document:
    """A pretraining document: text and images in reading order."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """One sample as ids."""

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    """Which of `ids` are targets of the loss."""
    guidance_cut: int
    """Position of the first trained image of a conversation; 0 where there is none."""

    def drop_context(self) -> "Tokens":
        """The sequence from the first trained image on, for guidance; itself without one.

        Its first token, begin of image, has nothing before it and is not trained.
        """
        if not self.guidance_cut:
            return self
        trained = self.trained[self.guidance_cut :].copy()
        trained[0] = False
        return Tokens(self.ids[self.guidance_cut :], trained, 0)


@dataclass(frozen=True)
class Counts:
    """What `tokenise` would give, in numbers of tokens."""

    tokens: int
    trained: int
    guidance_cut: int
    trained_after_cut: int
    """Trained tokens after `drop_context`."""


def tokenise(
    item: Conversation | Document,
    codes: Mapping[str, npt.NDArray[np.integer]],
    vocab: Vocabulary,
) -> Tokens:
    """Ids [T] and trained mask [T] of one sample; `codes` holds [H, W] for each image slot.

    Raises `DataError` where a slot has no codes or a part cannot be encoded.
    """
    parts: list[npt.NDArray[np.int32] | list[int]] = []
    spans: list[slice] = []
    guidance_cut = length = 0
    for segment, is_trained in _segments(item, vocab):
        if isinstance(segment, ImageSlot):
            if is_trained and not guidance_cut and isinstance(item, Conversation):
                guidance_cut = length
            parts.append(encode_grid(_of(codes, segment), vocab))
            added = len(parts[-1])
        else:
            if parts and isinstance(parts[-1], list):
                parts[-1] += segment
            else:
                parts.append([*segment])
            added = len(segment)
        if is_trained:
            spans.append(slice(length, length + added))
        length += added
    ids, trained = np.empty(length, dtype=np.int32), np.zeros(length, dtype=bool)
    start = 0
    for part in parts:
        ids[start : start + len(part)] = part
        start += len(part)
    for span in spans:
        trained[span] = True
    return Tokens(ids, trained, guidance_cut)


def count(
    item: Conversation | Document, shapes: Mapping[str, tuple[int, int]], vocab: Vocabulary
) -> Counts:
    """Lengths of one sample from the shapes (h, w) of its images alone, in latents.

    Raises `DataError` where a slot has no shape or a text cannot be encoded.
    """
    tokens = trained = guidance_cut = trained_before_cut = 0
    for segment, is_trained in _segments(item, vocab):
        if isinstance(segment, ImageSlot):
            if is_trained and not guidance_cut and isinstance(item, Conversation):
                guidance_cut, trained_before_cut = tokens, trained
            length = grid_length(*_of(shapes, segment))
        else:
            length = len(segment)
        tokens += length
        trained += length if is_trained else 0
    after_cut = trained - trained_before_cut - (1 if guidance_cut else 0)
    return Counts(tokens, trained, guidance_cut, after_cut)


def prompt_ids(
    item: Conversation, codes: Mapping[str, npt.NDArray[np.integer]], vocab: Vocabulary
) -> list[int]:
    """Ids up to the separator of the last question, whose answer is still empty."""
    assert not item.turns[-1].answer, "the last answer must be empty; use Conversation.ask"
    return tokenise(item, codes, vocab).ids[:-1].tolist()


def split_parts(text: str, fields: Sequence[str] = ("image",)) -> tuple[Part, ...]:
    """A text with `<|image|>` in it as parts; the n-th symbol stands for the n-th of `fields`.

    Raises `DataError` where there are not as many symbols as fields.
    """
    pieces = text.split(IMAGE_SYMBOL)
    if len(pieces) - 1 != len(fields):
        raise DataError(
            f"{len(pieces) - 1} {IMAGE_SYMBOL} in {text[:80]!r} for {len(fields)} images; write "
            "one for each image"
        )
    slots = [ImageSlot(field) for field in fields]
    parts: list[Part] = [pieces[0]]
    for slot, piece in zip(slots, pieces[1:], strict=True):
        parts += [slot, piece]
    return tuple(part for part in parts if part != "")


def parse_official(turns: object, fields: Sequence[str]) -> Conversation:
    """The published training form, `[{"from": "human"|"gpt", "value": text}, ...]`.

    The n-th `<|image|>` of the whole conversation is the n-th of `fields`. Where no symbol stands
    anywhere, one `<|image|> ` for each image goes in front of the first question.
    Raises `DataError` on another form, `ImageCountError` on any other number of symbols.
    """
    values = _official_values(turns)
    num_symbols = [value.count(IMAGE_SYMBOL) for value in values]
    if fields and not any(num_symbols):
        values[0] = f"{IMAGE_SYMBOL} " * len(fields) + values[0]
        num_symbols[0] = len(fields)
    if sum(num_symbols) != len(fields):
        raise ImageCountError(
            f"a conversation with {sum(num_symbols)} {IMAGE_SYMBOL} and {len(fields)} images; "
            "write one for each image, or none at all to put them in front of the first question"
        )
    messages, first = [], 0
    for value, num in zip(values, num_symbols, strict=True):
        messages.append(split_parts(value, fields[first : first + num]))
        first += num
    return Conversation(
        tuple(Turn(q, a) for q, a in zip(messages[::2], messages[1::2], strict=True))
    )


def _segments(
    item: Conversation | Document, vocab: Vocabulary
) -> Iterator[tuple[ImageSlot | list[int], bool]]:
    """Image slots and ids of a sample in order, each with whether it is trained."""
    yield [vocab.bos], False
    if isinstance(item, Document):
        for part in item.parts:
            yield _encoded(part, vocab), True
        yield [vocab.eos], True
        return
    for turn in item.turns:
        for parts, is_trained in ((turn.question, False), (turn.answer, True)):
            for part in parts:
                yield _encoded(part, vocab), is_trained
            yield [vocab.end_of_turn], is_trained


def _encoded(part: Part, vocab: Vocabulary) -> ImageSlot | list[int]:
    return part if isinstance(part, ImageSlot) else vocab.encode_text(part)


def _of(values: Mapping[str, _Value], slot: ImageSlot) -> _Value:
    if slot.field not in values:
        raise DataError(
            f"no picture field {slot.field!r} in the sample, which has {sorted(values)}"
        )
    return values[slot.field]


def _official_values(turns: object) -> list[str]:
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise DataError("a conversation must be a list of human and gpt messages in turn")
    values = []
    for index, message in enumerate(turns):
        want = ("human", "gpt")[index % 2]
        if not isinstance(message, dict) or message.get("from") != want:
            got = message.get("from") if isinstance(message, dict) else type(message).__name__
            raise DataError(f"message {index} of a conversation is from {got!r}, not {want!r}")
        if not isinstance(message.get("value"), str):
            raise DataError(f"message {index} of a conversation has no text in 'value'")
        values.append(message["value"])
    return values
