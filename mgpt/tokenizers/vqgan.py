"""Chameleon's VQGAN: a picture to a grid of codebook indices, and such a grid back to a picture.

The network is the VQ model of taming-transformers as Chameleon released it: residual blocks with
GroupNorm and swish, attention in the middle, strided convolutions down and nearest-neighbour
upsampling back, a plain nearest-vector codebook between. Parameter names are those of the released
file, so its state dict loads unchanged. Width, depth, downsampling and codebook are configuration;
the released model and the narrow ones that ship with the package differ in numbers only.

This module knows pixels in [-1, 1], codes, and the folder a model is kept in. It knows nothing of
the released file's format (`vqgan_convert`), of decoding or cropping pictures (`mgpt.images`), of
token ids (`mgpt.tokens`) or of training (`vqgan_loss`, `mgpt.train.train_vqgan`).

    >>> config = VqganConfig(ch=16, ch_mult=(1, 2, 4), num_res_blocks=1, z_channels=32,
    ...                      embed_dim=32, n_embed=512, num_groups=8)
    >>> model = Vqgan(config).eval()
    >>> codes_Bhw = model.encode(torch.zeros(1, 3, 64, 48))
    >>> codes_Bhw.shape, model.decode(codes_Bhw).shape
    (torch.Size([1, 16, 12]), torch.Size([1, 3, 64, 48]))

Shape suffixes: B pictures, C channels, H W pixels, h w latents (H and W over `downsample`),
N codebook entries, D their width, P positions (any number of latents in one axis).
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mgpt.errors import CheckpointError, ConfigError
from mgpt.files.atomic import atomic_write
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.tokenizers.vqgan_layers import Downsample, Level, Middle, Upsample, norm, swish_

__all__ = [
    "Vqgan",
    "VqganConfig",
    "build_vqgan",
    "exact_fp32",
    "load_vqgan",
    "nearest_codes",
    "save_vqgan",
    "vqgan_fingerprint",
]

_FORMAT = "mgpt-vqgan-1"
_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_SHIPPED = Path(__file__).parent / "pretrained"
_PROBLEMS_SHOWN = 8
# Positions compared with the codebook at once: 8192 entries then take 256 MB of distances.
_POSITIONS_PER_CHUNK = 8192


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
            has_attention = _level_has_attention(config, index)
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
            level = Level(widths, _level_has_attention(config, index), config)
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


class Quantizer(nn.Module):
    """The codebook: `embedding.weight` is [N, D]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / config.n_embed, 1.0 / config.n_embed)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        """Codes [B, h, w] (int64) of latents [B, D, h, w]."""
        z_PD = z_BDhw.movedim(1, -1).flatten(0, 2)
        codes_P = nearest_codes(z_PD, self.embedding.weight)
        return codes_P.view(z_BDhw.shape[0], *z_BDhw.shape[2:])


class Vqgan(nn.Module):
    """The whole model: `encode` and `decode` for its users, the parts between for its training."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.cfg = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        _to_channels_last(self)

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Codes of pictures, in `dtype` whatever the caller's autocast or TF32 settings.

        Args:
            pixels_B3HW: float, x/255·2-1 of 8-bit values; H and W multiples of
                `cfg.downsample`. Normalise in float64, then cast: fp32 arithmetic gives
                other last bits, and now and then another code.
            dtype: of the layers before the codebook; bfloat16 changes a few codes in a hundred.

        Returns:
            int64 [B, h, w], each in [0, n_embed).
        """
        self._check_size(pixels_B3HW)
        with exact_fp32(pixels_B3HW.device):
            with _layers_in(dtype, pixels_B3HW.device):
                latents_BDhw = self.latents(pixels_B3HW.float())
            return self.quantize(latents_BDhw.float())

    @torch.no_grad()
    def decode(self, codes_Bhw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pictures of codes, float32 [B, 3, H, W], nominally in [-1, 1] and not clamped.

        8-bit values are (x+1)/2·255 of the clamped result, truncated.

        Args:
            codes_Bhw: integers [B, h, w] in [0, n_embed).
            dtype: of the layers after the codebook.
        """
        assert codes_Bhw.ndim == 3, f"codes must be [B, h, w], not {tuple(codes_Bhw.shape)}"
        with exact_fp32(codes_Bhw.device), _layers_in(dtype, codes_Bhw.device):
            return self.reconstruct(self.embed(codes_Bhw)).float()

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        """[B, D, h, w] before the codebook, with gradient and in the caller's precision."""
        x_B3HW = pixels_B3HW.contiguous(memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(x_B3HW))

    def embed(self, codes_Bhw: Tensor) -> Tensor:
        """Codebook vectors [B, D, h, w] of codes [B, h, w]."""
        return self.quantize.embedding(codes_Bhw).movedim(-1, 1)

    def reconstruct(self, z_BDhw: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of codebook vectors, with gradient, in the caller's precision."""
        return self.decoder(self.post_quant_conv(z_BDhw))

    def _check_size(self, pixels_B3HW: Tensor) -> None:
        step = self.cfg.downsample
        assert pixels_B3HW.ndim == 4, f"pixels must be [B, C, H, W], not {tuple(pixels_B3HW.shape)}"
        assert pixels_B3HW.shape[1] == self.cfg.in_channels, (
            f"pixels have {pixels_B3HW.shape[1]} channels, the model {self.cfg.in_channels}"
        )
        assert all(side % step == 0 for side in pixels_B3HW.shape[2:]), (
            f"height and width {tuple(pixels_B3HW.shape[2:])} must be multiples of {step}"
        )


def nearest_codes(z_PD: Tensor, codebook_ND: Tensor) -> Tensor:
    """Index of the nearest codebook vector of each latent: argmin of z² + e² - 2z·e, in fp32.

    The terms are added in that order, as the released code does, so that near ties fall alike.

    Returns:
        int64 [P].
    """
    z_PD, codebook_ND = z_PD.float(), codebook_ND.float()
    norms_N = codebook_ND.square().sum(dim=1)
    codes = []
    with torch.autocast(z_PD.device.type, enabled=False):
        for part_PD in z_PD.split(_POSITIONS_PER_CHUNK):
            norms_P1 = part_PD.square().sum(dim=1, keepdim=True)
            distance_PN = norms_P1 + norms_N - 2.0 * (part_PD @ codebook_ND.t())
            codes.append(distance_PN.argmin(dim=1))
    return torch.cat(codes)


def vqgan_fingerprint(model: Vqgan) -> str:
    """What the model is, in 16 hex digits: sha256 over configuration, names, shapes and weights.

    Weights count as the fp32 values they are used with, so a model has one fingerprint whatever
    precision it is stored in. It stands in every tokenised shard and is compared before decoding.
    """
    return _fingerprint(model.cfg, model.state_dict())


def save_vqgan(model: Vqgan, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes `config.json` and `model.safetensors`; each appears whole, the configuration last.

    Args:
        dtype: how weights are stored. With float16 the loaded model, and its fingerprint, are
            those of the rounded weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    description = {
        "format": _FORMAT,
        "fingerprint": _fingerprint(model.cfg, stored),
        "config": model.cfg.record(),
    }
    atomic_write(folder / _WEIGHTS_FILE, safetensors.torch.save(stored))
    text = json.dumps(description, indent=2) + "\n"
    atomic_write(folder / _CONFIG_FILE, text.encode())


def load_vqgan(folder: str | Path) -> Vqgan:
    """A trained model, in evaluation mode, on CPU, in fp32.

    Args:
        folder: a folder `save_vqgan` wrote; or Chameleon's, with `vqgan.yaml` and `vqgan.ckpt`;
            or the bare name of a model shipped with the package, such as `scenes_f8`.

    Raises:
        CheckpointError: no such folder, or weights that are not what their configuration says.
        ConfigError: a configuration that describes no VQGAN.
    """
    folder = _resolve(folder)
    if (folder / _CONFIG_FILE).exists():
        return _load_own(folder)
    # The reader of the released file, the one place that opens a pickle, loads only when needed.
    from mgpt.tokenizers.vqgan_convert import is_released_folder, read_released_folder

    if not is_released_folder(folder):
        raise CheckpointError(
            f"{folder} holds no VQGAN: expected {_CONFIG_FILE} and {_WEIGHTS_FILE}, "
            "or vqgan.yaml and vqgan.ckpt"
        )
    cfg, state = read_released_folder(folder)
    return build_vqgan(cfg, state, str(folder))


def build_vqgan(cfg: VqganConfig, state: Mapping[str, Tensor], where: str) -> Vqgan:
    """A model in evaluation mode with exactly these weights, cast to fp32.

    Raises:
        CheckpointError: names missing, left over or of another shape, all in one message.
    """
    # Initialised on CPU, not "meta": there torch would import its compiler, seconds a process.
    with torch.random.fork_rng(devices=[]):
        model = Vqgan(cfg)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is left over" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:_PROBLEMS_SHOWN])
        more = len(problems) - _PROBLEMS_SHOWN
        raise CheckpointError(
            f"{where}: weights do not fit the VQGAN of its configuration: {shown}"
            + (f"; and {more} more" if more > 0 else "")
        )
    model.load_state_dict({name: t.float() for name, t in state.items()}, assign=True)
    _to_channels_last(model)
    return model.eval()


def _resolve(folder: str | Path) -> Path:
    # A shipped name means the shipped model wherever one stands; ./name is a folder of that name.
    shipped = sorted(path.parent.name for path in _SHIPPED.glob(f"*/{_CONFIG_FILE}"))
    if str(folder) in shipped:
        return _SHIPPED / str(folder)
    if Path(folder).is_dir():
        return Path(folder)
    raise CheckpointError(
        f"{folder} is neither a folder nor a VQGAN shipped with the package ({', '.join(shipped)})"
    )


def _load_own(folder: Path) -> Vqgan:
    try:
        description = json.loads((folder / _CONFIG_FILE).read_text())
        settings, wanted = description["config"], description["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / _CONFIG_FILE} is not a VQGAN configuration: {error!r}"
        ) from error
    if description.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder / _CONFIG_FILE}: format is {description.get('format')!r}, this software "
            f"reads {_FORMAT!r}"
        )
    unknown = sorted(settings.keys() - {field.name for field in fields(VqganConfig)})
    if unknown:
        raise ConfigError(f"{folder / _CONFIG_FILE}: unknown settings {', '.join(unknown)}")
    try:
        state = safetensors.torch.load_file(folder / _WEIGHTS_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS_FILE} cannot be read: {error}") from error
    model = build_vqgan(VqganConfig(**settings), state, str(folder))
    found = vqgan_fingerprint(model)
    if found != wanted:
        raise CheckpointError(
            f"{folder}: the weights have fingerprint {found}, {_CONFIG_FILE} says {wanted}; "
            "the two files are not of one model: copy or train it again"
        )
    return model


def _fingerprint(cfg: VqganConfig, state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(cfg.record(), sort_keys=True).encode())
    for name in sorted(state):
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


def _to_channels_last(model: nn.Module) -> None:
    """The layout that CPU and GPU convolutions are fastest in; it changes no value's meaning."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub


def _level_has_attention(config: VqganConfig, index: int) -> bool:
    return config.resolution // 2**index in config.attn_resolutions
