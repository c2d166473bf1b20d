"""Cosmos' discrete picture tokenizer DI: Chameleon's network between Haar bands, codes by rounding.

Pictures are split into wavelet bands before the first convolution and put together after the last;
every latent channel is rounded to one of a few levels (finite scalar quantization), so there is no
codebook. SimpleAR uses the video tokenizer instead, `mgpt.tokenizers.cosmos_video`, which shares
configuration, quantizer and pixels with this one.

    >>> load_tokenizer("Cosmos-DI16x16").num_codes
    64000

Shape suffixes: B pictures, C channels, D channels of a code, H W pixels, h w latents.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mgpt.errors import CheckpointError
from mgpt.tokenizers.protocol import PictureTokenizer, PixelRules
from mgpt.tokenizers.quantizers import FiniteScalars
from mgpt.tokenizers.released_sizes import GROUPS, Shapes, check_stated, network_sizes
from mgpt.tokenizers.vqgan import Decoder, Encoder
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.tokenizers.vqgan_layers import to_channels_last

__all__ = ["CosmosConfig", "CosmosImage", "CosmosTokenizer", "squares", "unsquare"]

_LEVELS = (8, 8, 8, 5, 5, 5)
_PATCH_PX = 4


@dataclass(frozen=True)
class CosmosConfig:
    """Sizes of the network between the bands, and the levels of each channel of a code."""

    network: VqganConfig
    levels: tuple[int, ...] = _LEVELS
    patch_px: int = _PATCH_PX
    """Pixels that the bands span each way: a power of two."""
    time_levels: int = 0
    """Levels that halve time, too; 0 in the picture tokenizer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if isinstance(self.network, dict):  # as a configuration file has it
            object.__setattr__(self, "network", VqganConfig(**self.network))

    def record(self) -> dict[str, Any]:
        """The settings as they are stored and fingerprinted."""
        return {
            "network": self.network.record(),
            "levels": list(self.levels),
            "patch_px": self.patch_px,
            "time_levels": self.time_levels,
        }

    @property
    def band_steps(self) -> int:
        """How often a picture is split into bands."""
        return self.patch_px.bit_length() - 1


class CosmosTokenizer(PictureTokenizer):
    """What the picture and the video tokenizer have in common."""

    pixels = PixelRules(rounding="half_up")

    config_class = CosmosConfig

    cfg: CosmosConfig
    quantize: FiniteScalars

    @property
    def num_codes(self) -> int:
        return self.quantize.num_codes

    @property
    def downsample(self) -> int:
        return self.cfg.patch_px * self.cfg.network.downsample

    def embed(self, codes_Bhw: Tensor) -> Tensor:
        return self.quantize.rows(codes_Bhw)

    @classmethod
    def sizes(
        cls, shapes: Shapes, stated: Mapping[str, Any], bands: int, groups: int, time_levels: int
    ) -> CosmosConfig:
        """The configuration of tensors under the picture tokenizer's names.

        Args:
            bands: of one step.
            groups: of a norm where the configuration does not state them.
        """
        network = network_sizes(shapes, stated, groups=groups)
        levels = tuple(stated.get("levels", _LEVELS))
        width = shapes["quant_conv.weight"][0]
        if len(levels) != width:
            raise CheckpointError(
                f"levels={list(levels)} is for codes of {len(levels)} channels, and the weights "
                f"have {width}; give the configuration that came with them"
            )
        network = replace(network, n_embed=math.prod(levels), embed_dim=width)
        own = {"channels": network.ch, "channels_mult": list(network.ch_mult)}
        own |= {"embedding_dim": width, "quantizer": "FSQ", "patch_method": "haar"}
        patch_px = stated.get("patch_size", _PATCH_PX)
        cfg = CosmosConfig(network, levels, patch_px, time_levels)
        own |= {"spatial_compression": patch_px * network.downsample}
        check_stated(stated, own)
        if network.in_channels != 3 * bands**cfg.band_steps:
            raise CheckpointError(
                f"patches of {patch_px} px give {3 * bands**cfg.band_steps} channels, and the "
                f"first convolution takes {network.in_channels}; the files are of two models"
            )
        return cfg


class CosmosImage(CosmosTokenizer):
    """DI: every picture by itself."""

    family = "cosmos_di"
    title = "Cosmos DI tokenizer"

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        network = config.network
        self.cfg = config
        self.encoder = Encoder(network)
        self.decoder = Decoder(network)
        self.quantize = FiniteScalars(config.levels)
        self.quant_conv = nn.Conv2d(network.z_channels, network.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(network.embed_dim, network.z_channels, 1)
        to_channels_last(self)

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        x_BCHW = pixels_B3HW
        for _ in range(self.cfg.band_steps):
            x_BCHW = _bands(x_BCHW)
        return self.quant_conv(self.encoder(x_BCHW))

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        x_BCHW = self.decoder(self.post_quant_conv(z_BDhw))
        for _ in range(self.cfg.band_steps):
            x_BCHW = unsquare(*x_BCHW.chunk(4, dim=1))
        return x_BCHW

    @classmethod
    def recognises(cls, shapes: Shapes, stated: Mapping[str, Any]) -> bool:
        has_codebook = "quantize.embedding.weight" in shapes
        channels = shapes.get("encoder.conv_in.weight", (0, 0))[1]
        return not has_codebook and channels % 12 == 0 and "quant_conv.weight" in shapes

    @classmethod
    def read_config(cls, shapes: Shapes, stated: Mapping[str, Any]) -> CosmosConfig:
        return cls.sizes(shapes, stated, bands=4, groups=GROUPS, time_levels=0)


def squares(x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, top - bottom, left - right and diagonal difference of every square of four pixels."""
    top, bottom = x_BCHW[..., 0::2, :], x_BCHW[..., 1::2, :]
    a, b, c, d = top[..., 0::2], top[..., 1::2], bottom[..., 0::2], bottom[..., 1::2]
    return (a + b + c + d) / 4, (a + b - c - d) / 4, (a - b + c - d) / 4, (a - b - c + d) / 4


def unsquare(mean: Tensor, vertical: Tensor, horizontal: Tensor, diagonal: Tensor) -> Tensor:
    """The pixels [B, C, 2H, 2W] of what `squares` gives."""
    a = mean + vertical + horizontal + diagonal
    b = mean + vertical - horizontal - diagonal
    c = mean - vertical + horizontal - diagonal
    d = mean - vertical - horizontal + diagonal
    top, bottom = (torch.stack(pair, dim=-1).flatten(-2) for pair in ((a, b), (c, d)))
    return torch.stack((top, bottom), dim=-2).flatten(-3, -2)


def _bands(x_BCHW: Tensor) -> Tensor:
    """One step: four bands at half the resolution, bands outermost in the channels."""
    return torch.cat(squares(x_BCHW), dim=1)
