"""UniRep: round trips, a strict parser that names the position, and the grammar's equality."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.errors import DataError
from mgpt.images.buckets import bucket_sizes
from mgpt.tokens import unirep
from mgpt.tokens.unirep import (
    Allowed,
    ImageGrammar,
    allowed_mask,
    decode_grid,
    encode_grid,
    find_images,
    grid_length,
)
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary

SIDES = st.integers(1, 4).map(lambda grids: 2 * grids)
SHAPES = st.tuples(SIDES, SIDES)


def grid(shape: tuple[int, int], vocab: Vocabulary, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.integers(0, vocab.num_codes, shape).astype(np.uint16)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(0, 9))
def test_round_trip(vocab: Vocabulary, shape: tuple[int, int], seed: int) -> None:
    codes_HW = grid(shape, vocab, seed)
    ids = encode_grid(codes_HW, vocab)
    assert ids.dtype == np.int32 and len(ids) == grid_length(*shape)
    decoded_HW = decode_grid(ids, vocab)
    assert decoded_HW.dtype == np.uint16
    np.testing.assert_array_equal(decoded_HW, codes_HW)


@pytest.mark.parametrize(
    ("layout", "target_px", "latent_px", "num_sizes"),
    [
        *(("chameleon", px, 16, count) for px, count in ((512, 49), (768, 73), (1024, 97))),
        *(("ladder", px, 8, None) for px in (32, 48, 64)),
    ],
)
def test_every_size_of_every_bucket(
    request: pytest.FixtureRequest,
    layout: str,
    target_px: int,
    latent_px: int,
    num_sizes: int | None,
) -> None:
    vocab = request.getfixturevalue(layout)
    sizes = bucket_sizes(target_px, 2 * latent_px)
    assert num_sizes in (None, len(sizes))
    for width_px, height_px in sizes:
        height, width = height_px // latent_px, width_px // latent_px
        ids = encode_grid(grid((height, width), vocab), vocab)
        assert len(ids) == grid_length(height, width) == (height * (width + 1)) + 4
        np.testing.assert_array_equal(decode_grid(ids, vocab), grid((height, width), vocab))
        # Height first, then width, each counted in grids of two latents.
        assert [vocab.grids(token) for token in ids[1:3]] == [height // 2, width // 2]
        swapped = ids.copy()
        swapped[[1, 2]] = ids[[2, 1]]
        if height != width:
            with pytest.raises(DataError, match=rf"^position {3 + min(height, width)}: id"):
                decode_grid(swapped, vocab)
        wider = np.insert(ids, 3, vocab.image_start)
        with pytest.raises(DataError, match=rf"^position {3 + width}: .* where end of line"):
            decode_grid(wider, vocab)


@pytest.fixture(scope="module")
def ladder(scratch: Vocabulary) -> Vocabulary:
    """The small ladder's: the longest side is 128 px, 8 grids of 16."""
    return scratch_vocabulary(scratch.text, num_codes=32, max_grids=8)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "u8", "i1", "i4", "i8"])
def test_codes_of_any_integer_type(scratch: Vocabulary, dtype: str) -> None:
    codes_HW = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(
        encode_grid(codes_HW.astype(dtype), scratch), encode_grid(codes_HW, scratch)
    )


def test_each_thread_fills_frames_of_its_own(scratch: Vocabulary) -> None:
    mine = unirep._FRAMES.of(4, 4, scratch)[0]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: unirep._FRAMES.of(4, 4, scratch)).result()[0]
    again = unirep._FRAMES.of(4, 4, scratch)[0]
    assert np.shares_memory(mine, again) and not np.shares_memory(mine, other)


def test_the_published_form(chameleon: Vocabulary) -> None:
    codes_HW = np.array([[0, 1, 2, 3], [8191, 5, 6, 7]], dtype=np.uint16)
    rows = [4, 5, 6, 7, 8803, 8195, 9, 10, 11, 8803]
    assert encode_grid(codes_HW, chameleon).tolist() == [8197, 8805, 8806, *rows, 8196]


@pytest.mark.parametrize(("side", "length"), [(384, 604), (512, 1060), (768, 2356), (1024, 4164)])
def test_published_lengths(side: int, length: int) -> None:
    assert grid_length(side // 16, side // 16) == length


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4), "side of 3 latents"),
        ((4, 0), "side of 0 latents"),
        ((4, 10), "side of 5 grids"),
        ((4,), "grid of integers"),
    ],
)
def test_encode_refuses_shapes(scratch: Vocabulary, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_grid(np.zeros(shape, dtype=np.uint16), scratch)


def test_encode_refuses_codes(scratch: Vocabulary) -> None:
    codes_HW = grid((4, 6), scratch)
    codes_HW[2, 3] = 32
    with pytest.raises(DataError, match=r"code 32 at row 2, column 3.*codes 0 to 31"):
        encode_grid(codes_HW, scratch)
    with pytest.raises(DataError, match="grid of integers"):
        encode_grid(codes_HW.astype(np.float32), scratch)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.data())
def test_every_wrong_token_is_refused_at_its_position(
    scratch: Vocabulary, shape: tuple[int, int], data: st.DataObject
) -> None:
    ids = encode_grid(grid(shape, scratch), scratch)
    position = data.draw(st.integers(0, len(ids) - 1))
    token = data.draw(st.integers(0, scratch.size - 1))
    kinds = (scratch.is_code, scratch.is_size)
    if token == ids[position] or any(kind(token) and kind(ids[position]) for kind in kinds):
        return
    ids[position] = token
    for parse in (decode_grid, find_images):
        if parse is find_images and position == 0:
            continue  # without its beginning it is no image; the next test has that case
        with pytest.raises(DataError, match=rf"^position {position}: id {token}\b"):
            parse(ids, scratch)


def test_a_wrong_size_is_refused(scratch: Vocabulary) -> None:
    ids = encode_grid(grid((4, 6), scratch), scratch)
    taller, wider = ids.copy(), ids.copy()
    taller[1] += 1
    wider[2] += 1
    with pytest.raises(DataError, match=rf"^position {len(ids) - 1}: id {scratch.end_image}"):
        decode_grid(taller, scratch)
    with pytest.raises(DataError, match=rf"^position {3 + 6}: id {scratch.end_line}"):
        decode_grid(wider, scratch)


def test_a_cut_image_is_refused_where_it_ends(scratch: Vocabulary) -> None:
    ids = encode_grid(grid((2, 4), scratch), scratch)
    for stop in range(len(ids)):
        with pytest.raises(DataError, match=rf"^position {stop}: the sequence ends"):
            decode_grid(ids[:stop], scratch)
        if stop:
            with pytest.raises(DataError, match=rf"^position {stop}: the sequence ends"):
                find_images(ids[:stop], scratch)
    with pytest.raises(DataError, match=rf"^position {len(ids)}: id 7 after the end"):
        decode_grid([*ids, 7], scratch)


def test_find_images(vocab: Vocabulary) -> None:
    first, second = (encode_grid(grid(shape, vocab), vocab) for shape in ((2, 4), (4, 2)))
    text = vocab.encode_text("two cubes")
    ids = [vocab.bos, *text, *first, *second, vocab.end_of_turn, *text]
    begin = 1 + len(text)
    middle = begin + len(first)
    assert find_images(ids, vocab) == [(begin, middle), (middle, middle + len(second))]
    assert find_images([], vocab) == []


def test_find_images_refuses_strays(scratch: Vocabulary) -> None:
    image = encode_grid(grid((2, 2), scratch), scratch).tolist()
    strays = [scratch.end_line, scratch.end_image, scratch.image_start, scratch.size_start]
    for stray in strays:
        for ids, position in (([stray, *image], 0), ([*image, 0, stray], len(image) + 1)):
            with pytest.raises(DataError, match=rf"^position {position}: id {stray} belongs"):
                find_images(ids, scratch)


def accepted(grammar: ImageGrammar, vocab: Vocabulary) -> np.ndarray:
    """[size]: the tokens that `advance` takes."""
    mask = np.zeros(vocab.size, dtype=bool)
    for token in range(vocab.size):
        branch = copy.copy(grammar)
        try:
            branch.advance(token)
        except DataError:
            continue
        mask[token] = True
    return mask


def test_the_grammar_is_what_encode_grid_writes(scratch: Vocabulary) -> None:
    for shape in ((2, 2), (4, 6), (8, 2)):
        grammar = ImageGrammar(scratch)
        for token in encode_grid(grid(shape, scratch), scratch).tolist():
            mask = allowed_mask(grammar.allowed(), scratch)
            assert mask[token]
            if grammar.inside:
                np.testing.assert_array_equal(accepted(grammar, scratch), mask)
            grammar.advance(token)
        assert grammar.allowed() == Allowed("text") and not grammar.inside


def test_outside_an_image_the_grammar_refuses_its_tokens_only(scratch: Vocabulary) -> None:
    mask = accepted(ImageGrammar(scratch), scratch)
    tokens = np.arange(scratch.size)
    inner = scratch.is_code(tokens) | scratch.is_size(tokens)
    inner[[scratch.end_line, scratch.end_image]] = True
    np.testing.assert_array_equal(mask, ~inner)
    drawn = allowed_mask(Allowed("text"), scratch)
    np.testing.assert_array_equal(np.flatnonzero(drawn & ~scratch.text_mask), [37, 39])
    assert (drawn & ~mask).sum() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_the_grammar_allows_is_an_image(scratch: Vocabulary, seed: int) -> None:
    draw, grammar = np.random.default_rng(seed), ImageGrammar(scratch, max_grids=3)
    ids = [scratch.begin_image]
    grammar.advance(ids[0])
    while grammar.inside:
        choices = np.flatnonzero(allowed_mask(grammar.allowed(), scratch))
        ids.append(int(draw.choice(choices)))
        grammar.advance(ids[-1])
    codes_HW = decode_grid(ids, scratch)
    assert max(codes_HW.shape) <= 6


def test_the_grammar_names_the_position(scratch: Vocabulary) -> None:
    grammar = ImageGrammar(scratch, max_grids=2)
    for token in (scratch.bos, scratch.begin_image, scratch.size_token(1)):
        grammar.advance(token)
    with pytest.raises(DataError, match=rf"^position 3: id {scratch.size_token(3)}, where width"):
        grammar.advance(scratch.size_token(3))
