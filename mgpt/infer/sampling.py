"""From logits to tokens: guidance, top-k, temperature, and draws that depend on a key alone.

The order is that of the official sampler: guidance, grammar, top-k, temperature, all in fp32. The
grammar has been applied when logits come here: impossible tokens are cut off or minus infinity.
A draw is keyed by (seed, key, position), so it is the same whatever else is in the batch.

    >>> logits_NV = guided(conditional_NV, unconditional_NV, scale=4.0)
    >>> uniform_N = [keyed_uniform(seed=0, key="cat/3", position=17)]
    >>> draw(logits_NV, top_k=2000, temperature=1.0, uniform_N=uniform_N)
    [813]

Shape suffixes: N sequences, V candidates.
"""

import hashlib
import math
from collections.abc import Sequence
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
    "keyed_uniform",
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


def keyed_uniform(seed: int, key: str, position: int) -> float:
    """A number in [0, 1) with 53 random bits, a pure function of its arguments."""
    digest = hashlib.blake2b(f"{seed}/{position}/{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def draw(
    logits_NV: Tensor, top_k: int, temperature: float, uniform_N: Sequence[float]
) -> list[int]:
    """One candidate a row, by inverting the distribution function at `uniform_N`.

    Candidates equal to the k-th largest logit all stay. Each row needs one finite logit.
    """
    if top_k < logits_NV.shape[1]:
        kth_N1 = logits_NV.topk(top_k, dim=1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    # In fp64 the running sum adds no rounding of its own to where one candidate ends.
    cumulative_NV = logits_NV.softmax(-1).double().cumsum(-1)
    total_N = cumulative_NV[:, -1]
    target_N = torch.tensor(uniform_N, dtype=torch.float64, device=logits_NV.device) * total_N
    target_N = torch.minimum(target_N, total_N.nextafter(torch.zeros_like(total_N)))
    return torch.searchsorted(cumulative_NV, target_N[:, None], right=True).flatten().tolist()
