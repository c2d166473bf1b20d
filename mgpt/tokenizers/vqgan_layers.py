"""The layers a VQGAN's encoder and decoder are made of, under the released file's names.

They know channels and pictures; which of them follow each other is `mgpt.tokenizers.vqgan`.

    >>> block = ResnetBlock(16, 32, VqganConfig(num_groups=8))
    >>> Downsample(32)(block(torch.zeros(1, 16, 64, 48))).shape
    torch.Size([1, 32, 32, 24])

Shape suffixes: B pictures, C channels, H W pixels or latents, P positions (H·W of them).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = [
    "NORM_EPS",
    "AttnBlock",
    "ChannelNorm",
    "Downsample",
    "Level",
    "Middle",
    "ResnetBlock",
    "Upsample",
    "attend",
    "norm",
    "swish_",
    "to_channels_last",
]

NORM_EPS = 1e-6


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position: no position sees another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.movedim(1, -1)
        normed_BHWC = F.layer_norm(x_BHWC, x_BHWC.shape[-1:], self.weight, self.bias, NORM_EPS)
        return normed_BHWC.movedim(-1, 1)


def norm(channels: int, config: VqganConfig) -> nn.Module:
    """The configuration's norm; GroupNorm has the released model's epsilon."""
    if config.local:
        return ChannelNorm(channels)
    return nn.GroupNorm(config.num_groups, channels, eps=NORM_EPS)


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


def swish_(x_BCHW: Tensor) -> Tensor:
    """x * sigmoid(x), in the place of x where no gradient needs it: a fresh tensor of a large
    picture costs as much time as filling it."""
    return F.silu(x_BCHW, inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    """norm, swish, conv, twice, added to the input (through a 1x1 convolution at a new width)."""

    def __init__(
        self, in_channels: int, out_channels: int, config: VqganConfig, kernel: int = 3
    ) -> None:
        super().__init__()
        self.norm1 = norm(in_channels, config)
        self.conv1 = _conv(in_channels, out_channels, kernel)
        self.norm2 = norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = _conv(out_channels, out_channels, kernel)
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

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm = norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        return x_BCHW + self.proj_out(attend(self.q(h_BCHW), self.k(h_BCHW), self.v(h_BCHW)))


def attend(q_BCHW: Tensor, k_BCHW: Tensor, v_BCHW: Tensor) -> Tensor:
    """One head of unmasked attention over all positions of a picture, [B, C, H, W]."""
    q_B1PC, k_B1PC, v_B1PC = (
        x_BCHW.flatten(2).transpose(1, 2).unsqueeze(1) for x_BCHW in (q_BCHW, k_BCHW, v_BCHW)
    )
    out_B1PC = F.scaled_dot_product_attention(q_B1PC, k_B1PC, v_B1PC)
    return out_B1PC.squeeze(1).transpose(1, 2).reshape(q_BCHW.shape)


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
        self, widths: list[int], has_attention: bool, config: VqganConfig, kernel: int = 3
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(before, after, config, kernel)
            for before, after in itertools.pairwise(widths)
        )
        self.attn = nn.ModuleList(
            AttnBlock(width, config) for width in (widths[1:] if has_attention else [])
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
    """Block, attention, block at the lowest resolution; a local model has no attention."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config)
        self.attn_1 = None if config.local else AttnBlock(channels, config)
        self.block_2 = ResnetBlock(channels, channels, config)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.block_1(x_BCHW)
        if self.attn_1 is not None:
            x_BCHW = self.attn_1(x_BCHW)
        return self.block_2(x_BCHW)


def to_channels_last(model: nn.Module) -> None:
    """The layout that CPU and GPU convolutions are fastest in; it changes no value's meaning."""
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
