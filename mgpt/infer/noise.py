"""Gumbel noise that is a pure function of (seed, key, position, token): the draws of an answer.

argmax(logits + noise) draws from softmax(logits) (Gumbel-max). Since the noise of a token depends
on nothing but its own coordinates, an answer is the same alone and in any batch, on any device, and
however many positions a forward pass covers; a small change of the logits rarely changes the draw.

    >>> keys_N2 = draw_keys(seed=0, keys=["cat/3"], device="cpu")
    >>> noise_NV = gumbel_noise(keys_N2, torch.tensor([17]), start=8, stop=8200)

The generator is counter-based: two 32-bit words of the key and the position, and the token's id,
through rounds of MurmurHash3's finalizer (`fmix32`, Appleby 2011), in int64 arithmetic whose low 32
bits every device computes alike. Logarithms are taken in float64 and rounded to float32, which
hides the last-bit differences between the devices' logarithms.

Shape suffixes: N sequences, V candidates.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw_keys", "gumbel_noise"]

_LOW_32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1  # odd, 2^32 divided by the golden ratio: spreads consecutive numbers


def draw_keys(seed: int, keys: Sequence[str], device: torch.device | str) -> Tensor:
    """Two 32-bit words [N, 2] for each key, as int64."""
    digests = [hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest() for key in keys]
    words = [[int.from_bytes(d[:4], "little"), int.from_bytes(d[4:], "little")] for d in digests]
    return torch.tensor(words, dtype=torch.int64, device=device).view(-1, 2)


def gumbel_noise(keys_N2: Tensor, positions_N: Tensor, start: int, stop: int) -> Tensor:
    """Standard Gumbel noise [N, V], float32, of the tokens start..stop-1.

    Args:
        keys_N2: from `draw_keys`.
        positions_N: int64 position in its sequence of the token that is drawn.
    """
    first_N, second_N = keys_N2.unbind(-1)
    place_N = _mix(positions_N * _GOLDEN)
    first_N1 = _mix(first_N ^ place_N)[:, None]
    second_N1 = _mix(second_N + place_N)[:, None]
    tokens_V = _mix(torch.arange(start, stop, device=keys_N2.device) * _GOLDEN)
    bits_NV = _mix(_mix(tokens_V ^ first_N1) + second_N1)
    # The middle of each of 2^32 intervals: neither 0 nor 1 can come out.
    uniform_NV = (bits_NV.double() + 0.5) * 2.0**-32
    return uniform_NV.log_().neg_().log_().neg_().float()


def _mix(word: Tensor) -> Tensor:
    """MurmurHash3's finalizer of the low 32 bits."""
    word = word & _LOW_32
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _LOW_32
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _LOW_32
    return word ^ (word >> 16)
