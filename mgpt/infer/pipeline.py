"""Conversations with text and pictures in, answers with text and pictures out.

The one place where ids, codes and pixels meet for inference: prompts become ids
(`mgpt.tokens.chat`), the engine answers in ids, and its images go through the VQGAN's decoder. It
knows no task and no file.

    >>> pipeline = Pipeline(Engine(model, vocab), load_tokenizer("scenes_f8"), vocab)
    >>> ask = Conversation((Turn(("Describe this image in detail.", ImageSlot("image")), ()),))
    >>> codes = {"image": pipeline.encode_image(Image.open("cat.png"), target_px=512)}
    >>> [answer] = pipeline.answer([ask], [codes], SamplingConfig(), keys=["cat"])
    >>> answer.text, answer.images
    ('A cat on a mat.', [])

Shape suffixes: B pictures, H W latents or pixels, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mgpt.errors import ConfigError
from mgpt.images.buckets import choose_bucket
from mgpt.images.pixels import fit
from mgpt.infer.engine import Engine
from mgpt.infer.sampling import SamplingConfig
from mgpt.tokenizers.protocol import PictureTokenizer
from mgpt.tokens.chat import Conversation, prompt_ids
from mgpt.tokens.codes import code_dtype
from mgpt.tokens.unirep import LATENTS_PER_GRID, decode_grid, find_images
from mgpt.tokens.vocab import Vocabulary

__all__ = ["Answer", "Pipeline"]

Codes = npt.NDArray[np.unsignedinteger[Any]]  # 16 bits where the codebook fits, else 32
Pixels = npt.NDArray[np.uint8]

# Latents decoded at once: bounds memory, and keeps a CPU's cache warm on small pictures.
_LATENTS_PER_DECODE = 4096


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: all its text, without the images' places.
        images: uint8 [H, W, 3] pictures, in order.
        codes: [h, w] codes of the same pictures.
        ids: the tokens, end-of-turn included.
        finished: False where the tokens ran out before end-of-turn.
    """

    text: str
    images: list[Pixels]
    codes: list[Codes]
    ids: list[int]
    finished: bool


class Pipeline:
    """An engine with the picture tokenizer that its image codes belong to."""

    def __init__(self, engine: Engine, tokenizer: PictureTokenizer, vocab: Vocabulary):
        """Raises ConfigError where the tokenizer's codebook is not the vocabulary's."""
        if tokenizer.num_codes != vocab.num_codes:
            raise ConfigError(
                f"the {tokenizer.title} has {tokenizer.num_codes} codes and the vocabulary"
                f" {vocab.num_codes}; give the tokenizer of the model's training data as vq="
            )
        self.engine = engine
        self.tokenizer = tokenizer
        self.vocab = vocab

    @property
    def grid_px(self) -> int:
        """Pixels of one grid, the unit of size tokens."""
        return LATENTS_PER_GRID * self.tokenizer.downsample

    def grids(self, width_px: int, height_px: int) -> tuple[int, int]:
        """A picture's size as (height, width) in grids, for `answer`'s `image_grids`.

        Raises ConfigError where a side is not a multiple of `grid_px` or has no size token.
        """
        largest_px = self.vocab.max_grids * self.grid_px
        for side_px in (width_px, height_px):
            if side_px % self.grid_px or not 0 < side_px <= largest_px:
                raise ConfigError(
                    f"a picture of {width_px}x{height_px}: sides must be multiples of"
                    f" {self.grid_px} px, {largest_px} px at most"
                )
        return height_px // self.grid_px, width_px // self.grid_px

    def encode_image(
        self, image: Image.Image, target_px: int, key: str = "", seed: int = 0
    ) -> Codes:
        """Codes [h, w] of a picture, cropped to the bucket of `target_px`² pixels it fits best.

        The crop is a pure function of (seed, key), as in the tokenizer job.
        """
        size_wh = choose_bucket(image.width, image.height, target_px, self.tokenizer.grid_px)
        fitted, _ = fit(image, size_wh, key, seed)
        pixels_B3HW = self.tokenizer.pixels.normalise(np.asarray(fitted)[None])
        with torch.inference_mode():
            codes_BHW = self.tokenizer.encode(pixels_B3HW.to(self.tokenizer.device))
        return codes_BHW[0].cpu().numpy().astype(code_dtype(self.tokenizer.num_codes))

    def answer(
        self,
        conversations: Sequence[Conversation],
        codes: Sequence[Mapping[str, Codes]],
        cfg: SamplingConfig | Sequence[SamplingConfig],
        keys: Sequence[str],
        image_grids: Sequence[tuple[int, int] | None] | None = None,
    ) -> list[Answer]:
        """The answer to each conversation's last question.

        Args:
            conversations: their last answers are empty.
            codes: of each conversation's image slots, by field.
            cfg, keys, image_grids: as in `Engine.generate`.

        Raises:
            DataError, ConfigError: as the engine and `prompt_ids` do.
        """
        prompts = [
            prompt_ids(conversation, fields, self.vocab)
            for conversation, fields in zip(conversations, codes, strict=True)
        ]
        answers = [
            self._split(ids) for ids in self.engine.generate(prompts, cfg, keys, image_grids)
        ]
        self._draw_images(answers)
        return answers

    def _split(self, ids: list[int]) -> Answer:
        """Text and codes of an answer; its pictures are still to be decoded."""
        finished = bool(ids) and ids[-1] == self.vocab.end_of_turn
        content = ids[:-1] if finished else ids
        texts, end = [], 0
        grids: list[Codes] = []
        for start, stop in find_images(content, self.vocab):
            texts.append(self.vocab.decode_text(content[end:start]))
            grids.append(decode_grid(content[start:stop], self.vocab))
            end = stop
        texts.append(self.vocab.decode_text(content[end:]))
        return Answer("".join(texts), [], grids, ids, finished)

    def _draw_images(self, answers: list[Answer]) -> None:
        """Fills every answer's pictures."""
        drawn = iter(self.draw([codes_HW for answer in answers for codes_HW in answer.codes]))
        for answer in answers:
            answer.images.extend(next(drawn) for _ in answer.codes)

    def draw(self, grids: Sequence[Codes]) -> list[Pixels]:
        """The picture of each grid of codes, those of equal size decoded together."""
        by_shape: dict[tuple[int, ...], list[Codes]] = {}
        for codes_HW in grids:
            by_shape.setdefault(codes_HW.shape, []).append(codes_HW)
        drawn = {shape: iter(self._decode(np.stack(same))) for shape, same in by_shape.items()}
        return [next(drawn[codes_HW.shape]) for codes_HW in grids]

    def _decode(self, codes_BHW: Codes) -> list[Pixels]:
        batch = max(1, _LATENTS_PER_DECODE // codes_BHW[0].size)
        pictures: list[Pixels] = []
        for start in range(0, len(codes_BHW), batch):
            part_BHW = torch.from_numpy(codes_BHW[start : start + batch].astype(np.int64))
            with torch.inference_mode():
                pixels_B3HW = self.tokenizer.decode(part_BHW.to(self.tokenizer.device))
            pictures.extend(self.tokenizer.pixels.to_levels(pixels_B3HW))
        return pictures
