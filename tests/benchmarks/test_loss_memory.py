"""Loss and z-loss at 7B's width against the plain path: bytes from shapes alone."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))
from loss_memory import GOAL, counted_mb


def test_a_sixth_of_the_plain_path_with_all_gradients() -> None:
    size = (4096, 4096, 65_536, torch.bfloat16)
    assert counted_mb("plain", *size) > GOAL * counted_mb("ours", *size)
