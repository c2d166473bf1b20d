"""Emu3's vision tokenizer on still pictures: MoVQGAN between convolutions in time.

A picture is fed as four equal frames. The encoder and the decoder treat frames one by one; two
strided convolutions in time make one latent frame of four, and two others four of one. They are
padded with zero frames in front, so the equal frames do not stay equal: the picture that comes back
is the first of the four.

    >>> load_tokenizer("Emu3-VisionTokenizer").num_codes
    32768

Shape suffixes: B pictures, C channels, D width of a code's vector, T frames, H W pixels or latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.errors import CheckpointError
from mgpt.tokenizers.movqgan import SpatialDecoder
from mgpt.tokenizers.protocol import PictureTokenizer, PixelRules
from mgpt.tokenizers.quantizers import NearestCodebook
from mgpt.tokenizers.released_sizes import Shapes, check_stated, count, network_sizes
from mgpt.tokenizers.vqgan import Encoder
from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = ["Emu3", "Emu3Config"]

_BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Emu3Config:
    """Sizes of the network of single frames, and of what stands around it in time."""

    frames: VqganConfig
    time_levels: int = 2
    """Convolutions in time; each halves the frames in the encoder, doubles them in the decoder."""
    time_blocks: int = 2
    """Residual blocks in time, in encoder and decoder each."""

    def __post_init__(self) -> None:
        if isinstance(self.frames, dict):  # as a configuration file has it
            object.__setattr__(self, "frames", VqganConfig(**self.frames))

    def record(self) -> dict[str, Any]:
        """The settings as they are stored and fingerprinted."""
        return {
            "frames": self.frames.record(),
            "time_levels": self.time_levels,
            "time_blocks": self.time_blocks,
        }


class _CausalConv(nn.Module):
    """A convolution whose padding in time is zero frames in front alone."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int], time_stride: int = 1
    ) -> None:
        super().__init__()
        self._frames_before = kernel[0] - time_stride
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            tuple(kernel),  # type: ignore[arg-type]  # three of them
            stride=(time_stride, 1, 1),
            padding=padding,
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCTHW, (0, 0, 0, 0, self._frames_before, 0)))


class _HalveTime(nn.Module):
    """Every two frames to one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _CausalConv(channels, channels, (4, 3, 3), time_stride=2)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(x_BCTHW)


class _DoubleTime(nn.Module):
    """Every frame twice, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _CausalConv(channels, channels, (3, 3, 3))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(x_BCTHW.repeat_interleave(2, dim=2))


class _TimeBlock(nn.Module):
    """norm, swish, convolution, twice, added to the input; the norms are those of training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels, eps=_BATCH_NORM_EPS)
        self.conv1 = _CausalConv(channels, channels, (3, 3, 3))
        self.norm2 = nn.BatchNorm3d(channels, eps=_BATCH_NORM_EPS)
        self.conv2 = _CausalConv(channels, channels, (3, 3, 3))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        h_BCTHW = self.conv1(F.silu(self.norm1(x_BCTHW)))
        return x_BCTHW + self.conv2(F.silu(self.norm2(h_BCTHW)))


def _time_blocks(config: Emu3Config) -> nn.Sequential:
    return nn.Sequential(*(_TimeBlock(config.frames.z_channels) for _ in range(config.time_blocks)))


class _Encoder(Encoder):
    """[B, 3, T, H, W] to [B, z_channels, 1, h, w]."""

    def __init__(self, config: Emu3Config) -> None:
        super().__init__(config.frames)
        channels = config.frames.z_channels
        self.time_conv = nn.ModuleList(_HalveTime(channels) for _ in range(config.time_levels))
        self.time_res_stack = nn.Sequential(
            *(_TimeBlock(channels) for _ in range(config.time_blocks))
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        num = x_BCTHW.shape[0]
        h_BCTHW = _from_frames(super().forward(_to_frames(x_BCTHW)), num)
        for conv in self.time_conv:
            h_BCTHW = F.silu(conv(h_BCTHW))
        return self.time_res_stack(h_BCTHW)


class _Decoder(SpatialDecoder):
    """[B, D, 1, h, w], after and before `post_quant_conv`, to [B, 3, T, H, W]."""

    def __init__(self, config: Emu3Config) -> None:
        super().__init__(config.frames)
        channels = config.frames.z_channels
        self.time_res_stack = nn.Sequential(
            *(_TimeBlock(channels) for _ in range(config.time_blocks))
        )
        self.time_conv = nn.ModuleList(_DoubleTime(channels) for _ in range(config.time_levels))

    def forward(self, z_BCTHW: Tensor, rows_BCTHW: Tensor) -> Tensor:
        num = z_BCTHW.shape[0]
        both = self.time_res_stack(torch.cat([z_BCTHW, rows_BCTHW]))
        for conv in self.time_conv:
            both = F.silu(conv(both))
        frames, rows = (_to_frames(part) for part in both.chunk(2))
        return _from_frames(super().forward(frames, rows), num)


def _to_frames(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def _from_frames(frames: Tensor, num: int) -> Tensor:
    return frames.unflatten(0, (num, -1)).transpose(1, 2)


class Emu3(PictureTokenizer):
    """BAAI's Emu3-VisionTokenizer, one picture at a time."""

    family = "emu3"
    title = "Emu3's vision tokenizer"
    pixels = PixelRules(arithmetic="float32", max_pixels=1024 * 1024)

    config_class = Emu3Config

    cfg: Emu3Config
    quantize: NearestCodebook

    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        self.cfg = config
        z_channels, width = config.frames.z_channels, config.frames.embed_dim
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = NearestCodebook(config.frames.n_embed, width)
        self.quant_conv = _CausalConv(z_channels, width, (3, 1, 1))
        self.post_quant_conv = _CausalConv(width, z_channels, (3, 1, 1))

    @property
    def num_codes(self) -> int:
        return self.cfg.frames.n_embed

    @property
    def downsample(self) -> int:
        return self.cfg.frames.downsample

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        frames_B3THW = pixels_B3HW[:, :, None].expand(-1, -1, 2**self.cfg.time_levels, -1, -1)
        return self.quant_conv(self.encoder(frames_B3THW))[:, :, 0]

    def embed(self, codes_Bhw: Tensor) -> Tensor:
        return self.quantize.rows(codes_Bhw)

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        rows_BD1hw = z_BDhw[:, :, None]
        return self.decoder(self.post_quant_conv(rows_BD1hw), rows_BD1hw)[:, :, 0]

    @classmethod
    def recognises(cls, shapes: Shapes, stated: Mapping[str, Any]) -> bool:
        return "encoder.time_conv.0.conv.conv.weight" in shapes

    @classmethod
    def read_config(cls, shapes: Shapes, stated: Mapping[str, Any]) -> Emu3Config:
        # Its `attn_resolutions` are numbers of levels.
        frames = network_sizes(shapes, stated)
        levels = count(shapes, "encoder.time_conv")
        check_stated(stated, {"codebook_size": frames.n_embed})
        factor = stated.get("temporal_downsample_factor", 2**levels)
        if factor != 2**levels:
            raise CheckpointError(
                f"temporal_downsample_factor is {factor} in the configuration, and the weights "
                f"have {levels} convolutions in time ({2**levels} frames)"
            )
        return Emu3Config(frames, levels, count(shapes, "encoder.time_res_stack"))
