"""MoVQGAN, the 8x tokenizer of Lumina-mGPT 2.0: a decoder whose norms are set by the codes.

The encoder is Chameleon's. In the decoder every norm is a GroupNorm whose scale and shift are 1x1
convolutions of the codebook rows, enlarged to the norm's resolution; so the decoder takes the rows
twice, through `post_quant_conv` and as they are.

    >>> load_tokenizer("movqgan/270M").downsample
    8

Shape suffixes: B pictures, C channels, D width of a code's vector, H W pixels or latents.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.tokenizers.protocol import PictureTokenizer, PixelRules
from mgpt.tokenizers.quantizers import NearestCodebook
from mgpt.tokenizers.released_sizes import Shapes, network_sizes
from mgpt.tokenizers.vqgan import Encoder, level_has_attention
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.tokenizers.vqgan_layers import NORM_EPS, Upsample, attend, swish_, to_channels_last

__all__ = ["Movqgan", "SpatialDecoder"]


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift come from the codebook rows at each place."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(config.num_groups, channels, eps=NORM_EPS)
        self.conv_y = nn.Conv2d(config.embed_dim, channels, 1)
        self.conv_b = nn.Conv2d(config.embed_dim, channels, 1)

    def forward(self, x_BCHW: Tensor, rows_BDhw: Tensor) -> Tensor:
        rows_BDHW = F.interpolate(rows_BDhw, size=x_BCHW.shape[-2:], mode="nearest")
        return self.norm_layer(x_BCHW) * self.conv_y(rows_BDHW) + self.conv_b(rows_BDHW)


class _Block(nn.Module):
    """The residual block of `vqgan_layers`, with spatial norms."""

    def __init__(self, in_channels: int, out_channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm1 = SpatialNorm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = SpatialNorm(out_channels, config)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x_BCHW: Tensor, rows_BDhw: Tensor) -> Tensor:
        h_BCHW = self.conv1(swish_(self.norm1(x_BCHW, rows_BDhw)))
        h_BCHW = self.conv2(swish_(self.norm2(h_BCHW, rows_BDhw)))
        return h_BCHW + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class _Attention(nn.Module):
    """The attention of `vqgan_layers`, with a spatial norm."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm = SpatialNorm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor, rows_BDhw: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW, rows_BDhw)
        return x_BCHW + self.proj_out(attend(self.q(h_BCHW), self.k(h_BCHW), self.v(h_BCHW)))


class _Level(nn.Module):
    """The blocks of one resolution."""

    def __init__(self, widths: list[int], has_attention: bool, config: VqganConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            _Block(before, after, config) for before, after in itertools.pairwise(widths)
        )
        self.attn = nn.ModuleList(
            _Attention(width, config) for width in (widths[1:] if has_attention else [])
        )
        self.upsample: Upsample | None = None

    def forward(self, x_BCHW: Tensor, rows_BDhw: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x_BCHW = block(x_BCHW, rows_BDhw)
            if len(self.attn):
                x_BCHW = self.attn[index](x_BCHW, rows_BDhw)
        return x_BCHW if self.upsample is None else self.upsample(x_BCHW)


class _Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.block_1 = _Block(channels, channels, config)
        self.attn_1 = _Attention(channels, config)
        self.block_2 = _Block(channels, channels, config)

    def forward(self, x_BCHW: Tensor, rows_BDhw: Tensor) -> Tensor:
        for module in (self.block_1, self.attn_1, self.block_2):
            x_BCHW = module(x_BCHW, rows_BDhw)
        return x_BCHW


class SpatialDecoder(nn.Module):
    """[B, z_channels, h, w] and the codebook rows [B, D, h, w] to [B, 3, H, W]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = _Middle(width, config)
        levels: list[_Level] = []
        for index, multiple in reversed(list(enumerate(config.ch_mult))):
            widths = [width] + [config.ch * multiple] * (config.num_res_blocks + 1)
            level = _Level(widths, level_has_attention(config, index), config)
            width = widths[-1]
            if index != 0:
                level.upsample = Upsample(width)
            levels.append(level)
        # Numbered by resolution, full resolution first.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = SpatialNorm(width, config)
        self.conv_out = nn.Conv2d(width, config.out_ch, 3, padding=1)

    def forward(self, z_BCHW: Tensor, rows_BDhw: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(z_BCHW), rows_BDhw)
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW, rows_BDhw)
        return self.conv_out(swish_(self.norm_out(h_BCHW, rows_BDhw)))


class Movqgan(PictureTokenizer):
    """ai-forever's 67M, 102M and 270M."""

    family = "movqgan"
    title = "MoVQGAN"
    pixels = PixelRules(rounding="half_even")

    cfg: VqganConfig
    quantize: NearestCodebook

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.cfg = config
        self.encoder = Encoder(config)
        self.decoder = SpatialDecoder(config)
        self.quantize = NearestCodebook(config.n_embed, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        to_channels_last(self)

    @property
    def num_codes(self) -> int:
        return self.cfg.n_embed

    @property
    def downsample(self) -> int:
        return self.cfg.downsample

    @property
    def grid_px(self) -> int:
        """Four codes: Lumina-mGPT 2.0 counts sizes in steps of 32 px at 8 px a code."""
        return 4 * self.downsample

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixels_B3HW))

    def embed(self, codes_Bhw: Tensor) -> Tensor:
        return self.quantize.rows(codes_Bhw)

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z_BDhw), z_BDhw)

    @classmethod
    def recognises(cls, shapes: Shapes, stated: Mapping[str, Any]) -> bool:
        is_spatial = "decoder.norm_out.norm_layer.weight" in shapes
        return is_spatial and "quant_conv.weight" in shapes

    @classmethod
    def read_config(cls, shapes: Shapes, stated: Mapping[str, Any]) -> VqganConfig:
        return network_sizes(shapes, stated)
