"""The sizes of a VQGAN, checked; apart from the model so that the readers of its files know them.

>>> VqganConfig().downsample, VqganConfig(ch_mult=(1, 2, 4)).downsample
(16, 4)
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from mgpt.errors import ConfigError

__all__ = ["Quantizer", "VqganConfig"]

Quantizer = Literal["vq", "ibq", "fsq", "lfq"]
# By number of codes; those above 512 are the recommendations of the paper (arXiv 2309.15505).
_FSQ_LEVELS = (
    (8, 8),
    (8, 6, 5),
    (8, 8, 8),
    (8, 5, 5, 5),
    (7, 5, 5, 5, 5),
    (8, 8, 8, 6, 5),
    (8, 8, 8, 5, 5, 5),
)


@dataclass(frozen=True)
class VqganConfig:
    """Sizes of a VQGAN, under the names of the `ddconfig` in Chameleon's `vqgan.yaml`.

    The defaults are the released model.
    """

    ch: int = 128
    """Channels at full resolution; every other width is a multiple of it."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level over `ch`; each level but the last halves height and width."""
    num_res_blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = ()
    """Levels (by side in pixels when the input has side `resolution`) with attention after each
    residual block, beside the attention in the middle that is always there."""
    z_channels: int = 256
    """Channels between the encoder or decoder and the 1x1 convolutions around the codebook."""
    in_channels: int = 3
    out_ch: int = 3
    resolution: int = 512
    """Nominal side in pixels; it only says which levels `attn_resolutions` names."""
    double_z: bool = False
    """True in variational autoencoders of the same family; a VQ model has one vector a latent."""
    dropout: float = 0.0
    embed_dim: int = 256
    """Width of a codebook vector."""
    n_embed: int = 8192
    """Codebook entries."""
    num_groups: int = 32
    """Groups of every GroupNorm; 32 in released files, fewer where a level is narrower."""

    local: bool = False
    """True: a code depends on the pixels around its own alone, so that equal patches get equal
    codes whatever else the picture shows. Norms are over the channels of each position, the middle
    has no attention, and the encoder's convolutions at its two lowest resolutions are 1x1. The
    released model is False: its GroupNorm and its attention see the whole picture."""

    quantizer: Quantizer = "vq"
    """vq: the nearest row of a codebook. ibq: the row with the largest inner product. fsq: every
    channel rounded to one of `levels`. lfq: every channel's sign is a bit. Released models of this
    layout are vq; `with_quantizer` gives another one its sizes."""
    levels: tuple[int, ...] = ()
    """Of each channel of a code, in fsq alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        object.__setattr__(self, "attn_resolutions", tuple(self.attn_resolutions))
        counts = ["ch", "num_res_blocks", "z_channels", "in_channels", "out_ch", "resolution"]
        counts += ["embed_dim", "n_embed", "num_groups"]
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in counts
            if getattr(self, name) < 1
        ]
        if self.local and self.attn_resolutions:
            problems.append(
                f"local=true and attn_resolutions={self.attn_resolutions}: a local model has no "
                "attention; give attn_resolutions=[] or local=false"
            )
        if not self.ch_mult or min(self.ch_mult) < 1:
            problems.append(f"ch_mult={self.ch_mult} must hold positive multiples")
        if self.double_z:
            problems.append("double_z=true describes a variational autoencoder, not a VQ model")
        if not 0.0 <= self.dropout < 1.0:
            problems.append(f"dropout={self.dropout} must lie in [0, 1)")
        problems += self._quantizer_problems()
        for multiple in () if problems else sorted(set(self.ch_mult)):
            if (self.ch * multiple) % self.num_groups:
                problems.append(
                    f"num_groups={self.num_groups} must divide every width; "
                    f"ch={self.ch} times {multiple} is {self.ch * multiple}"
                )
        if problems:
            raise ConfigError("VQGAN configuration: " + "; ".join(problems))

    def record(self) -> dict[str, Any]:
        """The settings as they are stored and fingerprinted. Those that came later are left out at
        their defaults, so that models stored before they existed keep their fingerprints."""
        settings = asdict(self)
        if not self.local:
            del settings["local"]
        if self.quantizer == "vq":
            del settings["quantizer"]
        if not self.levels:
            del settings["levels"]
        return settings

    def with_quantizer(self, quantizer: Quantizer) -> "VqganConfig":
        """The same network with another quantizer of as many codes, or as nearly so as it can.

        lfq takes the next lower power of two, fsq the levels of its paper that give the most codes
        without being more.
        """
        if quantizer == "fsq":
            fitting = [levels for levels in _FSQ_LEVELS if math.prod(levels) <= self.n_embed]
            if not fitting:
                raise ConfigError(
                    f"VQGAN configuration: n_embed={self.n_embed} is less than the "
                    f"{math.prod(_FSQ_LEVELS[0])} codes that fsq has at least"
                )
            levels, codes, width = fitting[-1], math.prod(fitting[-1]), len(fitting[-1])
            return replace(self, quantizer=quantizer, levels=levels, n_embed=codes, embed_dim=width)
        if quantizer == "lfq":
            bits = max(1, self.n_embed.bit_length() - 1)
            return replace(self, quantizer=quantizer, levels=(), n_embed=2**bits, embed_dim=bits)
        return replace(self, quantizer=quantizer, levels=())

    def _quantizer_problems(self) -> list[str]:
        if self.quantizer not in get_args(Quantizer):
            known = ", ".join(get_args(Quantizer))
            return [f"quantizer={self.quantizer!r} is none of {known}"]
        problems = []
        if self.quantizer == "fsq":
            codes, width = math.prod(self.levels), len(self.levels)
            if not self.levels or min(self.levels) < 2:
                problems.append(f"quantizer=fsq needs levels of 2 or more, not {self.levels}")
            elif (codes, width) != (self.n_embed, self.embed_dim):
                problems.append(
                    f"levels={self.levels} give {codes} codes of {width} channels; n_embed="
                    f"{self.n_embed} and embed_dim={self.embed_dim} must say the same"
                )
        elif self.levels:
            problems.append(f"levels={self.levels} belong to quantizer=fsq alone")
        if self.quantizer == "lfq" and self.n_embed != 2**self.embed_dim:
            problems.append(
                f"quantizer=lfq has 2^embed_dim codes: n_embed={self.n_embed} and embed_dim="
                f"{self.embed_dim} do not fit"
            )
        return problems

    @property
    def downsample(self) -> int:
        """Pixels a latent spans each way: 16 in the released model."""
        return 2 ** (len(self.ch_mult) - 1)
