"""What a device is: memory and speed, by name.

>>> DEVICES["A100-80"].bf16_tflops
312.0
"""

from dataclasses import dataclass

__all__ = ["DEVICES", "Device"]


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it."""

    memory_gb: float
    """In 1e9 bytes."""
    bf16_tflops: float
    """Dense bfloat16 matrix products, 1e12 operations a second."""
    fp32_tflops: float
    """float32 as torch multiplies it by default, without TF32."""


DEVICES: dict[str, Device] = {
    "A100-80": Device(80.0, 312.0, 19.5),
    "H100-80": Device(80.0, 989.0, 67.0),
    "H200-141": Device(141.0, 989.0, 67.0),
}
