"""The answer's grammar: modality, number and size of images, and images that always end."""

import random

import numpy as np
import pytest

from mgpt.errors import ConfigError, DataError
from mgpt.infer.grammar import AnswerGrammar
from mgpt.infer.sampling import SamplingConfig
from mgpt.tokens.unirep import decode_grid, encode_grid, find_images
from mgpt.tokens.vocab import Vocabulary


def _walk(grammar: AnswerGrammar, vocab: Vocabulary, seed: int = 0) -> list[int]:
    """Random candidates until the answer is finished; begin-of-image whenever it may stand."""
    draw, ids = random.Random(seed), []
    while not grammar.finished:
        choice = grammar.next()
        if choice.kind == "open":
            token = draw.choice([vocab.begin_image, vocab.text_start, vocab.text_start + 1])
        elif choice.kind == "text":
            token = draw.choice([vocab.text_start, vocab.end_of_turn])
        else:
            token = draw.randrange(choice.start, choice.stop)
        grammar.advance(token)
        ids.append(token)
    return ids


def test_an_image_answer_holds_as_many_images_as_asked_and_no_text(vocab: Vocabulary):
    cfg = SamplingConfig(modality="image", num_images=3)
    ids = _walk(AnswerGrammar(vocab, cfg, [vocab.bos], 1000), vocab)
    assert ids[-1] == vocab.end_of_turn
    images = find_images(ids[:-1], vocab)
    assert len(images) == 3 and images[0][0] == 0 and images[-1][1] == len(ids) - 1


def test_sizes_asked_for_are_forced(vocab: Vocabulary):
    cfg = SamplingConfig(modality="image")
    ids = _walk(AnswerGrammar(vocab, cfg, [vocab.bos], 1000, grids_hw=(2, 3)), vocab)
    assert decode_grid(ids[:-1], vocab).shape == (4, 6)


def test_a_text_answer_may_not_begin_an_image(vocab: Vocabulary):
    grammar = AnswerGrammar(vocab, SamplingConfig(modality="text"), [vocab.bos], 50)
    assert grammar.next().kind == "text"
    ids = _walk(grammar, vocab)
    assert vocab.begin_image not in ids and ids[-1] == vocab.end_of_turn


@pytest.mark.parametrize("max_tokens", [9, 10, 11, 25, 40, 77, 100])
def test_every_image_that_begins_also_ends(vocab: Vocabulary, max_tokens: int):
    cfg = SamplingConfig(modality="free")
    sizes = set()
    for seed in range(60):
        ids = _walk(AnswerGrammar(vocab, cfg, [vocab.bos], max_tokens), vocab, seed)
        assert len(ids) <= max_tokens
        content = ids[:-1] if ids[-1] == vocab.end_of_turn else ids
        for start, stop in find_images(content, vocab):  # raises on a part of an image
            sizes.add(decode_grid(content[start:stop], vocab).shape)
    # The least image, 2 x 2 latents, has 10 tokens.
    assert bool(sizes) == (max_tokens >= 10)
    if max_tokens in (10, 11):
        assert sizes == {(2, 2)}


def test_the_largest_size_that_fits_is_allowed(vocab: Vocabulary):
    # 8 x 8 latents have 76 tokens; with one token less the width must stop at 6.
    for left, widest in ((76, 4), (75, 3)):
        grammar = AnswerGrammar(vocab, SamplingConfig(modality="image"), [vocab.bos], left)
        grammar.advance(vocab.begin_image)
        grammar.advance(vocab.size_token(4))
        assert grammar.next().stop - grammar.next().start == widest


def test_an_image_that_cannot_fit_is_refused_with_both_numbers(vocab: Vocabulary):
    cfg = SamplingConfig(modality="image")
    with pytest.raises(ConfigError, match=r"76 tokens, and 75 are left"):
        AnswerGrammar(vocab, cfg, [vocab.bos], 75, grids_hw=(4, 4))


def test_a_prompt_may_end_inside_an_image(vocab: Vocabulary):
    image = encode_grid(np.arange(16).reshape(4, 4), vocab).tolist()
    prompt = [vocab.bos, *image, vocab.end_of_turn, *image[:10]]
    grammar = AnswerGrammar(vocab, SamplingConfig(modality="image"), prompt, 100)
    assert grammar.inside and grammar.tokens_in_image == 10
    ids = _walk(grammar, vocab)
    assert decode_grid(image[:10] + ids[:-1], vocab).shape == (4, 4)


def test_a_broken_image_in_the_prompt_is_named_by_position(vocab: Vocabulary):
    image = encode_grid(np.zeros((4, 4), dtype=int), vocab).tolist()
    del image[7]
    with pytest.raises(DataError, match="position 8"):
        AnswerGrammar(vocab, SamplingConfig(), [vocab.bos, *image], 100)
