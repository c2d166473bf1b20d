"""Which code a latent gets, and which vector a code stands for: the five rules of the families.

    NearestCodebook    the row at the smallest Euclidean distance       Chameleon, MoVQGAN, Emu3
    CosineCodebook     the same between unit vectors                    LlamaGen
    ProductCodebook    the row with the largest inner product           IBQ
    FiniteScalars      every channel rounded to one of a few levels     Cosmos (FSQ)
    Signs              every channel's sign is a bit                    Open-MAGVIT2 (LFQ)

All compute in float32. Codebooks keep their rows in `embedding.weight`, the released name; the last
two have no weights.

    >>> FiniteScalars((8, 8, 8, 5, 5, 5)).num_codes, Signs(18).num_codes
    (64000, 262144)

Shape suffixes: B pictures, D channels, h w latents, P positions, N codebook rows.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CosineCodebook",
    "FiniteScalars",
    "NearestCodebook",
    "ProductCodebook",
    "Signs",
    "nearest_codes",
]

# Positions compared with the codebook at once: 8192 rows then take 256 MB of distances.
_POSITIONS_PER_CHUNK = 8192
_VALUES_PER_CHUNK = 2**26


class _Codebook(nn.Module):
    """Rows [N, D], compared position by position."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        """Codes [B, h, w] (int64) of latents [B, D, h, w]."""
        z_PD = z_BDhw.movedim(1, -1).flatten(0, 2)
        return self.codes(z_PD).view(z_BDhw.shape[0], *z_BDhw.shape[2:])

    @abstractmethod
    def codes(self, z_PD: Tensor) -> Tensor:
        """Codes [P] of latents."""

    def rows(self, codes_Bhw: Tensor) -> Tensor:
        """What the decoder gets, [B, D, h, w]."""
        return self.embedding(codes_Bhw).movedim(-1, 1)


class NearestCodebook(_Codebook):
    """The nearest row, and the row as it is stored."""

    def codes(self, z_PD: Tensor) -> Tensor:
        return nearest_codes(z_PD, self.embedding.weight)


class CosineCodebook(_Codebook):
    """The nearest of unit vectors, of which the decoder gets the unit vector."""

    def codes(self, z_PD: Tensor) -> Tensor:
        return nearest_codes(F.normalize(z_PD.float(), dim=1), self._unit_rows())

    def rows(self, codes_Bhw: Tensor) -> Tensor:
        return F.embedding(codes_Bhw, self._unit_rows()).movedim(-1, 1)

    def _unit_rows(self) -> Tensor:
        return F.normalize(self.embedding.weight.float(), dim=1)


class ProductCodebook(_Codebook):
    """The row with the largest inner product, whatever its length.

    The authors take the largest softmax: in float32 it can make two products equal, and the first
    of them is the code.
    """

    def codes(self, z_PD: Tensor) -> Tensor:
        codebook_ND = self.embedding.weight.float()
        with torch.autocast(z_PD.device.type, enabled=False):
            return torch.cat(
                [
                    (part_PD @ codebook_ND.t()).softmax(dim=1).argmax(dim=1)
                    for part_PD in z_PD.float().split(_positions_per_chunk(len(codebook_ND)))
                ]
            )


class FiniteScalars(nn.Module):
    """Every channel c rounded to one of levels[c] values; channel 0 is the lowest digit of a code.

    An even number of levels has one more value below 0 than above.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        assert levels and min(levels) > 1, levels
        self.num_codes = math.prod(levels)
        basis = [math.prod(levels[:channel]) for channel in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def bound(self, z_BDhw: Tensor) -> Tensor:
        """Latents squeezed between the outermost levels; rounded, they are whole levels."""
        levels_D11 = self._by_channel(self.levels)
        half_D11 = (levels_D11 - 1) * 1.001 / 2
        offset_D11 = torch.where(levels_D11 % 2 == 0, 0.5, 0.0)
        shift_D11 = torch.atanh(offset_D11 / half_D11)
        return torch.tanh(z_BDhw.float() + shift_D11) * half_D11 - offset_D11

    def forward(self, z_BDhw: Tensor) -> Tensor:
        """Codes [B, h, w] (int64) of latents [B, D, h, w]."""
        digits_BDhw = self.bound(z_BDhw).round().long() + self._by_channel(self.levels) // 2
        return (digits_BDhw * self._by_channel(self.basis)).sum(dim=1)

    def rows(self, codes_Bhw: Tensor) -> Tensor:
        """What the decoder gets, [B, D, h, w]: each digit as a value from -1 to at most 1."""
        levels_D11 = self._by_channel(self.levels)
        digits_BDhw = codes_Bhw[:, None] // self._by_channel(self.basis) % levels_D11
        return self.scale((digits_BDhw - levels_D11 // 2).float())

    def scale(self, level_BDhw: Tensor) -> Tensor:
        """Whole levels, as `bound` counts them, to what the decoder gets."""
        return level_BDhw / (self._by_channel(self.levels) // 2)

    @staticmethod
    def _by_channel(values_D: Tensor) -> Tensor:
        return values_D[:, None, None]


class Signs(nn.Module):
    """Channel c gives bit 2^c: 1 above zero, else 0. The decoder gets 1 and -1."""

    basis: Tensor

    def __init__(self, num_bits: int) -> None:
        super().__init__()
        self.num_codes = 2**num_bits
        self.register_buffer("basis", 2 ** torch.arange(num_bits), persistent=False)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        """Codes [B, h, w] (int64) of latents [B, D, h, w]."""
        return ((z_BDhw > 0) * self.basis[:, None, None]).sum(dim=1)

    def rows(self, codes_Bhw: Tensor) -> Tensor:
        """What the decoder gets, [B, D, h, w]."""
        is_set_BDhw = (codes_Bhw[:, None] // self.basis[:, None, None]) % 2 == 1
        return torch.where(is_set_BDhw, 1.0, -1.0)


def nearest_codes(z_PD: Tensor, codebook_ND: Tensor) -> Tensor:
    """Index of the nearest codebook vector of each latent: argmin of z² + e² - 2z·e, in fp32.

    The terms are added in that order, as the released code does, so that near ties fall alike.

    Returns:
        int64 [P].
    """
    z_PD, codebook_ND = z_PD.float(), codebook_ND.float()
    norms_N = codebook_ND.square().sum(dim=1)
    codes = []
    with torch.autocast(z_PD.device.type, enabled=False):
        for part_PD in z_PD.split(_positions_per_chunk(len(codebook_ND))):
            norms_P1 = part_PD.square().sum(dim=1, keepdim=True)
            distance_PN = norms_P1 + norms_N - 2.0 * (part_PD @ codebook_ND.t())
            codes.append(distance_PN.argmin(dim=1))
    return torch.cat(codes)


def _positions_per_chunk(num_codes: int) -> int:
    """Large codebooks get fewer positions, so that memory does not grow with them."""
    return max(1, min(_POSITIONS_PER_CHUNK, _VALUES_PER_CHUNK // num_codes))
