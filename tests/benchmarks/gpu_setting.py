"""What the GPU measures share: the device, its ceilings, a clock, and the form of a figure.

>>> setting = find_setting(small=True)
>>> setting.seconds(lambda: torch.ones(8).sum()) > 0
True
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from mgpt.plan.devices import DEVICES, Device

__all__ = ["Case", "Figure", "Measure", "Setting", "find_setting"]


class Figure(NamedTuple):
    """One measured value; `of` says what of."""

    measure: str
    case: str
    what: str = ""
    value: float | None = None
    unit: str = ""
    goal: float | None = None
    ceiling: float | None = None
    note: str = ""
    failed: bool = False

    @classmethod
    def new(cls, what: str, value: float, unit: str, **more: Any) -> "Figure":
        return cls("", "", what, value, unit, **more)

    def of(self, measure: str, case: str) -> "Figure":
        return self._replace(measure=measure, case=case)

    def row(self) -> dict[str, Any]:
        """As it stands in the table."""
        shown = {name: _rounded(value) for name, value in self._asdict().items()}
        shown["note"] = shown["note"].replace("|", "/")
        del shown["failed"]
        return shown


Case = tuple[str, Callable[[], Iterable[Figure]]]
Measure = Callable[["Setting"], Iterator[Case]]


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


@dataclass(frozen=True)
class Setting:
    """Where the measures run."""

    device: torch.device
    small: bool
    """Toy sizes: to see that the code runs."""
    sheet: Device | None
    """The card's data sheet, where it is known."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def bf16_tflops(self) -> float | None:
        return self.sheet.bf16_tflops if self.sheet else None

    def wait(self) -> None:
        """Returns when the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], repeats: int = 5, warmups: int = 2) -> float:
        """Median duration of a call, its device's work included."""
        for _ in range(1 if self.small else warmups):
            run()
        durations = []
        for _ in range(1 if self.small else repeats):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            durations.append(time.perf_counter() - began)
        return statistics.median(durations)

    def peak_mb(self, run: Callable[[], Any]) -> float | None:
        """The most memory a call takes beside what was taken before, in 1e6 bytes; GPU only."""
        if not self.on_gpu:
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def facts(self) -> dict[str, Any]:
        """Conditions of every figure."""
        facts: dict[str, Any] = {"torch": torch.__version__, "device": str(self.device)}
        if self.on_gpu:
            card = torch.cuda.get_device_properties(self.device)
            facts |= {"gpu": card.name, "gpu_memory_gb": round(card.total_memory / 1e9, 1)}
            facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        return facts


def find_setting(small: bool) -> Setting:
    """The GPU of this machine, or the CPU."""
    if not torch.cuda.is_available():
        return Setting(torch.device("cpu"), small, None)
    name = torch.cuda.get_device_name()
    sheet = next((DEVICES[key] for key in DEVICES if key.split("-")[0] in name), None)
    if sheet is not None:
        total = torch.cuda.get_device_properties(0).total_memory / 1e9
        sheet = replace(sheet, memory_gb=min(sheet.memory_gb, total))
    return Setting(torch.device("cuda"), small, sheet)
