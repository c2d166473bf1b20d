"""Conversations and documents: their ids, what is trained, and the counts without codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.errors import DataError
from mgpt.tokens.chat import (
    Conversation,
    Counts,
    Document,
    ImageSlot,
    Part,
    Turn,
    count,
    parse_official,
    prompt_ids,
    split_parts,
    tokenise,
)
from mgpt.tokens.unirep import encode_grid
from mgpt.tokens.vocab import Vocabulary

CODES = {
    "image": np.arange(8, dtype=np.uint16).reshape(2, 4),
    "other": np.arange(16, dtype=np.uint16).reshape(4, 4),
}
SHAPES = {field: codes.shape for field, codes in CODES.items()}
IMAGE, OTHER = ImageSlot("image"), ImageSlot("other")

PARTS = st.lists(
    st.one_of(st.sampled_from(["a red cube", " ", "\n", "☂"]), st.sampled_from([IMAGE, OTHER])),
    max_size=4,
).map(tuple)
CONVERSATIONS = st.lists(st.builds(Turn, PARTS, PARTS), min_size=1, max_size=3).map(
    lambda turns: Conversation(tuple(turns))
)
ITEMS = st.one_of(CONVERSATIONS, st.builds(Document, PARTS))


def test_a_conversation(vocab: Vocabulary) -> None:
    item = Conversation(
        (Turn(("What is it? ", IMAGE), ("a cube",)), Turn(("Draw it.",), ("Here: ", OTHER)))
    )
    image, other = (encode_grid(CODES[field], vocab).tolist() for field in ("image", "other"))
    what, cube, draw, here = map(
        vocab.encode_text, ("What is it? ", "a cube", "Draw it.", "Here: ")
    )
    end = [vocab.end_of_turn]
    expected = [
        ([vocab.bos, *what, *image, *end], False),
        ([*cube, *end], True),
        ([*draw, *end], False),
        ([*here, *other, *end], True),
    ]
    tokens = tokenise(item, CODES, vocab)
    assert tokens.ids.dtype == np.int32 and tokens.trained.dtype == bool
    assert tokens.ids.tolist() == [token for ids, _ in expected for token in ids]
    assert tokens.trained.tolist() == [flag for ids, flag in expected for _ in ids]
    assert tokens.guidance_cut == len(tokens.ids) - 1 - len(other)


def test_a_document_trains_all_after_its_first_token(vocab: Vocabulary) -> None:
    tokens = tokenise(Document(("a cube", IMAGE)), CODES, vocab)
    image = encode_grid(CODES["image"], vocab).tolist()
    assert tokens.ids.tolist() == [vocab.bos, *vocab.encode_text("a cube"), *image, vocab.eos]
    assert tokens.trained.tolist() == [False] + [True] * (len(tokens.ids) - 1)
    assert tokens.guidance_cut == 0


@settings(max_examples=80, deadline=None)
@given(ITEMS)
def test_count_is_tokenise_without_codes(scratch: Vocabulary, item: Conversation) -> None:
    tokens = tokenise(item, CODES, scratch)
    dropped = tokens.drop_context()
    assert count(item, SHAPES, scratch) == Counts(
        tokens=len(tokens.ids),
        trained=int(tokens.trained.sum()),
        guidance_cut=tokens.guidance_cut,
        trained_after_cut=int(dropped.trained.sum()),
    )


@settings(max_examples=60, deadline=None)
@given(CONVERSATIONS)
def test_guidance_drop_begins_at_the_first_trained_image(
    scratch: Vocabulary, item: Conversation
) -> None:
    tokens = tokenise(item, CODES, scratch)
    begins = np.flatnonzero(tokens.trained & (tokens.ids == scratch.begin_image))
    assert tokens.guidance_cut == (begins[0] if begins.size else 0)
    dropped = tokens.drop_context()
    if begins.size:
        assert dropped.ids[0] == scratch.begin_image and not dropped.trained[0]
        np.testing.assert_array_equal(dropped.trained[1:], tokens.trained[begins[0] + 1 :])
    np.testing.assert_array_equal(dropped.ids, tokens.ids[tokens.guidance_cut :])


@settings(max_examples=40, deadline=None)
@given(CONVERSATIONS, st.integers(0, 2))
def test_a_prompt_is_a_prefix(scratch: Vocabulary, item: Conversation, turn: int) -> None:
    turn %= len(item.turns)
    prompt = prompt_ids(item.ask(turn), CODES, scratch)
    tokens = tokenise(item, CODES, scratch)
    assert prompt == tokens.ids[: len(prompt)].tolist()
    assert prompt[-1] == scratch.end_of_turn and not tokens.trained[len(prompt) - 1]
    assert tokens.trained[len(prompt)]


def test_a_missing_picture_is_named(scratch: Vocabulary) -> None:
    item = Document((ImageSlot("depth"),))
    with pytest.raises(DataError, match=r"no picture field 'depth'.*\['image', 'other'\]"):
        tokenise(item, CODES, scratch)
    with pytest.raises(DataError, match="no picture field 'depth'"):
        count(item, SHAPES, scratch)


def test_split_parts() -> None:
    assert split_parts("Describe. <|image|>") == ("Describe. ", IMAGE)
    assert split_parts("<|image|><|image|> both", ("image", "other")) == (IMAGE, OTHER, " both")
    assert split_parts("none", ()) == ("none",)
    with pytest.raises(DataError, match="for 2 images; write one for each"):
        split_parts("a <|image|>", ("image", "other"))


def official(*values: str) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)
    ]


def test_official_conversations() -> None:
    def turns(values: list[dict[str, str]], *fields: str) -> list[tuple[tuple[Part, ...], ...]]:
        return [(turn.question, turn.answer) for turn in parse_official(values, fields).turns]

    first, second = ImageSlot("image_00"), ImageSlot("image_01")
    assert turns(official("Hi", "Hello")) == [(("Hi",), ("Hello",))]
    values = official("See <|image|> now", "ok", "Change it", "<|image|>")
    assert turns(values, "image_00", "image_01") == [
        (("See ", first, " now"), ("ok",)),
        (("Change it",), (second,)),
    ]
    # Without any symbol: one and its space for each image before the first question.
    assert turns(official("Both?", "yes", "Sure?", "no"), "image_00", "image_01") == [
        ((first, " ", second, " Both?"), ("yes",)),
        (("Sure?",), ("no",)),
    ]


@pytest.mark.parametrize(
    ("values", "fields", "message"),
    [
        (official("<|image|>", "a"), ("x", "y"), "with 1 .* and 2 images"),
        (official("<|image|>", "a"), (), "with 1 .* and 0 images"),
        (official("a", "<|image|><|image|>"), ("x",), "with 2 .* and 1 images"),
        (official("a"), (), "in turn"),
        ([], (), "in turn"),
        ("text", (), "in turn"),
        (official("a", "b")[::-1], (), "message 0 .* from 'gpt', not 'human'"),
        ([{"from": "human", "value": "a"}, "b"], (), "message 1 .* from 'str', not 'gpt'"),
        ([{"from": "human"}, {"from": "gpt", "value": "b"}], (), "message 0 .* no text"),
    ],
)
def test_official_form_is_checked(values: object, fields: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_official(values, fields)
