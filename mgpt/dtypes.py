"""Which floating-point type a stage computes in: `dtype: auto | float32 | bfloat16`.

`auto` is bfloat16 where the device multiplies it natively, else float32: without instructions for
it torch emulates bfloat16, tens of times slower than float32. Weights, moments, reductions and
logits are float32 in either case, so a training may change from one to the other between starts.
Knows no stage and no model.

    >>> choose_dtype("auto", torch.device("cpu"))
    DtypeChoice(name='float32', reason='the CPU has no bfloat16 instructions', warning='')
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = ["CODES", "DTYPES", "PIXELS", "Dtype", "DtypeChoice", "choose_dtype"]

Dtype = Literal["auto", "float32", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

CODES = "pictures are encoded to codes, of which bfloat16 changes a few in a hundred"
"""Why a VQGAN's encoder stays in float32 unless bfloat16 is asked for."""
PIXELS = "decoded pixels are within one level of float32 on every device, which bfloat16 is not"
"""Why its decoder does."""

_NATIVE_CUDA = (8, 0)  # compute capability from which tensor cores multiply bfloat16
_TIMED_SIDE = 192  # of the square matrices that measure an emulation, in numbers
# What ONEDNN_MAX_CPU_ISA may be without keeping oneDNN from bfloat16 instructions.
_ONEDNN_WITH_BF16 = ("DEFAULT", "ALL", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX",
                     "AVX512_CORE_AMX_FP16", "AVX10_1_512", "AVX10_1_512_AMX",
                     "AVX10_1_512_AMX_FP16", "AVX10_2", "AVX10_2_AMX_2")  # fmt: skip


@dataclass(frozen=True)
class DtypeChoice:
    """A type, and why it was chosen."""

    name: Literal["float32", "bfloat16"]
    reason: str
    warning: str = ""
    """What the type costs on this device, measured, if it is emulated there."""

    @property
    def torch(self) -> torch.dtype:
        return DTYPES[self.name]

    @property
    def is_bfloat16(self) -> bool:
        return self.name == "bfloat16"

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"

    def announce(self, show: Callable[[str], object]) -> None:
        """One line that names type and reason, and the warning if there is one."""
        show(f"dtype: {self}")
        if self.warning:
            show(f"warning: {self.warning}")


def choose_dtype(
    asked: Dtype,
    device: torch.device,
    *,
    keep_float32: str = "",
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> DtypeChoice:
    """The type to compute in on `device`.

    Args:
        keep_float32: why this work's `auto` is float32 on every device (`CODES`, `PIXELS`);
            empty if it follows the device.
        gather: the value of each rank, on every rank (`World.gather_objects`). `auto` is bfloat16
            only if every rank's device multiplies it.
    """
    if asked != "auto":
        native, why = _multiplies_bfloat16(device)
        warning = "" if native or asked == "float32" else _emulation(device, why)
        return DtypeChoice(asked, "as configured", warning)
    if keep_float32:
        return DtypeChoice("float32", keep_float32)
    answers = gather(list(_multiplies_bfloat16(device)))
    for rank, (native, why) in enumerate(answers):
        if not native:
            return DtypeChoice("float32", f"{why}, on rank {rank}" if len(answers) > 1 else why)
    return DtypeChoice("bfloat16", answers[0][1])


def _multiplies_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Whether the device has instructions for products of bfloat16, and the words for it."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        native = (major, minor) >= _NATIVE_CUDA
        words = "multiplies bfloat16" if native else "does not multiply bfloat16 natively"
        return native, f"the GPU {words}: compute capability {major}.{minor}"
    if device.type != "cpu":
        return False, f"bfloat16 on device {device.type} is not known to be native"
    if torch.cpu._is_amx_tile_supported():
        instructions = "AMX"
    elif torch.cpu._is_avx512_bf16_supported():
        instructions = "AVX512_BF16"
    else:
        return False, "the CPU has no bfloat16 instructions"
    # Both make torch run as on an older CPU; torch's own answers above do not heed them.
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return False, f"ATEN_CPU_CAPABILITY keeps torch to {capability}, without bfloat16"
    name = "ONEDNN_MAX_CPU_ISA" if "ONEDNN_MAX_CPU_ISA" in os.environ else "DNNL_MAX_CPU_ISA"
    limit = os.environ.get(name, "").upper()
    if limit and limit not in _ONEDNN_WITH_BF16:
        return False, f"{name}={limit} keeps torch from bfloat16 instructions"
    return True, f"the CPU multiplies bfloat16: {instructions}"


def _emulation(device: torch.device, why: str) -> str:
    """The warning about an emulated bfloat16, with its cost measured here."""
    times = {name: _product_s(dtype, device) for name, dtype in DTYPES.items()}
    slowdown = times["bfloat16"] / times["float32"]
    return (
        f"{why}: it is emulated, and a product of {_TIMED_SIDE} x {_TIMED_SIDE} matrices takes "
        f"{slowdown:.1f} times as long as in float32 here (measured); dtype=auto takes float32"
    )


def _product_s(dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one matrix product, the shortest of three."""
    a = torch.ones(_TIMED_SIDE, _TIMED_SIDE, dtype=dtype, device=device)
    seconds = []
    for _ in range(4):  # the first one loads kernels
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
