"""Bytes of weights, gradients and optimizer state that fsdp2 holds, and what an update takes beside
them; a script, one rank of a gloo group.

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
from mgpt.parallel.dist import World, init_distributed
from mgpt.plan.live_bytes import LiveBytes

MODEL = TransformerConfig(
    hidden=96, ffn=250, layers=3, heads=4, kv_heads=2, head_dim=24, vocab_size=513
)
"""Sizes that 2 ranks do not divide evenly."""


OPTIMIZERS = {"adamw": OptimConfig(), "muon": OptimConfig(kind="muon", ema_decay=0.9)}


def measure(folder: Path) -> None:
    world = init_distributed()
    held = {name: held_by(optim, world) for name, optim in OPTIMIZERS.items()}
    if world.is_main:
        (folder / "held.json").write_text(json.dumps(held))
    world.shutdown()


def held_by(optim: OptimConfig, world: World) -> dict[str, int]:
    backend = build_backend(
        ParallelConfig(name="fsdp2", dtype="float32"),
        lambda: Transformer(MODEL),
        optim,
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
    tensors = [
        *parameters,
        *(p.grad for p in parameters),
        *(tensor for state in states for tensor in state.values()),
    ]
    with LiveBytes(tensor.to_local() for tensor in tensors) as counter:
        backend.step(1e-3, 1.0)
    return {**held, "at work in the update": counter.peak}


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Of this rank's storages, each once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.to_local().untyped_storage()  # type: ignore[attr-defined]
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
