"""Chameleon's VQGAN: a picture to a grid of codebook indices, and such a grid back to a picture.

The network is the VQ model of taming-transformers as Chameleon released it: residual blocks with
GroupNorm and swish, attention in the middle, strided convolutions down and nearest-neighbour
upsampling back, a plain nearest-vector codebook between. Parameter names are those of the released
file, so its state dict loads unchanged. Width, depth, downsampling and codebook are configuration;
the released model and the narrow ones that ship with the package differ in numbers only.

This module knows pixels in [-1, 1] and codes. It knows nothing of files (`folder`, and
`vqgan_convert` for the released one), of decoding or cropping pictures (`mgpt.images`), of token
ids (`mgpt.tokens`) or of training (`vqgan_loss`, `mgpt.train.train_vqgan`).

    >>> config = VqganConfig(ch=16, ch_mult=(1, 2, 4), num_res_blocks=1, z_channels=32,
    ...                      embed_dim=32, n_embed=512, num_groups=8)
    >>> model = Vqgan(config).eval()
    >>> codes_Bhw = model.encode(torch.zeros(1, 3, 64, 48))
    >>> codes_Bhw.shape, model.decode(codes_Bhw).shape
    (torch.Size([1, 16, 12]), torch.Size([1, 3, 64, 48]))

Shape suffixes: B pictures, C channels, H W pixels, h w latents (H and W over `downsample`),
D the width of a codebook vector.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mgpt.tokenizers.protocol import PictureTokenizer
from mgpt.tokenizers.quantizers import FiniteScalars, NearestCodebook, ProductCodebook, Signs
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.tokenizers.vqgan_layers import (
    Downsample,
    Level,
    Middle,
    Upsample,
    norm,
    swish_,
    to_channels_last,
)

__all__ = ["Decoder", "Encoder", "Vqgan", "VqganConfig", "level_has_attention"]


class Encoder(nn.Module):
    """[B, in_channels, H, W] to [B, z_channels, h, w]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = config.ch
        lowest = len(config.ch_mult) - 1
        # A local encoder's 1x1 convolutions keep a code within a few pixels of its own square.
        kernel = 1 if config.local else 3
        for index, multiple in enumerate(config.ch_mult):
            widths = [width] + [config.ch * multiple] * config.num_res_blocks
            has_attention = level_has_attention(config, index)
            level = Level(widths, has_attention, config, kernel if index >= lowest - 1 else 3)
            width = widths[-1]
            if index != lowest:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = nn.Identity() if config.local else Middle(width, config)
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, config.z_channels, kernel, padding=kernel // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            h_BCHW = level(h_BCHW)
        return self.conv_out(swish_(self.norm_out(self.mid(h_BCHW))))


class Decoder(nn.Module):
    """[B, z_channels, h, w] to [B, out_ch, H, W]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = Middle(width, config)
        levels: list[Level] = []
        for index, multiple in reversed(list(enumerate(config.ch_mult))):
            widths = [width] + [config.ch * multiple] * (config.num_res_blocks + 1)
            level = Level(widths, level_has_attention(config, index), config)
            width = widths[-1]
            if index != 0:
                level.upsample = Upsample(width)
            levels.append(level)
        # The released file numbers decoder levels by resolution, full resolution first.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, config.out_ch, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW)
        return self.conv_out(swish_(self.norm_out(h_BCHW)))


class Vqgan(PictureTokenizer):
    """The whole model: `encode` and `decode` for its users, the parts between for its training."""

    family = "vqgan"
    title = "VQGAN"
    # Of ours, a few codes in a hundred are others in bfloat16, and whoever asks for it is told.
    encode_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16)

    cfg: VqganConfig
    quantize: NearestCodebook | ProductCodebook | FiniteScalars | Signs

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.cfg = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = _quantizer(config)
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
    def multiple_px(self) -> int:
        return self.grid_px

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        """[B, D, h, w] before the codebook, with gradient and in the caller's precision."""
        x_B3HW = pixels_B3HW.contiguous(memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(x_B3HW))

    def embed(self, codes_Bhw: Tensor) -> Tensor:
        """Vectors [B, D, h, w] of codes [B, h, w]."""
        return self.quantize.rows(codes_Bhw)

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of codebook vectors, with gradient, in the caller's precision."""
        return self.decoder(self.post_quant_conv(z_BDhw))

    @classmethod
    def recognises(cls, shapes: Mapping[str, tuple[int, ...]], stated: Mapping[str, Any]) -> bool:
        """Never: Chameleon's folder is known by the names of its files (`vqgan_convert`)."""
        return False

    @classmethod
    def read_config(
        cls, shapes: Mapping[str, tuple[int, ...]], stated: Mapping[str, Any]
    ) -> VqganConfig:
        raise AssertionError("its released folder is read by vqgan_convert")


def _quantizer(config: VqganConfig) -> NearestCodebook | ProductCodebook | FiniteScalars | Signs:
    if config.quantizer == "fsq":
        return FiniteScalars(config.levels)
    if config.quantizer == "lfq":
        return Signs(config.embed_dim)
    codebook = ProductCodebook if config.quantizer == "ibq" else NearestCodebook
    return codebook(config.n_embed, config.embed_dim)


def level_has_attention(config: VqganConfig, index: int) -> bool:
    """Whether attention follows each block of a level."""
    return config.resolution // 2**index in config.attn_resolutions
