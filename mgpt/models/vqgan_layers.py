"""The layers a VQGAN's encoder and decoder are made of, under the released file's names.

They know channels and pictures; which of them follow each other is `mgpt.models.vqgan`.

    >>> block = ResnetBlock(16, 32, num_groups=8, dropout=0.0)
    >>> Downsample(32)(block(torch.zeros(1, 16, 64, 48))).shape
    torch.Size([1, 32, 32, 24])

Shape suffixes: B pictures, C channels, H W pixels or latents, P positions (H·W of them).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AttnBlock",
    "Downsample",
    "Level",
    "Middle",
    "ResnetBlock",
    "Upsample",
    "group_norm",
    "swish_",
]

_GROUP_NORM_EPS = 1e-6


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """GroupNorm with the released model's epsilon."""
    return nn.GroupNorm(num_groups, channels, eps=_GROUP_NORM_EPS)


def swish_(x_BCHW: Tensor) -> Tensor:
    """x * sigmoid(x), in the place of x where no gradient needs it: a fresh tensor of a large
    picture costs as much time as filling it."""
    return F.silu(x_BCHW, inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    """norm, swish, conv, twice, added to the input (through a 1x1 convolution at a new width)."""

    def __init__(
        self, in_channels: int, out_channels: int, num_groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, num_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(swish_(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(self.dropout(swish_(self.norm2(h_BCHW))))
        skip_BCHW = x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW)
        return skip_BCHW + h_BCHW if torch.is_grad_enabled() else h_BCHW.add_(skip_BCHW)


class AttnBlock(nn.Module):
    """One head of unmasked attention over all positions, added to the input."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, num_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        q_B1PC, k_B1PC, v_B1PC = (
            layer(h_BCHW).flatten(2).transpose(1, 2).unsqueeze(1)
            for layer in (self.q, self.k, self.v)
        )
        out_B1PC = F.scaled_dot_product_attention(q_B1PC, k_B1PC, v_B1PC)
        out_BCHW = out_B1PC.squeeze(1).transpose(1, 2).reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(out_BCHW)


class Downsample(nn.Module):
    """Halves height and width: a strided convolution padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width: every value four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution; `downsample` or `upsample` is there where the level has it."""

    def __init__(
        self, widths: list[int], has_attention: bool, num_groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(before, after, num_groups, dropout)
            for before, after in itertools.pairwise(widths)
        )
        self.attn = nn.ModuleList(
            AttnBlock(width, num_groups) for width in (widths[1:] if has_attention else [])
        )
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if len(self.attn):
                x_BCHW = self.attn[index](x_BCHW)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x_BCHW = resample(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, num_groups: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, num_groups, dropout)
        self.attn_1 = AttnBlock(channels, num_groups)
        self.block_2 = ResnetBlock(channels, channels, num_groups, dropout)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))
