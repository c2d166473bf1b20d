"""What the next token of an answer may be: images whole and of a size that fits, as asked for.

`mgpt.tokens.unirep.ImageGrammar` knows one image; this adds the answer around it: whether text,
images or both are wanted, how many images, of which size, and how many tokens are left. An image
is begun only where it can end, so no answer holds a part of one.

    >>> grammar = AnswerGrammar(vocab, SamplingConfig(modality="image"), prompt, max_tokens=100)
    >>> grammar.next()
    Choice(kind='forced', start=8197, stop=8198)
    >>> grammar.advance(8197)
    >>> grammar.next().kind
    'size'
"""

from typing import Literal, NamedTuple

from mgpt.errors import ConfigError
from mgpt.infer.sampling import SamplingConfig
from mgpt.tokens.unirep import LATENTS_PER_GRID, ImageGrammar, grid_length
from mgpt.tokens.vocab import Vocabulary

__all__ = ["AnswerGrammar", "Choice"]

_BEFORE_HEIGHT, _BEFORE_WIDTH = 1, 2  # tokens of the image that stand by then


class Choice(NamedTuple):
    """Candidates for one token: ids start..stop-1.

    "text" are the pieces of text and end-of-turn among them; "open" is that and begin-of-image.
    "forced" is one id; "size" and "code" are a range in which every id is a candidate.
    """

    kind: Literal["forced", "text", "open", "size", "code"]
    start: int
    stop: int


class AnswerGrammar:
    """The state of one answer; `finished` after end-of-turn or when no token is left."""

    def __init__(
        self,
        vocab: Vocabulary,
        cfg: SamplingConfig,
        prompt: list[int],
        max_tokens: int,
        grids_hw: tuple[int, int] | None = None,
    ):
        """Starts behind `prompt`, which may end inside an image.

        Args:
            max_tokens: tokens the answer may have.
            grids_hw: (height, width) in grids of two latents that every image must have.

        Raises:
            ConfigError: images are asked for and not one fits into `max_tokens`.
            DataError: the prompt holds a broken image; the message names the position.
        """
        self._vocab = vocab
        self._modality = cfg.modality
        self._num_images = cfg.num_images
        self._grids_hw = grids_hw
        self._tokens_left = max_tokens
        self._images = 0
        self._height = 0
        self.finished = max_tokens < 1
        self._image = ImageGrammar(vocab)
        self._in_image = 0
        for token in prompt:
            self._step(token)
        if cfg.modality == "image" and not self.inside and not self._image_fits():
            height, width = (LATENTS_PER_GRID * side for side in grids_hw or (1, 1))
            raise ConfigError(
                f"an image of {height} x {width} latents has {grid_length(height, width)} tokens,"
                f" and {max_tokens} are left for the answer; raise max_new_tokens, shorten the"
                " prompt or ask for a smaller image"
            )

    @property
    def inside(self) -> bool:
        """Whether an image has begun and not ended."""
        return self._image.inside

    @property
    def tokens_in_image(self) -> int:
        """Tokens of the image under way, 0 outside."""
        return self._in_image

    def next(self) -> Choice:
        """The candidates for the next token."""
        if not self.inside:
            return self._outside()
        allowed = self._image.allowed()
        vocab = self._vocab
        if allowed.kind == "forced":
            return _forced(allowed.token)
        if allowed.kind == "code":
            return Choice("code", vocab.image_start, vocab.image_start + vocab.num_codes)
        if self._grids_hw is not None:
            side = self._grids_hw[0 if allowed.kind == "height" else 1]
            return _forced(vocab.size_token(side))
        largest = min(allowed.max_grids, max(1, self._largest_side(allowed.kind)))
        return Choice("size", vocab.size_start, vocab.size_start + largest)

    def advance(self, token: int) -> None:
        """Takes a token of the answer. Raises DataError where it may not stand."""
        self._step(token)
        self._tokens_left -= 1
        if token == self._vocab.end_image:
            self._images += 1
        self.finished = self._tokens_left < 1 or (
            not self.inside and token == self._vocab.end_of_turn
        )

    def _step(self, token: int) -> None:
        if self._in_image == _BEFORE_HEIGHT:
            self._height = LATENTS_PER_GRID * self._vocab.grids(token)
        self._image.advance(token)
        self._in_image = self._in_image + 1 if self.inside else 0

    def _outside(self) -> Choice:
        vocab = self._vocab
        if self._modality == "image":
            more = self._images < self._num_images and self._image_fits()
            return _forced(vocab.begin_image if more else vocab.end_of_turn)
        may_begin = self._modality == "free" and self._image_fits()
        return Choice("open" if may_begin else "text", 0, vocab.size)

    def _image_fits(self) -> bool:
        height, width = self._grids_hw or (1, 1)
        length = grid_length(LATENTS_PER_GRID * height, LATENTS_PER_GRID * width)
        return length <= self._tokens_left

    def _largest_side(self, side: str) -> int:
        """Grids of the longest height (with the least width), or width, that still fits."""
        # What is left pays for height * (width + 1) and, of the image's other four, for those
        # that do not stand yet.
        if side == "height":
            lines = self._tokens_left + _BEFORE_HEIGHT - grid_length(0, 0)
            return lines // (LATENTS_PER_GRID + 1) // LATENTS_PER_GRID
        lines = self._tokens_left + _BEFORE_WIDTH - grid_length(0, 0)
        return (lines // self._height - 1) // LATENTS_PER_GRID


def _forced(token: int) -> Choice:
    return Choice("forced", token, token + 1)
