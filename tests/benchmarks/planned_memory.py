"""What a plan says a rank's memory is, beside what a run of it holds, as a table and as JSON.

    python tests/benchmarks/planned_memory.py

On a CPU two gloo ranks train a small model; every storage of rank 0 is looked at after
every operation, so gathered and freed weights count as they come and go (process memory would
count Python and torch as well). On a GPU the allocator's own peak is taken, of one process. The
chunk of logits and the attention kernel are set alike for plan and run on a CPU, where the run's
own choices are others than on the GPUs that plans are for.
"""

import argparse
import gc
import json
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from corpora import conditions, show

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import start_ranks

from mgpt.models import cpu_attention, head_loss
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import MicroBatch, ParallelConfig, build_backend
from mgpt.parallel.dist import World, init_distributed
from mgpt.plan.live_bytes import LiveBytes
from mgpt.plan.memory import RankWork, plan_memory

RANKS = 2
SMALL = TransformerConfig(
    hidden=256, ffn=704, layers=6, heads=4, kv_heads=4, head_dim=64, vocab_size=4096
)
Case = tuple[str, int, int, dict[str, Any]]  # backend, row_tokens, micro-batches, its settings
LOW = {"dtype": "bfloat16"}
LEAN = {"dtype": "bfloat16", "recompute": "full"}
ON_CPU: list[Case] = [
    ("fsdp2", 256, 1, {"dtype": "float32"}),
    ("fsdp2", 256, 1, LOW),
    ("fsdp2", 256, 1, LOW | {"recompute": "selective"}),
    ("fsdp2", 64, 1, {"dtype": "float32", "recompute": "full"}),
    ("fsdp2", 64, 1, LEAN),
    ("fsdp2", 64, 1, LOW | {"gather": "model"}),
    ("fsdp2", 64, 2, LEAN),
    ("fsdp2", 64, 2, LEAN | {"reduce_each_micro_batch": True}),
    ("fsdp2", 64, 1, LEAN | {"reshard": "never"}),
    ("fsdp2", 64, 2, LEAN | {"reshard": "never", "reduce_each_micro_batch": True}),
    ("fsdp2", 64, 1, LEAN | {"prefetch": 3}),
    ("fsdp2", 64, 1, LEAN | {"shard_ranks": 1}),
    ("fsdp2", 64, 1, LEAN | {"offload": "all"}),
    ("zero3", 64, 1, LEAN | {"zero_stage": 1}),
    ("zero3", 64, 1, LEAN | {"zero_stage": 2}),
    ("zero3", 64, 1, LEAN | {"zero_stage": 3}),
    ("zero3", 64, 1, LEAN | {"zero_stage": 3, "offload": "optimizer"}),
]
ON_GPU: list[Case] = [
    ("single", 8192, 1, LOW),
    ("single", 16384, 1, LOW | {"recompute": "selective"}),
    ("single", 16384, 1, LEAN),
]


class StoragesHeld(LiveBytes):
    """Looks at every storage's size after every operation: sharded weights are freed in place.

    DTensor has a storage by name only, and is left out; what is made underneath it is not seen.
    """

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.most = 0
        super().__init__()

    def _know(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        super()._know(storage, num_bytes)
        if storage.device.type == "meta":
            return
        try:
            storage.data_ptr()
        except RuntimeError:
            return
        self._seen[storage._cdata] = weakref.ref(storage)

    def has_seen(self, tensor: torch.Tensor) -> bool:
        # An address may be that of one that is gone.
        reference = self._seen.get(tensor.untyped_storage()._cdata)
        return reference is not None and reference() is not None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        alive = (reference() for reference in self._seen.values())
        self.most = max(self.most, sum(one.nbytes() for one in alive if one is not None))
        return out


def measured(
    cfg: TransformerConfig, parallel: ParallelConfig, world: World, row_tokens: int, micro: int
) -> int:
    """Bytes that this rank holds at the most in the passes of its second step."""
    ids_BT = torch.randint(0, cfg.vocab_size, (1, row_tokens))
    batch = MicroBatch(ids_BT, ids_BT, torch.arange(row_tokens)[None])
    held = StoragesHeld()
    on_gpu = world.device.type == "cuda"
    if not on_gpu:
        held.__enter__()
    backend = build_backend(
        parallel, lambda: Transformer(cfg), OptimConfig(), world, 1e-5, 0, sharding_plan
    )
    for _ in range(2):
        held.most = 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for index in range(micro):
            backend.forward_backward(batch, 1 / row_tokens, last=index == micro - 1)
        most = torch.cuda.max_memory_allocated() if on_gpu else held.most
        backend.step(1e-4, 1.0)
    if on_gpu:
        return most
    held.__exit__(None, None, None)
    if parallel.name == "zero3":
        return most
    parameters = backend._parameters  # type: ignore[attr-defined]
    states = backend._optimizer.state.values()  # type: ignore[attr-defined]
    kept = [*parameters, *(tensor for state in states for tensor in state.values())]
    kept = [tensor.to_local() for tensor in kept]
    return most + sum(one.nbytes for one in kept if not held.has_seen(one))


def rows_of_this_rank(world: World) -> list[dict[str, Any]]:
    """One row a case: planned and measured."""
    on_gpu = world.device.type == "cuda"
    cfg, cases = (SIZES["1b"], ON_GPU) if on_gpu else (SMALL, ON_CPU)
    rows = []
    for name, row_tokens, micro, settings in cases:
        parallel = ParallelConfig(name=name, **settings)  # type: ignore[arg-type]
        work = RankWork(cfg, parallel, world.size, row_tokens, micro, on_cpu=not on_gpu)
        plan = plan_memory(work)
        totals = plan.totals
        # On a CPU what is offloaded lies beside the rest.
        planned = max(totals["loss"], totals["backward"]) + plan.offloaded_bytes
        found = measured(cfg, parallel, world, row_tokens, micro)
        gc.collect()
        words = ", ".join(f"{key}={value}" for key, value in settings.items())
        rows.append(
            {
                "case": f"{name} x {world.size}, {micro} x {row_tokens} tokens, {words}",
                "planned_mb": round(planned / 1e6, 1),
                "measured_mb": round(found / 1e6, 1),
                "planned_over_measured": round(planned / found, 3),
            }
        )
    return rows


def one_rank(folder: Path) -> None:
    """A rank of the CPU's run; rank 0 leaves its rows in the folder."""
    cpu_attention._TYPES = ()
    head_loss._CHUNK_LOGITS.update(cpu=1 << 18, cuda=1 << 18)
    world = init_distributed()
    rows = rows_of_this_rank(world)
    if world.is_main:
        (folder / "rows.json").write_text(json.dumps(rows))
    world.shutdown()


def main() -> None:
    if torch.cuda.is_available():
        rows = rows_of_this_rank(World(device=torch.device("cuda")))
        show(rows, conditions(torch=torch.__version__, gpu=torch.cuda.get_device_name()))
        return
    with tempfile.TemporaryDirectory() as folder:
        codes, logs = start_ranks([__file__, "--rank-of", folder], RANKS, timeout_s=1500.0)
        if any(codes):
            logs.append(f"the ranks ended with {codes}")
            sys.exit("\n".join(logs))
        rows = json.loads((Path(folder) / "rows.json").read_text())
    show(rows, conditions(torch=torch.__version__))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rank-of", type=Path, help="used by the script itself")
    folder_of_ranks = parser.parse_args().rank_of
    if folder_of_ranks is None:
        main()
    else:
        one_rank(folder_of_ranks)
