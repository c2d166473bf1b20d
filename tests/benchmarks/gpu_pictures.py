"""GPU measures of the VQGAN: pictures a second beside the ceiling, and codes by precision."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from gpu_setting import Case, Figure, Setting
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mgpt.parallel.meta import on_meta
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig

# Pictures of a batch, as many pixels in each.
BATCHES = {512: 16, 768: 7, 1024: 4}


def _released(setting: Setting) -> Vqgan:
    cfg = VqganConfig()
    if setting.small:
        cfg = VqganConfig(
            ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=32, embed_dim=32, num_groups=8
        )
    return Vqgan(cfg).eval().to(setting.device)


def _pictures(number: int, px: int, setting: Setting) -> Tensor:
    """Smooth shades with edges and a little noise, in [-1, 1]."""
    generator = torch.Generator().manual_seed(px)
    coarse = torch.randn(number, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(px, px), mode="bicubic")
    edges = torch.nn.functional.interpolate(coarse.roll(1, 0).sign(), size=(px, px))
    noise = torch.randn(number, 3, px, px, generator=generator)
    return (0.4 * smooth + 0.2 * edges + 0.03 * noise).clamp(-1, 1).to(setting.device)


def _tflop(cfg: VqganConfig, px: int) -> float:
    """1e12 operations of encoding one picture, a multiply-add as two."""
    model = on_meta(lambda: Vqgan(cfg)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.latents(torch.empty(1, 3, px, px, device="meta"))
    latents = (px // cfg.downsample) ** 2
    return (counter.get_total_flops() + 2 * latents * cfg.n_embed * cfg.embed_dim) / 1e12


def speed(setting: Setting) -> Iterator[Case]:
    """Encoding in exact fp32, at the released sizes with random weights."""

    def figures(px: int, batch: int) -> Iterable[Figure]:
        model = _released(setting)
        pixels_B3HW = _pictures(batch, px, setting)
        rate = batch / setting.seconds(lambda: model.encode(pixels_B3HW))
        tflop = _tflop(model.cfg, px)
        fastest = setting.sheet.fp32_tflops / tflop if setting.sheet else None
        note = f"{tflop:.3g} TFLOP a picture"
        yield Figure.new("encode", rate, "pictures/s", ceiling=fastest, note=note)
        if fastest:
            yield Figure.new("encode", 100 * rate / fastest, "% of the ceiling")

    for px, batch in {64: 2}.items() if setting.small else BATCHES.items():
        yield f"{px} px", partial(figures, px, batch)


def agreement(setting: Setting) -> Iterator[Case]:
    """Codes of a trained model in cheaper ways, beside the exact ones."""

    def figures(px: int, batch: int) -> Iterable[Figure]:
        model = load_tokenizer("photos_f16").eval().to(setting.device)
        pixels_B3HW = _pictures(batch, px, setting)
        exact = model.encode(pixels_B3HW)
        seconds = setting.seconds(lambda: model.encode(pixels_B3HW))
        for name, encode in _ways(model, setting).items():
            with torch.no_grad():
                same = float((encode(pixels_B3HW) == exact).double().mean())
                faster = seconds / setting.seconds(partial(encode, pixels_B3HW))
            yield Figure.new(f"{name}, same codes", 100 * same, "%", ceiling=100.0)
            yield Figure.new(f"{name}, speed", faster, "x exact fp32")

    sizes = {64: 2} if setting.small else {512: 16}
    for px, batch in sizes.items():
        yield f"photos_f16, {px} px, drawn pictures", partial(figures, px, batch)


def _ways(model: Vqgan, setting: Setting) -> dict[str, Callable[[Tensor], Tensor]]:
    def autocast(pixels_B3HW: Tensor) -> Tensor:
        with torch.autocast(setting.device.type, torch.bfloat16):
            return model.quantize(model.latents(pixels_B3HW).float())

    def tf32(pixels_B3HW: Tensor) -> Tensor:
        with _tf32():
            return model.quantize(model.latents(pixels_B3HW))

    ways = {"bf16": autocast, "TF32": tf32}
    if setting.on_gpu:
        latents = torch.compile(model.latents)
        ways["compiled fp32"] = lambda pixels_B3HW: model.quantize(latents(pixels_B3HW))
    return ways


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
