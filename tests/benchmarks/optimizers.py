"""What an update costs next to the passes of a step, by optimizer and type, as a table and as JSON.

    python tests/benchmarks/optimizers.py --size quickstart --rows 2 --row-tokens 1024

CPU seconds of one process and one thread, the median of the steps after the first three, so that
other work on the machine moves the figures less than it moves the clock.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from corpora import conditions, show

from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import MicroBatch, ParallelConfig, build_backend
from mgpt.parallel.dist import World

WARM_STEPS = 3
OPTIMIZERS = {
    "adamw": OptimConfig(),
    "muon": OptimConfig(kind="muon"),
    "muon, averaged weights": OptimConfig(kind="muon", ema_decay=0.999),
}


def measure(
    model: TransformerConfig, optim: OptimConfig, dtype: str, batch: MicroBatch, steps: int
) -> dict[str, float]:
    """CPU milliseconds of forward and backward and of the update, and bytes of state."""
    backend = build_backend(
        ParallelConfig(dtype=dtype),  # type: ignore[arg-type]
        lambda: Transformer(model),
        optim,
        World(),
        z_loss=1e-5,
        seed=0,
        sharding_plan=sharding_plan,
    )
    passes, updates = [], []
    for _ in range(WARM_STEPS + steps):
        began = time.process_time()
        backend.forward_backward(batch, 1.0 / batch.ids_BT.numel(), last=True)
        passed = time.process_time()
        backend.step(1e-3, 1.0)
        passes.append(passed - began)
        updates.append(time.process_time() - passed)
    update, passed_s = (statistics.median(times[WARM_STEPS:]) for times in (updates, passes))
    return {
        "passes_ms": round(1e3 * passed_s, 1),
        "update_ms": round(1e3 * update, 1),
        "update_share": round(update / (update + passed_s), 3),
        "checkpoint_mb": round(backend.checkpoint_bytes / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", default="quickstart", choices=SIZES)
    parser.add_argument("--vocab-size", type=int, default=1096)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--document-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = replace(SIZES[args.size], vocab_size=args.vocab_size)
    ids_BT = torch.randint(0, model.vocab_size, (args.rows, args.row_tokens))
    positions_BT = (torch.arange(args.row_tokens) % args.document_tokens).repeat(args.rows, 1)
    batch = MicroBatch(ids_BT, ids_BT.roll(-1, 1), positions_BT)
    rows: list[dict[str, Any]] = [
        {"optimizer": name, "dtype": dtype, **measure(model, optim, dtype, batch, args.steps)}
        for dtype in ("float32", "bfloat16")
        for name, optim in OPTIMIZERS.items()
    ]
    show(rows, conditions(torch=torch.__version__, cpu=torch.backends.cpu.get_cpu_capability()))


if __name__ == "__main__":
    main()
