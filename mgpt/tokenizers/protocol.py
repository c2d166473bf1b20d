"""What every picture tokenizer offers: pixels to codes, codes to pixels, and the rules for both.

A family is a subclass in a file of its own and a row of `mgpt.tokenizers.registry.TOKENIZERS`. It
says how its network computes latents, which code a latent gets, which vectors codes stand for, and
how pictures come back; `encode` and `decode` are the same for all. Everything downstream knows
these names alone: `num_codes`, `downsample`, `grid_px`, `pixels`, `fingerprint`, `cost`.

    >>> tokenizer = load_tokenizer("photos_f16")
    >>> codes_Bhw = tokenizer.encode(tokenizer.pixels.normalise(levels_BHWC))
    >>> pictures_BHWC = tokenizer.pixels.to_levels(tokenizer.decode(codes_Bhw))

Shape suffixes: B pictures, C channels, H W pixels, h w latents (H and W over `downsample`),
N codebook entries, D their width.
"""

import contextlib
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mgpt.images.pixels import Arithmetic, Rounding, normalise, to_uint8
from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = [
    "Config",
    "Cost",
    "PictureTokenizer",
    "PixelRules",
    "State",
    "exact_fp32",
    "float32_alone",
]

State = Mapping[str, Tensor]


class Config(Protocol):
    """A family's sizes: a dataclass that can state what is stored and fingerprinted of it."""

    def record(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        ...


@dataclass(frozen=True)
class PixelRules:
    """How a family turns 8-bit pictures into what its network takes, and back."""

    arithmetic: Arithmetic = "float64"
    """In which precision x/255·2-1 is computed; float32 has other last bits for 128 values."""
    rounding: Rounding = "truncate"
    """How decoded values become 8-bit ones."""
    max_pixels: int | None = None
    """Largest picture that the authors encode, in pixels; None where they state none."""
    min_codes: int = 1
    """Fewest codes of a picture that can be decoded."""

    def normalise(self, levels_BHWC: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [..., H, W, C] to float32 [..., C, H, W] in [-1, 1]."""
        return torch.from_numpy(normalise(levels_BHWC, self.arithmetic))

    def to_levels(self, pixels_BCHW: Tensor) -> npt.NDArray[np.uint8]:
        """float [..., C, H, W] on any device to uint8 [..., H, W, C]."""
        return to_uint8(pixels_BCHW.float().cpu().numpy(), self.rounding)


@dataclass(frozen=True)
class Cost:
    """What one picture of some size costs, for planning."""

    encode_flops: int
    """Floating-point operations of `encode`, a multiply-add counted as two."""
    decode_flops: int
    parameters: int


class PictureTokenizer(nn.Module):
    """Pictures to codes and back; see the module."""

    family: ClassVar[str]
    """Its row in `TOKENIZERS`."""
    title: ClassVar[str]
    """Its name in messages."""
    pixels: ClassVar[PixelRules] = PixelRules()
    encode_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    """Precisions in which the layers before the codebook may run. bfloat16 changes 3 to 17 % of
    the codes of released models, so theirs are float32 alone."""
    not_weights: ClassVar[tuple[str, ...]] = ()
    """Names of stored tensors that change neither a code nor a pixel."""

    config_class: ClassVar[type[Any]] = VqganConfig

    cfg: Any
    quantize: nn.Module
    """Latents [B, D, h, w] to codes [B, h, w]; the codebook where there is one."""

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """Codes are integers in [0, num_codes)."""

    @property
    @abstractmethod
    def downsample(self) -> int:
        """Pixels that a code spans each way."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def grid_px(self) -> int:
        """Sides of pictures that are scaled and cropped are multiples of this."""
        return 2 * self.downsample

    @property
    def multiple_px(self) -> int:
        """Sides of pictures that are taken as they are must be multiples of this."""
        return self.downsample

    @abstractmethod
    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        """[B, D, h, w] before the codebook, in the caller's precision."""

    @abstractmethod
    def embed(self, codes_Bhw: Tensor) -> Tensor:
        """What the decoder gets for codes, [B, D, h, w]."""

    @abstractmethod
    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of what `embed` gives, in the caller's precision."""

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        """The quantizer's vector of every code, float32 [num_codes, D]."""
        codes_11N = torch.arange(self.num_codes, device=self.device)[None, None]
        return self.embed(codes_11N)[0, :, 0].T.float()

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Codes of pictures, whatever the caller's autocast or TF32 settings.

        Args:
            pixels_B3HW: float, as `pixels.normalise` gives them; H and W multiples of `downsample`.
            dtype: of the layers before the codebook; one that is none of `encode_dtypes` counts as
                float32.

        Returns:
            int64 [B, h, w], each in [0, num_codes).
        """
        self._check_size(pixels_B3HW)
        allowed = dtype if dtype in self.encode_dtypes else torch.float32
        with exact_fp32(pixels_B3HW.device):
            with _layers_in(allowed, pixels_B3HW.device):
                latents_BDhw = self.latents(pixels_B3HW.float())
            return self.quantize(latents_BDhw.float())

    @torch.no_grad()
    def decode(self, codes_Bhw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pictures of codes, float32 [B, 3, H, W], nominally in [-1, 1] and not clamped.

        Args:
            codes_Bhw: integers [B, h, w] in [0, num_codes).
            dtype: of the layers after the codebook.
        """
        assert codes_Bhw.ndim == 3, f"codes must be [B, h, w], not {tuple(codes_Bhw.shape)}"
        with exact_fp32(codes_Bhw.device), _layers_in(dtype, codes_Bhw.device):
            return self.reconstruct(self.embed(codes_Bhw)).float()

    def fingerprint(self) -> str:
        """What the model is, in 16 hex digits: sha256 over family, sizes, names, shapes, weights.

        Weights count as the float32 values they are used with, so a model has one fingerprint
        whatever precision it is stored in. It stands in every tokenised shard and is compared
        before decoding.
        """
        return fingerprint(type(self), self.cfg, self.state_dict())

    def cost(self, height_px: int, width_px: int) -> Cost:
        """Operations for one picture of this size, counted on shapes alone."""
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.utils.flop_counter import FlopCounterMode

        with FakeTensorMode():
            model = type(self)(self.cfg).eval()
            pixels_13HW = torch.zeros(1, 3, height_px, width_px)
            with FlopCounterMode(display=False) as encoding:
                codes_1hw = model.encode(pixels_13HW)
            with FlopCounterMode(display=False) as decoding:
                model.decode(codes_1hw)
        parameters = sum(p.numel() for p in model.parameters())
        return Cost(encoding.get_total_flops(), decoding.get_total_flops(), parameters)

    @classmethod
    @abstractmethod
    def read_config(cls, shapes: Mapping[str, tuple[int, ...]], stated: Mapping[str, Any]) -> Any:
        """Sizes of a released model: from its tensors, and what its configuration file states.

        Args:
            shapes: of every tensor by name.
            stated: fields of the configuration file, flat; empty where there is none.
        """

    @classmethod
    @abstractmethod
    def recognises(cls, shapes: Mapping[str, tuple[int, ...]], stated: Mapping[str, Any]) -> bool:
        """Whether tensors and configuration are those of this family's released files."""

    def _check_size(self, pixels_B3HW: Tensor) -> None:
        step = self.downsample
        assert pixels_B3HW.ndim == 4, f"pixels must be [B, C, H, W], not {tuple(pixels_B3HW.shape)}"
        assert pixels_B3HW.shape[1] == 3, f"pixels have {pixels_B3HW.shape[1]} channels, not 3"
        assert all(side % step == 0 for side in pixels_B3HW.shape[2:]), (
            f"height and width {tuple(pixels_B3HW.shape[2:])} must be multiples of {step}"
        )


def float32_alone(tokenizer: PictureTokenizer) -> str:
    """What to say where bfloat16 is asked of a tokenizer that does not encode in it."""
    return (
        f"{tokenizer.title}: pictures are encoded in float32, whatever dtype= says; bfloat16 "
        "changes 3 to 17 % of the codes"
    )


def fingerprint(family: type[PictureTokenizer], cfg: Config, state: State) -> str:
    """See `PictureTokenizer.fingerprint`. Our own VQGAN's has no family in it, as ever."""
    record = cfg.record() if family.family == "vqgan" else [family.family, cfg.record()]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(state.keys() - set(family.not_weights)):
        values = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _layers_in(
    dtype: torch.dtype, device: torch.device
) -> contextlib.AbstractContextManager[object]:
    """Convolutions and products in `dtype`, by autocast; float32 changes nothing."""
    assert dtype in (torch.float32, torch.bfloat16), dtype
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


@contextlib.contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """Full fp32 inside: no autocast, no TF32 (bf16 moves 3 to 15 % of the codes)."""
    cudnn = torch.backends.cudnn
    matmul_precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(
                enabled=cudnn.enabled,
                benchmark=cudnn.benchmark,
                deterministic=cudnn.deterministic,
                allow_tf32=False,
            ),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
