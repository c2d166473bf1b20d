"""Conversations and pretraining documents as ids, with the tokens that are trained.

    `<s>` question · separator · answer · separator · question ...      Conversation
    `<s>` content `</s>`                                                Document

The separator is the end-of-turn token. Of a conversation the answers are trained with their
separator, of a document every token after the first. Each piece of text is encoded by itself, and
that defines the ids; images are UniRep. This module knows neither prompts nor tasks.

    item = Conversation((Turn(("Describe this. ", ImageSlot("image")), ("a red cube",)),))
    tokens = tokenise(item, {"image": codes_HW}, vocab)     # ids, trained, guidance_cut
    counts = count(item, {"image": codes_HW.shape}, vocab)  # the same lengths without codes
    outline(item, vocab)                                    # its text as ids, pictures left out
    prompt_ids(item.ask(), {"image": codes_HW}, vocab)      # up to the question's separator

Source: Lumina-mGPT, arXiv 2408.02657, and its published code. Guidance drop is ours in what it
leaves open: all before the first trained image goes, `<s>` too, as in sampling's other branch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mgpt.errors import DataError
from mgpt.tokens.unirep import grid_length, write_grid
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


class Counts(NamedTuple):
    """What `tokenise` would give, in numbers of tokens."""

    tokens: int
    trained: int
    guidance_cut: int
    trained_after_cut: int
    """Trained tokens after `drop_context`."""


Segment = tuple[int, str | None, bool]
"""Neighbours in a sample: how many ids of text, or the field of a picture; whether trained."""


@dataclass(eq=False, slots=True)  # frozen would take three times as long to make
class Outline:
    """A sample as ids with its pictures left out: all that its text gives, whatever its codes.

    `segments` say in which order text and pictures come; `text_ids` [T] are the ids of the text
    segments and the control tokens among them, one after another.
    """

    text_ids: npt.NDArray[np.integer]
    segments: tuple[Segment, ...]
    pictures: tuple[str, ...]
    """The fields among the segments, in order."""
    guided: bool
    """Whether its first trained picture can be asked for without context: in a conversation."""

    def count(self, shapes: Mapping[str, tuple[int, int]]) -> Counts:
        """Its lengths with pictures of these shapes (h, w), in latents.

        Raises `DataError` where a picture has no shape.
        """
        tokens = trained = guidance_cut = trained_before_cut = 0
        for num_text, field, is_trained in self.segments:
            if field is not None and is_trained and self.guided and not guidance_cut:
                guidance_cut, trained_before_cut = tokens, trained
            length = num_text if field is None else grid_length(*_of(shapes, field))
            tokens += length
            trained += length if is_trained else 0
        after_cut = trained - trained_before_cut - (1 if guidance_cut else 0)
        return Counts(tokens, trained, guidance_cut, after_cut)

    def drop_context(self) -> "Outline":
        """From the first trained picture on, for guidance; itself without one."""
        text_start = 0
        for number, (num_text, field, trained) in enumerate(self.segments):
            if field is not None and trained and self.guided:
                kept = self.segments[number:]
                return Outline(self.text_ids[text_start:], kept, pictures_of(kept), guided=False)
            text_start += num_text
        return self

    def write(
        self,
        codes: Mapping[str, npt.NDArray[np.integer]],
        vocab: Vocabulary,
        ids: npt.NDArray[np.signedinteger],
        labels: npt.NDArray[np.signedinteger],
    ) -> int:
        """Write its ids into `ids` [tokens], and into `labels` [tokens] at each position that has a
        trained token after it, that token; the other labels stay. How many labels were written.

        The first token of a sequence has nothing before it and is nowhere trained. `codes` holds
        [H, W] for each picture. Raises `DataError` where one is missing or cannot be encoded, or
        where `ids` has another length than they come to.
        """
        text_ids, num_tokens = self.text_ids, len(ids)
        start = stop = text_start = num_labels = 0
        first = 0  # of the tokens trained up to here; 0 after one that is not
        for num_text, field, trained in self.segments:
            if trained:
                first = first or start or 1
            elif first:
                labels[first - 1 : start - 1] = ids[first:start]
                num_labels += start - first
                first = 0
            if field is not None:
                stop = write_grid(_of(codes, field), vocab, ids, start)
                if stop > num_tokens:
                    break
            else:
                stop = start + num_text
                if stop > num_tokens:
                    break
                if num_text == 1:  # mostly the end of a turn: in half the time of a slice
                    ids[start] = text_ids.item(text_start)
                else:
                    ids[start:stop] = text_ids[text_start : text_start + num_text]
                text_start += num_text
            start = stop
        if start != stop or start != num_tokens:
            raise DataError(f"its {num_tokens} tokens were counted of other text or pictures")
        if first:
            labels[first - 1 : start - 1] = ids[first:start]
            num_labels += start - first
        return num_labels


def outline(item: Conversation | Document, vocab: Vocabulary) -> Outline:
    """The ids of a sample's text, with its pictures left out.

    Raises `DataError` where a text cannot be encoded.
    """
    text_ids: list[int] = []
    segments: list[Segment] = []
    for part, trained in _parts(item, vocab):
        if isinstance(part, ImageSlot):
            segments.append((0, part.field, trained))
            continue
        text_ids += part
        before = segments[-1] if segments else (0, "", trained)
        if before[1:] == (None, trained):
            segments[-1] = before[0] + len(part), None, trained
        else:
            segments.append((len(part), None, trained))
    guided = isinstance(item, Conversation)
    return Outline(np.array(text_ids, np.int32), tuple(segments), pictures_of(segments), guided)


def pictures_of(segments: Sequence[Segment]) -> tuple[str, ...]:
    """The picture fields among segments, in order."""
    return tuple(field for _, field, _ in segments if field is not None)


def tokenise(
    item: Conversation | Document,
    codes: Mapping[str, npt.NDArray[np.integer]],
    vocab: Vocabulary,
) -> Tokens:
    """Ids [T] and trained mask [T] of one sample; `codes` holds [H, W] for each image slot.

    Raises `DataError` where a slot has no codes or a part cannot be encoded.
    """
    drawn = outline(item, vocab)
    counts = drawn.count({field: codes_HW.shape for field, codes_HW in codes.items()})
    ids, labels = np.empty(counts.tokens, np.int32), np.full(counts.tokens, -1)
    drawn.write(codes, vocab, ids, labels)
    return Tokens(ids, np.append(False, labels[:-1] >= 0), counts.guidance_cut)


def count(
    item: Conversation | Document, shapes: Mapping[str, tuple[int, int]], vocab: Vocabulary
) -> Counts:
    """Lengths of one sample from the shapes (h, w) of its images alone, in latents.

    Raises `DataError` where a slot has no shape or a text cannot be encoded.
    """
    return outline(item, vocab).count(shapes)


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


def _parts(
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


def _of(values: Mapping[str, _Value], field: str) -> _Value:
    try:
        return values[field]
    except KeyError:
        raise DataError(
            f"no picture field {field!r} in the sample, which has {sorted(values)}"
        ) from None


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
