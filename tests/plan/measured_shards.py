"""Bytes of weights, gradients and moments that fsdp2 holds; a script, one rank of a gloo group.

`measure` is called in each rank; rank 0 writes what it holds as JSON.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import MicroBatch, ParallelConfig, build_backend
from mgpt.parallel.dist import init_distributed

MODEL = TransformerConfig(
    hidden=96, ffn=250, layers=3, heads=4, kv_heads=2, head_dim=24, vocab_size=513
)
"""Sizes that 2 ranks do not divide evenly."""


def measure(folder: Path) -> None:
    world = init_distributed()
    backend = build_backend(
        ParallelConfig(name="fsdp2"),
        lambda: Transformer(MODEL),
        OptimConfig(),
        world,
        z_loss=1e-5,
        seed=0,
        sharding_plan=sharding_plan,
    )
    ids_BT = torch.randint(0, MODEL.vocab_size, (1, 64))
    batch = MicroBatch(ids_BT, ids_BT, torch.arange(64)[None])
    backend.forward_backward(batch, 1 / 64, last=True)
    parameters = backend._parameters  # type: ignore[attr-defined]
    states = backend._optimizer.state.values()  # type: ignore[attr-defined]
    held = {
        "weights, float32": local_bytes(parameters),
        "gradients, float32": local_bytes(p.grad for p in parameters),
        "optimizer state": local_bytes(tensor for state in states for tensor in state.values()),
    }
    if world.is_main:
        (folder / "held.json").write_text(json.dumps(held))
    world.shutdown()


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Of this rank's storages, each once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.to_local().untyped_storage()  # type: ignore[attr-defined]
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
