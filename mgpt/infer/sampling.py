"""From logits to tokens: guidance, top-k, temperature, and a draw by noise that the caller gives.

The order is that of the official sampler: guidance, grammar, top-k, temperature, all in fp32. The
grammar has been applied when logits come here: impossible tokens are cut off or minus infinity.
Draws are Gumbel-max with keyed noise, so they are the same whatever else is in the batch.

    >>> logits_NV = guided(conditional_NV, unconditional_NV, scale=4.0)
    >>> noise_NV = gumbel_noise(draw_keys(0, ["cat/3"], "cpu"), torch.tensor([17]), 8, 8200)
    >>> draw(logits_NV, top_k=2000, temperature=1.0, noise_NV=noise_NV)
    tensor([813])

Shape suffixes: N sequences, V candidates.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mgpt.errors import ConfigError

__all__ = [
    "NO_GUIDANCE",
    "Guidance",
    "Modality",
    "SamplingConfig",
    "draw",
    "guided",
]

Modality = Literal["free", "text", "image"]
GuidanceForm = Literal["code", "paper"]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of image codes: c the logits after the prompt, u without it."""

    scale: float = 4.0
    """Strength s, in the form that follows."""
    form: GuidanceForm = "code"
    """code: u + s (c - u), off at 1; paper: c + s (c - u), off at 0; s_code = s_paper + 1."""

    def __post_init__(self) -> None:
        if self.form not in get_args(GuidanceForm):
            raise ConfigError(
                f"guidance.form={self.form!r} must be one of {get_args(GuidanceForm)}"
            )
        if not math.isfinite(self.scale):
            raise ConfigError(f"guidance.scale={self.scale} must be a finite number")

    @property
    def code_scale(self) -> float:
        """The scale s of u + s (c - u), whichever form was given; 1 is no guidance."""
        return self.scale if self.form == "code" else self.scale + 1.0


NO_GUIDANCE = Guidance(scale=1.0)


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are sampled; the defaults are the paper's (arXiv 2408.02657)."""

    temperature: float = 1.0
    """Logits are divided by it; for the most likely token take a top-k of 1."""
    image_top_k: int = 2000
    """Candidates for the tokens of an image, its two size tokens included."""
    text_top_k: int = 5
    """Candidates for text, begin-of-image and end-of-turn."""
    guidance: Guidance = Guidance()
    max_new_tokens: int = 4608
    """Longest answer in tokens; an image that could not end within it is not begun."""
    seed: int = 0
    """Decides the draws, together with each answer's key."""
    modality: Modality = "free"
    """free: text and images as the model likes; text: no image; image: images only."""
    num_images: int = 1
    """Images of an answer when `modality` is "image"."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in ("image_top_k", "text_top_k", "max_new_tokens", "num_images")
            if getattr(self, name) < 1
        ]
        if not self.temperature > 0:
            problems.append(
                f"temperature={self.temperature} must be above 0; for the most likely token take"
                " text_top_k=1 and image_top_k=1"
            )
        if self.modality not in get_args(Modality):
            problems.append(f"modality={self.modality!r} must be one of {get_args(Modality)}")
        if problems:
            raise ConfigError("sampling: " + "; ".join(problems))


def guided(conditional_NV: Tensor, unconditional_NV: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, u + scale (c - u): arXiv 2207.12598 in the released code's form."""
    return unconditional_NV + scale * (conditional_NV - unconditional_NV)


def draw(logits_NV: Tensor, top_k: int, temperature: float, noise_NV: Tensor) -> Tensor:
    """One candidate [N] a row, drawn from softmax(logits / temperature) by Gumbel-max.

    Candidates equal to the k-th largest logit all stay. Each row needs one finite logit.

    Args:
        noise_NV: standard Gumbel noise (`mgpt.infer.noise`).
    """
    if top_k < logits_NV.shape[1]:
        kth_N1 = logits_NV.topk(top_k, dim=1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    return (logits_NV + noise_NV).argmax(-1)
