"""UniRep: a grid of image codes as tokens that carry their own size, and back, strictly.

    begin of image · height token · width token · rows · end of image

A row is its codes and then an end of line, also after the last row; a size token stands for grids
of two latents, height first. An image of h x w latents has h * (w + 1) + 4 tokens.

    ids = encode_grid(codes_HW, vocab)             # int32 [grid_length(*codes_HW.shape)]
    decode_grid(ids, vocab)                        # codes_HW again, or a DataError with a position
    find_images(ids, vocab)                        # [(0, len(ids))]

`ImageGrammar` walks the same grammar token by token and says what may come next. Source:
Lumina-mGPT, arXiv 2408.02657, section 3.1, and its published code.
"""

import functools
import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mgpt.errors import DataError
from mgpt.tokens.codes import code_dtype
from mgpt.tokens.vocab import Vocabulary

LATENTS_PER_GRID = 2
_HEADER = 3  # begin of image, height, width

Kind = Literal["text", "height", "width", "code", "forced"]


def grid_length(height: int, width: int) -> int:
    """Number of tokens of an image of `height` x `width` latents."""
    return height * (width + 1) + 4


def encode_grid(codes_HW: npt.NDArray[np.integer], vocab: Vocabulary) -> npt.NDArray[np.int32]:
    """Tokens of one image: int32 [grid_length(H, W)].

    Raises `DataError` where a side is odd or has no size token, or a code is not in the codebook.
    """
    if codes_HW.ndim != 2:
        raise _no_grid(codes_HW)
    ids = np.empty(grid_length(*codes_HW.shape), dtype=np.int32)
    write_grid(codes_HW, vocab, ids)
    return ids


def write_grid(
    codes_HW: npt.NDArray[np.integer],
    vocab: Vocabulary,
    ids: npt.NDArray[np.signedinteger],
    start: int = 0,
) -> int:
    """`encode_grid` into `ids`, from `start` on; the place behind it. Raises as it does.

    Where that place is beyond the end of `ids`, nothing is written.
    """
    kind = codes_HW.dtype.kind
    if kind not in "iu":
        raise _no_grid(codes_HW)
    height, width = codes_HW.shape
    frame, inside_HW, image_start = _FRAMES.of(height, width, vocab)
    largest = codes_HW.item(codes_HW.argmax())  # in two thirds of the time of max()
    if largest >= vocab.num_codes or (kind == "i" and codes_HW.min() < 0):
        outside = np.flatnonzero((codes_HW < 0) | (codes_HW >= vocab.num_codes))
        row, column = divmod(int(outside[0]), width)
        raise DataError(
            f"image code {codes_HW[row, column]} at row {row}, column {column}: the vocabulary has "
            f"codes 0 to {vocab.num_codes - 1}; use the one that belongs to the shards' VQ model"
        )
    stop = start + len(frame)
    if stop <= len(ids):
        if kind == "i":
            codes_HW = codes_HW.astype(frame.dtype)
        # One pass into narrow ids that lie close, and one that widens them all.
        np.add(codes_HW, image_start, inside_HW)
        ids[start:stop] = frame
    return stop


class _Frames(threading.local):
    """Of each size of image all its tokens, the codes to be filled in: each thread has its own.

    `of(height, width, vocab)` gives the tokens, the codes [height, width] among them, and the id of
    code 0 as an array: a Python integer takes numpy twice as long to add.
    """

    def __init__(self) -> None:
        self.of = functools.lru_cache(maxsize=1024)(_frame)


def _frame(
    height: int, width: int, vocab: Vocabulary
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    sides = _side_token(height, vocab), _side_token(width, vocab)
    narrow = np.min_scalar_type(vocab.size - 1)
    frame = np.full(grid_length(height, width), vocab.end_line, narrow)
    frame[:_HEADER] = vocab.begin_image, *sides
    frame[-1] = vocab.end_image
    inside_HW = frame[_HEADER:-1].reshape(height, width + 1)[:, :width]
    return frame, inside_HW, np.array(vocab.image_start, narrow)


_FRAMES = _Frames()


def _no_grid(codes: npt.NDArray[Any]) -> DataError:
    return DataError(
        f"image codes of shape {codes.shape} and type {codes.dtype}: a grid of integers "
        "[height, width] is needed"
    )


def decode_grid(ids: npt.ArrayLike, vocab: Vocabulary) -> npt.NDArray[np.unsignedinteger]:
    """Codes [H, W] of exactly one image.

    Raises `DataError` naming the first position at which `ids` is not what `encode_grid` writes.
    """
    ids = np.asarray(ids, dtype=np.int64)
    codes_HW, stop = _read_image(ids, 0, vocab)
    if stop != len(ids):
        raise DataError(f"position {stop}: id {ids[stop]} after the end of the image")
    return codes_HW


def find_images(ids: npt.ArrayLike, vocab: Vocabulary) -> list[tuple[int, int]]:
    """(start, stop) of each image in a sequence, in order.

    Raises `DataError` with the position where an image is broken or cut short, or where a token
    that belongs inside an image stands outside.
    """
    ids = np.asarray(ids, dtype=np.int64)
    inner = _is_inner(ids, vocab)
    images, start = [], 0
    for begin in np.flatnonzero(ids == vocab.begin_image).tolist():
        _check_outside(ids, inner, start, begin)
        _, stop = _read_image(ids, begin, vocab)
        images.append((begin, stop))
        start = stop
    _check_outside(ids, inner, start, len(ids))
    return images


@dataclass(frozen=True)
class Allowed:
    """What may come next: any token of `kind`, or for "forced" the one `token`.

    "text" is outside an image; "height" and "width" are the size tokens of 1 to `max_grids` grids.
    """

    kind: Kind
    token: int = -1
    max_grids: int = 0


class ImageGrammar:
    """The grammar of `encode_grid`, one token at a time.

    Outside an image it accepts whatever does not belong inside one, prompts included; inside it
    accepts what an image has there, at sizes up to `max_grids` grids a side, and nothing else.

        grammar = ImageGrammar(vocab)
        for token in encode_grid(codes_HW, vocab).tolist():
            grammar.advance(token)
        grammar.allowed()                          # Allowed(kind="text")
    """

    def __init__(self, vocab: Vocabulary, max_grids: int | None = None):
        assert max_grids is None or max_grids > 0
        self._vocab = vocab
        self._max_grids = min(max_grids or vocab.max_grids, vocab.max_grids)
        self._position = 0
        self._inside = -1  # tokens of the present image so far; -1 outside
        self._height = self._width = 0  # latents

    @property
    def inside(self) -> bool:
        """Whether an image has begun and not ended."""
        return self._inside >= 0

    def allowed(self) -> Allowed:
        """What may come next."""
        if self._inside < 0:
            return Allowed("text")
        if self._inside == 1:
            return Allowed("height", max_grids=self._max_grids)
        if self._inside == 2:
            return Allowed("width", max_grids=self._max_grids)
        row, column = divmod(self._inside - _HEADER, self._width + 1)
        if row == self._height:
            return Allowed("forced", self._vocab.end_image)
        if column == self._width:
            return Allowed("forced", self._vocab.end_line)
        return Allowed("code")

    def advance(self, token: int) -> None:
        """Take one token. Raises `DataError` with the position where it may not stand."""
        vocab, allowed = self._vocab, self.allowed()
        if not self._accepts(allowed, token):
            wanted = f"the id {allowed.token}" if allowed.kind == "forced" else allowed.kind
            raise DataError(f"position {self._position}: id {token}, where {wanted} must stand")
        self._position += 1
        if allowed.kind == "text":
            self._inside = 1 if token == vocab.begin_image else -1
            return
        if allowed.kind == "height":
            self._height = LATENTS_PER_GRID * vocab.grids(token)
        elif allowed.kind == "width":
            self._width = LATENTS_PER_GRID * vocab.grids(token)
        self._inside = -1 if token == vocab.end_image else self._inside + 1

    def _accepts(self, allowed: Allowed, token: int) -> bool:
        vocab = self._vocab
        if allowed.kind == "forced":
            return token == allowed.token
        if allowed.kind == "code":
            return vocab.image_start <= token < vocab.image_start + vocab.num_codes
        if allowed.kind == "text":
            return 0 <= token < vocab.size and not _is_inner(np.asarray(token), vocab)
        return vocab.size_start <= token < vocab.size_start + allowed.max_grids


def allowed_mask(allowed: Allowed, vocab: Vocabulary) -> npt.NDArray[np.bool_]:
    """[vocab.size]: the tokens a sampler may draw where the grammar says `allowed`.

    For "text" these are the pieces of text, begin of image and end of turn.
    """
    if allowed.kind == "text":
        mask = vocab.text_mask.copy()
        mask[[vocab.begin_image, vocab.end_of_turn]] = True
        return mask
    mask = np.zeros(vocab.size, dtype=bool)
    if allowed.kind == "forced":
        mask[allowed.token] = True
    elif allowed.kind == "code":
        mask[vocab.image_start : vocab.image_start + vocab.num_codes] = True
    else:
        mask[vocab.size_start : vocab.size_start + allowed.max_grids] = True
    return mask


def _side_token(latents: int, vocab: Vocabulary) -> int:
    if latents % LATENTS_PER_GRID or not latents:
        raise DataError(
            f"an image side of {latents} latents: sides are multiples of {LATENTS_PER_GRID}; "
            "choose sizes from the buckets"
        )
    return vocab.size_token(latents // LATENTS_PER_GRID)


def _read_image(
    ids: npt.NDArray[np.int64], begin: int, vocab: Vocabulary
) -> tuple[npt.NDArray[np.unsignedinteger], int]:
    """Codes of the image that begins at `begin`, and the position behind it."""
    if begin >= len(ids) or ids[begin] != vocab.begin_image:
        raise _unexpected(ids, begin, f"begin of image ({vocab.begin_image})")
    for position, side in ((begin + 1, "height"), (begin + 2, "width")):
        if position >= len(ids) or not vocab.is_size(ids[position]):
            raise _unexpected(ids, position, f"a {side} token")
    height, width = (
        LATENTS_PER_GRID * vocab.grids(int(ids[position])) for position in (begin + 1, begin + 2)
    )
    stop = begin + grid_length(height, width)
    body = ids[begin + _HEADER : stop - 1]
    is_line_end = np.arange(len(body)) % (width + 1) == width
    right = np.where(is_line_end, body == vocab.end_line, vocab.is_code(body))
    position = begin + _HEADER + (int(np.argmin(right)) if not right.all() else len(body))
    if position < stop - 1:
        at_line_end = (position - begin - _HEADER) % (width + 1) == width
        wanted = f"end of line ({vocab.end_line})" if at_line_end else "an image code"
        raise _unexpected(ids, position, f"{wanted} of an image of {height} x {width} latents")
    if position >= len(ids) or ids[position] != vocab.end_image:
        raise _unexpected(ids, position, f"end of image ({vocab.end_image})")
    codes_HW = body.reshape(height, width + 1)[:, :width] - vocab.image_start
    return codes_HW.astype(code_dtype(vocab.num_codes)), stop


def _unexpected(ids: npt.NDArray[np.int64], position: int, wanted: str) -> DataError:
    found = f"id {ids[position]}" if position < len(ids) else "the sequence ends"
    return DataError(f"position {position}: {found}, where {wanted} must stand")


def _is_inner(ids: npt.NDArray[np.integer], vocab: Vocabulary) -> npt.NDArray[np.bool_]:
    """Tokens that stand inside images only."""
    ends = (ids == vocab.end_line) | (ids == vocab.end_image)
    return vocab.is_code(ids) | vocab.is_size(ids) | ends


def _check_outside(
    ids: npt.NDArray[np.int64], inner: npt.NDArray[np.bool_], start: int, stop: int
) -> None:
    stray = np.flatnonzero(inner[start:stop])
    if stray.size:
        position = start + int(stray[0])
        raise DataError(
            f"position {position}: id {ids[position]} belongs inside an image and stands outside"
        )
