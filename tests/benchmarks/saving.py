"""How long training stands still for a checkpoint: saved in the background, and blocking.

    python tests/benchmarks/saving.py

A model trains on one process, step by step; of each round one save blocks and one is made in the
background, in turn. *Stalled* is the time that `save` keeps training from its next step, *slowed*
what the steps that follow take beyond usual ones while the thread writes. *Old writer* is what
saving cost before: PyTorch's own writer of the same format, and hashes of what it had written.
Memory is the process's peak above what it held before the save, in bytes a byte of the state.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from corpora import conditions, show

from mgpt.files.atomic import file_sha256
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import Backend, MicroBatch, ParallelConfig, build_backend
from mgpt.parallel.dist import World
from mgpt.parallel.state import training_state
from mgpt.train.checkpoint import CheckpointStore

CONTEXT = multiprocessing.get_context("spawn")


class NoVocabulary:
    size, fingerprint = 4, "0123456789abcdef"

    def save(self, folder: Path) -> None:
        folder.mkdir()


def make_backend(layers: int) -> Backend:
    cfg = TransformerConfig(
        hidden=512, ffn=1376, layers=layers, heads=8, kv_heads=8, head_dim=64, vocab_size=8192
    )
    return build_backend(
        ParallelConfig(dtype="float32"),
        lambda: Transformer(cfg),
        OptimConfig(),
        World(),
        z_loss=0.0,
        seed=0,
        sharding_plan=sharding_plan,
    )


def train_step(backend: Backend, tokens: int) -> float:
    """Seconds of an update on one row."""
    began = time.perf_counter()
    ids_BT = torch.randint(0, 8192, (1, tokens))
    positions_BT = torch.arange(tokens).expand(1, -1)
    backend.forward_backward(MicroBatch(ids_BT, ids_BT, positions_BT), 1.0 / tokens, last=True)
    backend.step(1e-4, 1.0)
    return time.perf_counter() - began


def save(store: CheckpointStore, backend: Backend, step: int) -> float:
    began = time.perf_counter()
    store.save(step, backend, {}, {"step": step}, "", NoVocabulary())  # type: ignore[arg-type]
    return time.perf_counter() - began


def old_save(backend: Any, folder: Path) -> float:
    """The state alone, as it was written before."""
    began = time.perf_counter()
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    tensors = training_state(backend._named, backend._optimizer)
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    for path in folder.iterdir():
        file_sha256(path)
    return time.perf_counter() - began


def stalls(layers: int, tokens: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    backend = make_backend(layers)
    stores = {
        kind: CheckpointStore(folder / kind, World(), keep=1, background=kind == "background")
        for kind in ("blocking", "background")
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("step", "old", "slowed", *stores)}
    for number in range(1, rounds + 1):
        seconds["step"] += [train_step(backend, tokens) for _ in range(3)]
        seconds["old"].append(old_save(backend, folder / f"old-{number}"))
        train_step(backend, tokens)
        seconds["blocking"].append(save(stores["blocking"], backend, number))
        seconds["step"] += [train_step(backend, tokens) for _ in range(3)]
        seconds["background"].append(save(stores["background"], backend, number))
        slowed, usual = 0.0, statistics.median(seconds["step"])
        while stores["background"]._thread.is_alive():  # type: ignore[union-attr]
            slowed += train_step(backend, tokens) - usual
        stores["background"].wait()
        seconds["slowed"].append(max(0.0, slowed))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    state_mb = backend.num_parameters * 12 / 1e6
    return [
        {
            "save": kind,
            "state_mb": round(state_mb),
            "stalled_s": round(median[kind], 3),
            "slowed_s": round(median["slowed"] if kind == "background" else 0.0, 3),
            "step_s": round(median["step"], 3),
            "stalled ratio": round(median[kind] / median["blocking"], 3),
            "memory": round(peak_of_a_save(kind, layers, folder), 2),
        }
        for kind in ("old", "blocking", "background")
    ]


def peak_of_a_save(kind: str, layers: int, folder: Path) -> float:
    """Growth of the peak memory of a process of its own, in bytes a byte of the state."""
    receive, send = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_peak, args=(kind, layers, folder / f"peak-{kind}", send))
    process.start()
    grown = float(receive.recv())
    process.join()
    return grown


def _peak(kind: str, layers: int, folder: Path, send: Any) -> None:
    backend = make_backend(layers)
    store = CheckpointStore(folder, World(), background=kind == "background")
    before = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    if kind == "old":
        old_save(backend, folder / "state")
    else:
        with store:
            save(store, backend, 1)
    send.send((_status_mb("VmHWM") - before) / (backend.num_parameters * 12 / 1e6))


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = stalls(args.layers, args.tokens, args.rounds, Path(folder))
    show(rows, conditions(torch=torch.__version__, layers=args.layers, tokens=args.tokens))


if __name__ == "__main__":
    main()
