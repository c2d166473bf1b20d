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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mgpt.errors import ConfigError

__all__ = ["Modality", "SamplingConfig", "draw", "guided", "keyed_uniform"]

Modality = Literal["free", "text", "image"]
GuidanceForm = Literal["code", "paper"]


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are sampled; the defaults are the paper's (arXiv 2408.02657)."""

    temperature: float = 1.0
    """Logits are divided by it; for the most likely token take a top-k of 1."""
    image_top_k: int = 2000
    """Candidates for the tokens of an image, its two size tokens included."""
    text_top_k: int = 5
    """Candidates for text, begin-of-image and end-of-turn."""
    guidance: float = 4.0
    """Strength s of classifier-free guidance on image codes, in the form that follows."""
    guidance_form: GuidanceForm = "code"
    """code: u + s (c - u), off at 1; paper: c + s (c - u), off at 0; s_code = s_paper + 1."""
    max_new_tokens: int = 4608
    """Longest answer in tokens; an image that could not end within it is not begun."""
    seed: int = 0
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
        for name, kinds in (("modality", Modality), ("guidance_form", GuidanceForm)):
            if getattr(self, name) not in get_args(kinds):
                problems.append(f"{name}={getattr(self, name)!r} must be one of {get_args(kinds)}")
        if problems:
            raise ConfigError("sampling: " + "; ".join(problems))

    @property
    def guidance_scale(self) -> float:
        """The scale s of u + s (c - u), whichever form was given."""
        return self.guidance if self.guidance_form == "code" else self.guidance + 1.0


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
