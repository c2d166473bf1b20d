"""Cosmos' discrete video tokenizer DV on one frame, as SimpleAR uses it.

A convolution in time is padded by repeating the first frame, so on a still picture a kernel in time
acts as the sum of its weights, and attention in time is the value itself. What is left is a network
of pictures, computed as such here; weights keep the released names and shapes.

    >>> load_tokenizer("Cosmos-1.0-Tokenizer-DV8x16x16").num_codes
    64000

Shape suffixes: B pictures, C channels, D channels of a code, H W pixels, h w latents.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.tokenizers.cosmos import CosmosConfig, CosmosTokenizer, squares, unsquare
from mgpt.tokenizers.quantizers import FiniteScalars
from mgpt.tokenizers.released_sizes import Shapes
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.tokenizers.vqgan_layers import NORM_EPS, attend

__all__ = ["CosmosVideo"]

_TIME_COMPRESSION = 8


class _Conv(nn.Module):
    """A 3-D convolution on one frame."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: int = 1
    ) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, tuple(kernel))  # type: ignore[arg-type]
        self._stride = stride
        # A strided convolution's input is padded at the right and the bottom by its caller.
        self._padding = kernel[1] // 2 if stride == 1 else 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight = self.conv3d.weight.sum(dim=2)
        return F.conv2d(x_BCHW, weight, self.conv3d.bias, self._stride, self._padding)


def _pair(in_channels: int, out_channels: int) -> nn.Sequential:
    """A convolution in space, then one in time."""
    return nn.Sequential(
        _Conv(in_channels, out_channels, (1, 3, 3)), _Conv(out_channels, out_channels, (3, 1, 1))
    )


class _Norm(nn.Module):
    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.num_groups, channels, eps=NORM_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(x_BCHW)


class _Block(nn.Module):
    """norm, swish, convolutions, twice, added to the input."""

    def __init__(self, in_channels: int, out_channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm1 = _Norm(in_channels, config)
        self.conv1 = _pair(in_channels, out_channels)
        self.norm2 = _Norm(out_channels, config)
        self.conv2 = _pair(out_channels, out_channels)
        self.nin_shortcut = (
            _Conv(in_channels, out_channels, (1, 1, 1)) if in_channels != out_channels else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return h_BCHW + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class _Attention(nn.Module):
    """Attention in space, or in time, where the one frame sees itself alone."""

    def __init__(self, channels: int, config: VqganConfig, in_time: bool) -> None:
        super().__init__()
        self._in_time = in_time
        self.norm = _Norm(channels, config)
        self.q, self.k, self.v, self.proj_out = (
            _Conv(channels, channels, (1, 1, 1)) for _ in range(4)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        v_BCHW = self.v(h_BCHW)
        if not self._in_time:
            v_BCHW = attend(self.q(h_BCHW), self.k(h_BCHW), v_BCHW)
        return x_BCHW + self.proj_out(v_BCHW)


class _Middle(nn.Module):
    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.block_1 = _Block(channels, channels, config)
        self.attn_1 = nn.Sequential(
            _Attention(channels, config, in_time=False), _Attention(channels, config, in_time=True)
        )
        self.block_2 = _Block(channels, channels, config)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class _Downsample(nn.Module):
    """Halves height and width by a convolution plus the mean, and time where the level does."""

    def __init__(self, channels: int, halves_time: bool) -> None:
        super().__init__()
        self._halves_time = halves_time
        self.conv1 = _Conv(channels, channels, (1, 3, 3), stride=2)
        self.conv2 = _Conv(channels, channels, (3, 1, 1))
        self.conv3 = _Conv(channels, channels, (1, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        padded_BCHW = F.pad(x_BCHW, (0, 1, 0, 1))
        x_BCHW = self.conv1(padded_BCHW) + F.avg_pool2d(padded_BCHW, 2)
        if self._halves_time:
            x_BCHW = self.conv2(x_BCHW) + x_BCHW
        return self.conv3(x_BCHW)


class _Upsample(nn.Module):
    """Doubles time where the level does (one frame stays one), then height and width."""

    def __init__(self, channels: int, doubles_time: bool) -> None:
        super().__init__()
        self._doubles_time = doubles_time
        self.conv1 = _Conv(channels, channels, (3, 1, 1))
        self.conv2 = _Conv(channels, channels, (1, 3, 3))
        self.conv3 = _Conv(channels, channels, (1, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self._doubles_time:
            x_BCHW = self.conv1(x_BCHW) + x_BCHW
        x_BCHW = F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")
        return self.conv3(self.conv2(x_BCHW) + x_BCHW)


class _Level(nn.Module):
    def __init__(self, widths: list[int], config: VqganConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            _Block(before, after, config) for before, after in itertools.pairwise(widths)
        )
        self.downsample: _Downsample | None = None
        self.upsample: _Upsample | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for module in (*self.block, self.downsample, self.upsample):
            if module is not None:
                x_BCHW = module(x_BCHW)
        return x_BCHW


class _Encoder(nn.Module):
    """[B, in_channels, H, W] bands to [B, z_channels, h, w]."""

    def __init__(self, config: VqganConfig, time_levels: int) -> None:
        super().__init__()
        self.conv_in = _pair(config.in_channels, config.ch)
        self.down = nn.ModuleList()
        width, lowest = config.ch, len(config.ch_mult) - 1
        for index, multiple in enumerate(config.ch_mult):
            widths = [width] + [config.ch * multiple] * config.num_res_blocks
            level = _Level(widths, config)
            width = widths[-1]
            if index != lowest:
                level.downsample = _Downsample(width, index < time_levels)
            self.down.append(level)
        self.mid = _Middle(width, config)
        self.norm_out = _Norm(width, config)
        self.conv_out = _pair(width, config.z_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(x_BCHW)
        for module in (*self.down, self.mid):
            h_BCHW = module(h_BCHW)
        return self.conv_out(F.silu(self.norm_out(h_BCHW)))


class _Decoder(nn.Module):
    """[B, z_channels, h, w] to [B, out_ch, H, W] bands."""

    def __init__(self, config: VqganConfig, time_levels: int) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        self.conv_in = _pair(config.z_channels, width)
        self.mid = _Middle(width, config)
        levels: list[_Level] = []
        for index, multiple in reversed(list(enumerate(config.ch_mult))):
            widths = [width] + [config.ch * multiple] * (config.num_res_blocks + 1)
            level = _Level(widths, config)
            width = widths[-1]
            if index != 0:
                level.upsample = _Upsample(width, index <= time_levels)
            levels.append(level)
        # Numbered by resolution, full resolution first.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _Norm(width, config)
        self.conv_out = _pair(width, config.out_ch)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW)
        return self.conv_out(F.silu(self.norm_out(h_BCHW)))


class CosmosVideo(CosmosTokenizer):
    """DV on one frame."""

    family = "cosmos_dv"
    title = "Cosmos DV tokenizer"

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        network = config.network
        self.cfg = config
        self.encoder = _Encoder(network, config.time_levels)
        self.decoder = _Decoder(network, config.time_levels)
        self.quantize = FiniteScalars(config.levels)
        self.quant_conv = _Conv(network.z_channels, network.embed_dim, (1, 1, 1))
        self.post_quant_conv = _Conv(network.embed_dim, network.z_channels, (1, 1, 1))

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        x_BCHW = pixels_B3HW
        for _ in range(self.cfg.band_steps):
            x_BCHW = _bands(x_BCHW)
        return self.quant_conv(self.encoder(x_BCHW))

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        x_BCHW = self.decoder(self.post_quant_conv(z_BDhw))
        for _ in range(self.cfg.band_steps):
            x_BCHW = _last_frame(x_BCHW)
        return x_BCHW

    @classmethod
    def recognises(cls, shapes: Shapes, stated: Mapping[str, Any]) -> bool:
        return "encoder.conv_in.0.conv3d.weight" in shapes

    @classmethod
    def read_config(cls, shapes: Shapes, stated: Mapping[str, Any]) -> CosmosConfig:
        as_pictures = {
            name.replace(".0.conv3d.", ".").replace(".conv3d.", "."): shape
            for name, shape in shapes.items()
        }
        patch_px = stated.get("patch_size", CosmosConfig.patch_px)
        in_time = stated.get("temporal_compression", _TIME_COMPRESSION) // patch_px
        time_levels = max(0, in_time.bit_length() - 1)
        return cls.sizes(as_pictures, stated, bands=8, groups=1, time_levels=time_levels)


def _bands(x_BCHW: Tensor) -> Tensor:
    """One step on equal frames: the bands in space, and as many of zero differences in time."""
    mean, vertical, horizontal, diagonal = squares(x_BCHW)
    low = torch.cat((mean, horizontal, vertical, diagonal), dim=1)
    return torch.cat((low, torch.zeros_like(low)), dim=1)


def _last_frame(x_BCHW: Tensor) -> Tensor:
    """The later of the two frames that one step back gives."""
    low, high = x_BCHW.chunk(2, dim=1)
    mean, horizontal, vertical, diagonal = (low - high).chunk(4, dim=1)
    return unsquare(mean, vertical, horizontal, diagonal)
