"""LlamaGen's VQ-16 and VQ-8, which Janus carries as its generation tokenizer.

Chameleon's layers under names of their own, with the decoder's levels counted from the lowest
resolution, attention after every block there, and a codebook that is compared and used as unit
vectors. No configuration is released: sizes follow from the tensors.

    >>> load_tokenizer("LlamaGen/vq_ds16_c2i.pt").num_codes
    16384

Shape suffixes: B pictures, C channels, D width of a code's vector, H W pixels, h w latents.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgpt.tokenizers.protocol import PictureTokenizer, PixelRules
from mgpt.tokenizers.quantizers import CosineCodebook
from mgpt.tokenizers.released_sizes import LLAMAGEN, Shapes, check_stated, network_sizes
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.tokenizers.vqgan_layers import (
    AttnBlock,
    Downsample,
    ResnetBlock,
    Upsample,
    norm,
    swish_,
    to_channels_last,
)

__all__ = ["LlamaGen"]

_CODES_COUNTED = 65536  # length of the buffer of codes last used in training


class _Level(nn.Module):
    """Residual blocks of one resolution, with attention after each at the lowest."""

    def __init__(self, widths: list[int], has_attention: bool, config: VqganConfig) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(before, after, config) for before, after in itertools.pairwise(widths)
        )
        self.attn = nn.ModuleList(
            AttnBlock(width, config) for width in (widths[1:] if has_attention else [])
        )
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x_BCHW = block(x_BCHW)
            if len(self.attn):
                x_BCHW = self.attn[index](x_BCHW)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x_BCHW = resample(x_BCHW)
        return x_BCHW


def _middle(width: int, config: VqganConfig) -> nn.ModuleList:
    blocks = [ResnetBlock(width, width, config) for _ in range(2)]
    return nn.ModuleList([blocks[0], AttnBlock(width, config), blocks[1]])


class _Encoder(nn.Module):
    """[B, 3, H, W] to [B, z_channels, h, w]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width, lowest = config.ch, len(config.ch_mult) - 1
        for index, multiple in enumerate(config.ch_mult):
            widths = [width] + [config.ch * multiple] * config.num_res_blocks
            level = _Level(widths, index == lowest, config)
            width = widths[-1]
            if index != lowest:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
        self.mid = _middle(width, config)
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(x_BCHW)
        for module in (*self.conv_blocks, *self.mid):
            h_BCHW = module(h_BCHW)
        return self.conv_out(swish_(self.norm_out(h_BCHW)))


class _Decoder(nn.Module):
    """[B, z_channels, h, w] to [B, 3, H, W]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = _middle(width, config)
        self.conv_blocks = nn.ModuleList()
        for place, multiple in enumerate(reversed(config.ch_mult)):
            widths = [width] + [config.ch * multiple] * (config.num_res_blocks + 1)
            level = _Level(widths, place == 0, config)
            width = widths[-1]
            if place != len(config.ch_mult) - 1:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, config.out_ch, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(z_BCHW)
        for module in (*self.mid, *self.conv_blocks):
            h_BCHW = module(h_BCHW)
        return self.conv_out(swish_(self.norm_out(h_BCHW)))


class _Quantizer(CosineCodebook):
    """The codebook, and a buffer that the authors' strict loading asks for."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__(config.n_embed, config.embed_dim)
        self.register_buffer("codebook_used", torch.zeros(_CODES_COUNTED))


class LlamaGen(PictureTokenizer):
    """VQ-16, VQ-8 and Janus' copy."""

    family = "llamagen"
    title = "LlamaGen's VQ tokenizer"
    pixels = PixelRules(rounding="half_up")
    not_weights = ("quantize.codebook_used",)

    cfg: VqganConfig
    quantize: _Quantizer

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.cfg = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = _Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        to_channels_last(self)

    @property
    def num_codes(self) -> int:
        return self.cfg.n_embed

    @property
    def downsample(self) -> int:
        return self.cfg.downsample

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        x_B3HW = pixels_B3HW.contiguous(memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(x_B3HW))

    def embed(self, codes_Bhw: Tensor) -> Tensor:
        return self.quantize.rows(codes_Bhw)

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z_BDhw))

    @classmethod
    def recognises(cls, shapes: Shapes, stated: Mapping[str, Any]) -> bool:
        return "encoder.conv_blocks.0.res.0.conv1.weight" in shapes

    @classmethod
    def read_config(cls, shapes: Shapes, stated: Mapping[str, Any]) -> VqganConfig:
        sizes = network_sizes(shapes, stated, LLAMAGEN)
        own = {
            "codebook_size": sizes.n_embed,
            "codebook_embed_dim": sizes.embed_dim,
            "codebook_l2_norm": True,
            "encoder_ch_mult": list(sizes.ch_mult),
            "decoder_ch_mult": list(sizes.ch_mult),
        }
        check_stated(stated, own)
        return sizes
