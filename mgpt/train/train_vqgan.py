"""Trains a VQGAN on batches of 8-bit pictures: the loop, its checkpoint, its figures.

Pictures come as an iterator the caller makes for a given first step (`picture_batches` makes one
from a list of pictures), so that a run taken up again sees the pictures it would have seen. All
else that a step depends on is in one checkpoint file, which appears whole or not at all; a run
that was cut and taken up again ends bit for bit like one that was not.

This module does not know where pictures come from, nor how a run is configured or tracked: that
is the stage's part.

    >>> config = VqTrainConfig(steps=2000, learning_rate=1e-3)
    >>> sizes = BatchConfig(batch_pictures=16, sizes_hw=((64, 64), (48, 64), (64, 48)))
    >>> figures = train_vqgan(
    ...     config, model_config, lambda first_step: picture_batches(pictures, sizes, first_step),
    ...     on_log=lambda step, values: print(step, values), out_dir=Path("outputs/vq"),
    ...     held_out={"image": held_out_pictures})
    >>> figures["psnr_db/image"]
    31.4

Shape suffixes: B pictures, H W pixels, h w latents, C channels, D codebook width, P positions.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mgpt.dtypes import Dtype, DtypeChoice, choose_dtype
from mgpt.errors import CheckpointError, ConfigError, DataError, TrainingError
from mgpt.files.atomic import atomic_write
from mgpt.images.psnr import psnr_db, psnr_of_error_db
from mgpt.optim.schedule import decayed, half_cosine
from mgpt.stop_signals import Interrupted, StopSignals
from mgpt.tokenizers.folder import save_tokenizer
from mgpt.tokenizers.quantizer_training import quantizer_trainer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokenizers.vqgan_loss import (
    PatchDiscriminator,
    ReconstructionWeights,
    adaptive_weight,
    discriminator_hinge_loss,
    flatten_latents,
    reconstruction_loss,
    start_near_identity,
)

__all__ = [
    "BatchConfig",
    "VqTrainConfig",
    "picture_batches",
    "reconstruction_psnr",
    "train_vqgan",
    "training_dtype",
]

_log = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.safetensors"
# Pixel value of each 8-bit level, worked out in float64 as `mgpt.images.pixels` does.
_LEVELS_256 = (np.arange(256, dtype=np.float64) / 255.0 * 2.0 - 1.0).astype(np.float32)


@dataclass(frozen=True)
class VqTrainConfig:
    """How a VQGAN is trained."""

    steps: int = 20_000
    seed: int = 0
    """Key of the initial weights, the codebook's draws and dropout."""
    learning_rate: float = 1e-3
    """Peak; cosine to `min_lr_ratio` of it after the warm-up."""
    warmup_steps: int = 200
    min_lr_ratio: float = 0.02
    adam_betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    reconstruction: ReconstructionWeights = field(default_factory=ReconstructionWeights)
    commitment_weight: float = 0.25
    """Beta: pull of the latents to their codebook vectors."""
    entropy_weight: float = 0.05
    """Reward, with ibq and lfq, of latents that are sure of their code while all codes are used."""
    codebook_decay: float | None = 0.99
    """Share of its running average a codebook vector keeps each step; null trains the codebook by
    a loss and the optimiser instead."""
    quantise_from_step: int = 500
    """Before this step latents pass unquantised, a plain autoencoder: it learns colours and forms
    several times faster, and the codebook then starts on latents worth keeping."""
    revive_after_steps: int = 200
    """A codebook vector that won no latent for so long starts again at one of the batch."""
    discriminator_start_step: int | None = None
    """First step with the patch discriminator; null trains without."""
    discriminator_weight: float = 0.5
    """Factor on the adaptive weight of the adversarial loss."""
    dtype: Dtype = "auto"
    """Of convolutions while training; codes and final figures are float32 either way. auto:
    bfloat16 on a GPU that multiplies it natively, else float32."""
    log_every_steps: int = 50
    save_every_steps: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in ("steps", "revive_after_steps", "log_every_steps", "save_every_steps")
            if getattr(self, name) < 1
        ]
        if not 0 <= self.quantise_from_step < self.steps:
            problems.append(
                f"quantise_from_step={self.quantise_from_step} must come before steps={self.steps}"
            )
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            problems.append("learning_rate and max_grad_norm must be above 0")
        if self.codebook_decay is not None and not 0.0 < self.codebook_decay < 1.0:
            problems.append(f"codebook_decay={self.codebook_decay} must lie between 0 and 1")
        if problems:
            raise ConfigError("VQGAN training: " + "; ".join(problems))


@dataclass(frozen=True)
class BatchConfig:
    """How `picture_batches` cuts pictures into batches; each batch has one size."""

    batch_pictures: int = 16
    sizes_hw: tuple[tuple[int, int], ...] = ((64, 64),)
    """Heights and widths in pixels, drawn evenly by batch; repeat one to draw it more often."""
    resize: bool = True
    """True: a picture is scaled to cover the size, then cropped (whole scenes). False: a window
    is cropped at the picture's own scale, a smaller picture alone being enlarged (photographs)."""
    seed: int = 0


def picture_batches(
    pictures: Sequence[np.ndarray], cfg: BatchConfig, first_step: int
) -> Iterator[np.ndarray]:
    """Endless uint8 batches [B, H, W, 3], each a pure function of (pictures, cfg, step).

    Args:
        pictures: uint8 [height, width, 3] of any sizes.

    Raises:
        DataError: no pictures.
    """
    if not len(pictures):
        raise DataError("no pictures to train the VQGAN on: the input holds none")
    step = first_step
    while True:
        draw = np.random.default_rng([cfg.seed, step])
        size_hw = cfg.sizes_hw[draw.integers(len(cfg.sizes_hw))]
        chosen = draw.integers(len(pictures), size=cfg.batch_pictures)
        yield np.stack([_cut(pictures[i], size_hw, cfg.resize, draw) for i in chosen])
        step += 1


def training_dtype(cfg: VqTrainConfig, device: torch.device) -> DtypeChoice:
    """The type of the convolutions of a training on `device`."""
    # Measured with the 16 to 64 channels of scenes_f8 on AVX512_BF16: 12 % slower in bfloat16.
    on_cpu = "bfloat16 does not speed up these convolutions on a CPU"
    return choose_dtype(cfg.dtype, device, keep_float32=on_cpu if device.type == "cpu" else "")


def train_vqgan(
    cfg: VqTrainConfig,
    model_cfg: VqganConfig,
    batches: Callable[[int], Iterator[np.ndarray]],
    on_log: Callable[[int, dict[str, float]], None],
    out_dir: Path,
    held_out: Mapping[str, Sequence[np.ndarray]] | None = None,
    device: str = "cpu",
    start: Vqgan | None = None,
) -> dict[str, float]:
    """Trains, or takes up, one VQGAN; leaves it in `out_dir/model` and its figures beside it.

    Args:
        batches: given a step, the uint8 batches [B, H, W, 3] from that step on.
        on_log: called with (step, values) every `log_every_steps` and at the end.
        held_out: by name, uint8 pictures [H, W, 3] with sides of multiples of the downsampling.
        start: a trained model of the same sizes to go on from, codebook and all; it is left as
            it is, and `cfg.quantise_from_step` has no meaning.

    Returns:
        The figures also written to `out_dir/figures.json`: `psnr_db/<name>` of every held-out set,
        codebook use over all of them, the training loss of the last window.

    Raises:
        CheckpointError: `out_dir` holds a checkpoint of other settings.
        ConfigError: `start` has other sizes than `model_cfg`.
        TrainingError: the loss is no longer finite.
        Interrupted: a signal came; the step it came in is finished and saved.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    run = _Run(cfg, model_cfg, device, start)
    step = run.load(out_dir / _CHECKPOINT)
    if step:
        _log.info("taking up the VQGAN of %s at step %d of %d", out_dir, step, cfg.steps)
    source = batches(step)
    window: list[dict[str, float]] = []
    window_start_s, window_pictures = time.monotonic(), 0
    with StopSignals() as signals:
        while step < cfg.steps:
            pictures_BHW3 = next(source)
            window.append(run.step(step, _to_pixels(pictures_BHW3, device)))
            window_pictures += len(pictures_BHW3)
            step += 1
            if step % cfg.log_every_steps == 0 or step == cfg.steps:
                # The last step names them all: the discriminator's values start within a window.
                values = {n: float(np.mean([w[n] for w in window if n in w])) for n in window[-1]}
                elapsed_s = time.monotonic() - window_start_s
                rate = {"pictures_per_s": window_pictures / max(elapsed_s, 1e-9)}
                on_log(step, values | run.quantizer.usage() | rate)
                window, window_start_s, window_pictures = [], time.monotonic(), 0
            if step % cfg.save_every_steps == 0 or step == cfg.steps or signals.received:
                run.save(out_dir / _CHECKPOINT, step)
            if signals.received and step < cfg.steps:
                raise Interrupted(
                    f"stopped by {signals.received}; step {step:,} of {cfg.steps:,} is saved, run "
                    "the same command again to resume"
                )
    run.model.eval()
    save_tokenizer(run.model, out_dir / "model")
    figures = reconstruction_psnr(run.model, held_out or {})
    atomic_write(out_dir / "figures.json", json.dumps(figures, indent=2).encode())
    return figures


def reconstruction_psnr(
    model: Vqgan, pictures: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, float]:
    """How well pictures come back through their codes.

    Returns:
        `psnr_db/<name>`: mean over the set's pictures of the PSNR of the 8-bit values;
        `codes_used_percent` and `codes_perplexity` over all sets.
    """
    figures: dict[str, float] = {}
    device = next(model.parameters()).device
    wins_N = np.zeros(model.num_codes)
    for name, group in pictures.items():
        values_db = []
        for picture_HW3 in group:
            codes_Bhw = model.encode(_to_pixels(picture_HW3[None], str(device)))
            wins_N += np.bincount(codes_Bhw.flatten().cpu().numpy(), minlength=len(wins_N))
            levels = (model.decode(codes_Bhw).clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0
            back_HW3 = levels[0].movedim(0, -1).to(torch.uint8).cpu().numpy()
            values_db.append(psnr_db(picture_HW3, back_HW3))
        figures[f"psnr_db/{name}"] = float(np.mean(values_db))
    if wins_N.sum():
        share_N = wins_N[wins_N > 0] / wins_N.sum()
        figures["codes_used_percent"] = float(100.0 * (wins_N > 0).mean())
        figures["codes_perplexity"] = float(np.exp(-(share_N * np.log(share_N)).sum()))
    return figures


class _Run:
    """Everything that changes from step to step, and its one-file checkpoint."""

    def __init__(
        self, cfg: VqTrainConfig, model_cfg: VqganConfig, device: str, start: Vqgan | None = None
    ) -> None:
        if start is not None and start.cfg != model_cfg:
            raise ConfigError(
                f"VQGAN training: the model to start from has the sizes {start.cfg}, the one to "
                f"train {model_cfg}; give the same sizes"
            )
        self.cfg = cfg
        self.start = start
        self._dtype = training_dtype(cfg, torch.device(device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            self.model = Vqgan(model_cfg).to(device).train()
            if start is None:
                start_near_identity(self.model)
            else:
                self.model.load_state_dict(start.state_dict())
            self.discriminator = PatchDiscriminator(in_channels=model_cfg.out_ch).to(device)
        self.quantizer = quantizer_trainer(self.model, cfg, cfg.seed)
        self.optimizer = _adam(cfg, self.model)
        self.discriminator_optimizer = _adam(cfg, self.discriminator)

    def step(self, step: int, pixels_B3HW: Tensor) -> dict[str, float]:
        """One update; returns what is worth logging."""
        cfg, model = self.cfg, self.model
        device = pixels_B3HW.device
        quantising = self.start is not None or step >= cfg.quantise_from_step
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_draw_seed(cfg.seed, step))
            with torch.autocast(device.type, torch.bfloat16, enabled=self._dtype.is_bfloat16):
                z_BDhw = model.latents(pixels_B3HW)
                z_PD = flatten_latents(z_BDhw.detach())
                if self.start is None and step == cfg.quantise_from_step:
                    self.quantizer.start(z_PD)
                made = self.quantizer.quantise(z_BDhw, quantising)
                out_B3HW = model.reconstruct(made.z_BDhw)
        out_B3HW = out_B3HW.float()
        reconstruction = reconstruction_loss(out_B3HW, pixels_B3HW, cfg.reconstruction)
        loss = reconstruction + made.loss
        values = {"reconstruction_loss": reconstruction.item()}
        values["commitment"] = made.commitment.item()
        adversarial_from = cfg.discriminator_start_step
        adversarial_on = adversarial_from is not None and step >= adversarial_from
        if adversarial_on:
            adversarial = -self.discriminator(out_B3HW).mean()
            weight = adaptive_weight(reconstruction, adversarial, model.decoder.conv_out.weight)
            loss = loss + cfg.discriminator_weight * weight * adversarial
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"VQGAN training: the loss is {loss.item()} at step {step}; the last checkpoint is "
                "sound: take it up with a lower learning_rate"
            )
        learning_rate = _learning_rate(cfg, step)
        grad_norm = _update(self.optimizer, loss, learning_rate, cfg.max_grad_norm)
        if adversarial_on:
            values["discriminator_loss"] = self._discriminator_step(
                pixels_B3HW, out_B3HW.detach(), learning_rate
            )
        codes_P = made.codes_Bhw.flatten()
        revived = self.quantizer.observe(z_PD, codes_P, step) if quantising else 0
        mse = F.mse_loss(out_B3HW.detach().clamp(-1, 1), pixels_B3HW).item()
        return values | {
            "loss": loss.item(),
            "psnr_db": psnr_of_error_db(mse, value_range=2.0),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "codes_revived": float(revived),
        }

    def save(self, path: Path, step: int) -> None:
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._tensors().items()}
        # One entry: safetensors writes several in an order that differs from run to run.
        metadata = {"run": json.dumps({"settings": self._settings(), "step": step})}
        atomic_write(path, save(tensors, metadata))

    def load(self, path: Path) -> int:
        """Takes up the checkpoint at `path`; returns its step, 0 where there is none."""
        if not path.exists():
            return 0
        try:
            with safe_open(path, framework="pt") as file:
                taken_up = json.loads(file.metadata()["run"])
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path} is not a checkpoint of VQGAN training ({error!r}): remove it to start anew"
            ) from error
        if taken_up["settings"] != self._settings():
            raise CheckpointError(
                f"{path} was made with other settings ({taken_up['settings']}) than these "
                f"({self._settings()}): use another output folder, or remove the file"
            )
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(saved[name])
        return int(taken_up["step"])

    def _discriminator_step(
        self, real_B3HW: Tensor, fake_B3HW: Tensor, learning_rate: float
    ) -> float:
        loss = discriminator_hinge_loss(
            self.discriminator(real_B3HW), self.discriminator(fake_B3HW)
        )
        _update(self.discriminator_optimizer, loss, learning_rate, self.cfg.max_grad_norm)
        return loss.item()

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name; the tensors themselves, not copies."""
        tensors = {f"model.{n}": t for n, t in self.model.state_dict(keep_vars=True).items()}
        tensors |= {f"codebook.{name}": t for name, t in self.quantizer.state().items()}
        tensors |= _moments("optimizer", self.optimizer, self.model)
        if self.cfg.discriminator_start_step is not None:
            discriminator = self.discriminator
            tensors |= {f"discriminator.{n}": p for n, p in discriminator.named_parameters()}
            tensors |= _moments(
                "discriminator_optimizer", self.discriminator_optimizer, discriminator
            )
        return tensors

    def _settings(self) -> str:
        # Where a run is logged and saved does not change what it computes, and its tensors are
        # float32 whatever the dtype, which may follow the machine from start to start.
        free = ("log_every_steps", "save_every_steps", "dtype")
        settings = {name: value for name, value in asdict(self.cfg).items() if name not in free}
        settings["bf16"] = False  # the settings of earlier checkpoints name it
        start = self.start.fingerprint() if self.start is not None else None
        sizes = asdict(self.model.cfg)
        if sizes["quantizer"] == "vq":  # the settings of earlier checkpoints name neither
            sizes = {name: sizes[name] for name in sizes if name not in ("quantizer", "levels")}
            del settings["entropy_weight"]
        text = json.dumps([settings, sizes, start], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _adam(cfg: VqTrainConfig, module: nn.Module) -> torch.optim.Adam:
    """Adam with its moments made at once, so that a checkpoint has places to load into."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=cfg.learning_rate, betas=cfg.adam_betas)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _moments(prefix: str, optimizer: torch.optim.Adam, module: nn.Module) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}.{kind}": tensor
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        for kind, tensor in optimizer.state[parameter].items()
    }


def _update(
    optimizer: torch.optim.Adam, loss: Tensor, learning_rate: float, max_grad_norm: float
) -> float:
    """Backward, clip, step; returns the gradient norm before clipping."""
    (group,) = optimizer.param_groups
    group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=group["params"])
    grad_norm = nn.utils.clip_grad_norm_(group["params"], max_grad_norm)
    optimizer.step()
    return grad_norm.item()


def _learning_rate(cfg: VqTrainConfig, step: int) -> float:
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return cfg.learning_rate * decayed(half_cosine(progress), cfg.min_lr_ratio)


def _draw_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _to_pixels(pictures_BHW3: np.ndarray, device: str) -> Tensor:
    """uint8 [B, H, W, 3] to fp32 [B, 3, H, W] in [-1, 1]."""
    assert pictures_BHW3.dtype == np.uint8, f"pictures must be uint8, not {pictures_BHW3.dtype}"
    return torch.from_numpy(_LEVELS_256[pictures_BHW3]).permute(0, 3, 1, 2).to(device)


def _cut(
    picture_HW3: np.ndarray, size_hw: tuple[int, int], resize: bool, draw: np.random.Generator
) -> np.ndarray:
    """A window of `size_hw`, after scaling to cover it where `resize` or the size asks for it."""
    height, width = size_hw
    is_smaller = picture_HW3.shape[0] < height or picture_HW3.shape[1] < width
    if is_smaller or (resize and picture_HW3.shape[:2] != size_hw):
        scale = max(height / picture_HW3.shape[0], width / picture_HW3.shape[1])
        scaled_hw = (
            max(height, round(picture_HW3.shape[0] * scale)),
            max(width, round(picture_HW3.shape[1] * scale)),
        )
        x_13HW = torch.from_numpy(picture_HW3).permute(2, 0, 1)[None]
        x_13HW = F.interpolate(x_13HW, scaled_hw, mode="bicubic", antialias=True)
        picture_HW3 = x_13HW[0].permute(1, 2, 0).numpy()
    top = draw.integers(picture_HW3.shape[0] - height + 1)
    left = draw.integers(picture_HW3.shape[1] - width + 1)
    return picture_HW3[top : top + height, left : left + width]
