"""Open-MAGVIT2: a network of its own, and codes whose bits are signs of channels.

No attention and no convolution around the codes. Residual convolutions have no bias, a level of the
decoder is doubled by a convolution to four times the channels, and before each level the features
are normalised and given a scale and shift that come from the spread and the mean of the codes over
the whole picture: of a single code there is no spread, so such a picture cannot be decoded.

    >>> load_tokenizer("Open-MAGVIT2/imagenet_256_L.ckpt").num_codes
    262144

Shape suffixes: B pictures, C channels, D bits of a code, H W pixels, h w latents.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.tokenizers.protocol import PictureTokenizer, PixelRules
from mgpt.tokenizers.quantizers import Signs
from mgpt.tokenizers.released_sizes import Shapes, check_stated, network_sizes
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.tokenizers.vqgan_layers import NORM_EPS, norm, swish_, to_channels_last

__all__ = ["OpenMagvit2"]


class _Block(nn.Module):
    """norm, swish, conv, twice, added to the input; convolutions without bias."""

    def __init__(self, in_channels: int, out_channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm1 = norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels, config)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(swish_(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(swish_(self.norm2(h_BCHW)))
        return h_BCHW + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class _Upsample(nn.Module):
    """Four times the channels, then depth to space, the place in the square outermost."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        squares = self.conv1(x_BCHW).unflatten(1, (2, 2, -1))  # [B, dy, dx, C, H, W]
        return squares.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class _Adaptive(nn.Module):
    """Normalised features times a scale from the codes' spread, plus a shift from their mean."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self._num_groups = config.num_groups
        self.gamma = nn.Linear(config.z_channels, channels)
        self.beta = nn.Linear(config.z_channels, channels)

    def forward(self, x_BCHW: Tensor, rows_BDhw: Tensor) -> Tensor:
        rows_BDP = rows_BDhw.flatten(2)
        scale_BC = self.gamma((rows_BDP.var(dim=2) + NORM_EPS).sqrt())
        shift_BC = self.beta(rows_BDP.mean(dim=2))
        normed_BCHW = F.group_norm(x_BCHW, self._num_groups, eps=NORM_EPS)
        return normed_BCHW * scale_BC[..., None, None] + shift_BC[..., None, None]


class _Level(nn.Module):
    def __init__(self, widths: list[int], config: VqganConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            _Block(before, after, config) for before, after in itertools.pairwise(widths)
        )
        self.downsample: nn.Conv2d | None = None
        self.upsample: _Upsample | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for module in (*self.block, self.downsample, self.upsample):
            if module is not None:
                x_BCHW = module(x_BCHW)
        return x_BCHW


def _middle(width: int, config: VqganConfig) -> nn.ModuleList:
    return nn.ModuleList(_Block(width, width, config) for _ in range(config.num_res_blocks))


class _Encoder(nn.Module):
    """[B, 3, H, W] to [B, bits, h, w]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        width, lowest = config.ch, len(config.ch_mult) - 1
        for index, multiple in enumerate(config.ch_mult):
            widths = [width] + [config.ch * multiple] * config.num_res_blocks
            level = _Level(widths, config)
            width = widths[-1]
            if index != lowest:
                level.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down.append(level)
        self.mid_block = _middle(width, config)
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, config.z_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(x_BCHW)
        for module in (*self.down, *self.mid_block):
            h_BCHW = module(h_BCHW)
        return self.conv_out(swish_(self.norm_out(h_BCHW)))


class _Decoder(nn.Module):
    """[B, bits, h, w] of 1 and -1 to [B, 3, H, W]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid_block = _middle(width, config)
        levels: list[_Level] = []
        adaptive: list[_Adaptive] = []
        for index, multiple in reversed(list(enumerate(config.ch_mult))):
            adaptive.append(_Adaptive(width, config))
            widths = [width] + [config.ch * multiple] * config.num_res_blocks
            level = _Level(widths, config)
            width = widths[-1]
            if index != 0:
                level.upsample = _Upsample(width)
            levels.append(level)
        # Numbered by resolution, full resolution first.
        self.up = nn.ModuleList(reversed(levels))
        self.adaptive = nn.ModuleList(reversed(adaptive))
        self.norm_out = norm(width, config)
        self.conv_out = nn.Conv2d(width, config.out_ch, 3, padding=1)

    def forward(self, rows_BDhw: Tensor) -> Tensor:
        h_BCHW = self.conv_in(rows_BDhw)
        for block in self.mid_block:
            h_BCHW = block(h_BCHW)
        for level, adapt in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            h_BCHW = level(adapt(h_BCHW, rows_BDhw))
        return self.conv_out(swish_(self.norm_out(h_BCHW)))


class OpenMagvit2(PictureTokenizer):
    """SEED-Voken's tokenizers by lookup-free quantization."""

    family = "magvit2"
    title = "Open-MAGVIT2 tokenizer"
    pixels = PixelRules(min_codes=2)

    cfg: VqganConfig
    quantize: Signs

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.cfg = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = Signs(config.z_channels)
        to_channels_last(self)

    @property
    def num_codes(self) -> int:
        return self.quantize.num_codes

    @property
    def downsample(self) -> int:
        return self.cfg.downsample

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        return self.encoder(pixels_B3HW)

    def embed(self, codes_Bhw: Tensor) -> Tensor:
        return self.quantize.rows(codes_Bhw)

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        return self.decoder(z_BDhw)

    @classmethod
    def recognises(cls, shapes: Shapes, stated: Mapping[str, Any]) -> bool:
        return "decoder.adaptive.0.gamma.weight" in shapes

    @classmethod
    def read_config(cls, shapes: Shapes, stated: Mapping[str, Any]) -> VqganConfig:
        sizes = network_sizes(shapes, stated)
        sizes = replace(sizes, n_embed=2**sizes.z_channels, embed_dim=sizes.z_channels)
        check_stated(stated, {"n_embed": sizes.n_embed, "embed_dim": sizes.embed_dim})
        return sizes
