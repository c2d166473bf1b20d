"""Sample pictures during training: a few fixed prompts, drawn with the current weights.

Takes the full weights at a step and returns captioned pictures for the tracker. Equal steps give
equal pictures.

    samples = SamplePictures(SamplesConfig(prompts=("a red cube",), vq="scenes_f8"), shape, vocab)
    tracker.images(step, "samples", samples.draw(weights))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mgpt.infer.engine import Engine
from mgpt.infer.pipeline import Pipeline
from mgpt.infer.sampling import SamplingConfig
from mgpt.models.folder import model_with
from mgpt.models.tensor_files import lazy
from mgpt.tasks.registry import SampleView, task
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokens.chat import Conversation
from mgpt.tokens.vocab import Vocabulary


@dataclass(frozen=True)
class SamplesConfig:
    """Which pictures are drawn every `pictures_every` steps."""

    prompts: tuple[str, ...] = ("a large red matte sphere", "a small blue shiny cube")
    """Captions of the pictures."""
    size_px: int = 64
    """Side of the square pictures."""
    vq: str | None = None
    """The VQGAN that decodes them: a folder, or the name of a shipped one."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(modality="image"))


class SamplePictures:
    """Draws the prompts with any weights of one decoder."""

    def __init__(self, cfg: SamplesConfig, shape: Any, vocabulary: Vocabulary):
        assert cfg.vq is not None
        self._cfg, self._shape, self._vocabulary = cfg, shape, vocabulary
        self._tokenizer = load_tokenizer(cfg.vq).eval()

    @property
    def vq_fingerprint(self) -> str:
        return self._tokenizer.fingerprint()

    def draw(self, weights: dict[str, Tensor]) -> list[tuple[str, np.ndarray]]:
        """(prompt, uint8 [H, W, 3]) for every prompt."""
        tensors = [lazy(name, weight) for name, weight in weights.items()]
        model = model_with(self._shape, tensors, "samples")
        pipeline = Pipeline(Engine(model, self._vocabulary), self._tokenizer, self._vocabulary)
        cfg, grids = self._cfg, pipeline.grids(self._cfg.size_px, self._cfg.size_px)
        answers = pipeline.answer(
            [self._ask(prompt) for prompt in cfg.prompts],
            [{} for _ in cfg.prompts],
            cfg.sampling,
            list(cfg.prompts),
            [grids for _ in cfg.prompts],
        )
        return [
            (prompt, answer.images[0])
            for prompt, answer in zip(cfg.prompts, answers)
            if answer.images
        ]

    def _ask(self, prompt: str) -> Conversation:
        latent_px = self._tokenizer.downsample
        side = self._cfg.size_px // latent_px
        view = SampleView({"caption": prompt}, {"image": (side, side)}, latent_px)
        item = task("text_to_image").build(view, 0)
        assert isinstance(item, Conversation)
        return item.ask()
