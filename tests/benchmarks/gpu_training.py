"""GPU measures of training: speed, MFU and memory by size; graphs and their breaks; saving."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from gpu_setting import Case, Figure, Setting
from real_lengths import draw_documents, pack, row_lengths
from torch import Tensor

from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import Backend, MicroBatch, ParallelConfig, build_backend
from mgpt.parallel.dist import World
from mgpt.parallel.recompute import compile_blocks
from mgpt.plan.memory import RankWork, plan_memory
from mgpt.plan.run import flops_per_token

STEP_TOKENS = 32_768
MFU_GOAL = 60.0
# Size, tokens of a row, lengths of its documents (None: one document), recompute, compile.
TRAINED: list[tuple[str, int, str | None, str, bool]] = [
    ("7b", 4096, None, "selective", True),
    ("7b", 16_384, "thirds", "full", True),
    ("7b", 4096, None, "selective", False),
    ("1b", 16_384, "thirds", "selective", True),
    ("1b", 16_384, "thirds", "none", False),
]
SMALL: list[tuple[str, int, str | None, str, bool]] = [
    ("debug", 256, None, "selective", False),
    ("debug", 256, "thirds", "full", False),
]
# Rows that pictures of each resolution fill best.
ROW_TOKENS = {"512": 29_696, "768": 30_848, "1024": 24_832}


class DrawnOnDevice(Transformer):
    """First weights of the same sizes, drawn on the device: a CPU takes minutes over 7B."""

    device = torch.device("cpu")

    def initial_rows(
        self, name: str, shape: tuple[int, ...], rows: tuple[int, int], seed: int
    ) -> Tensor:
        part = (rows[1] - rows[0], *shape[1:])
        if len(shape) == 1 or "_norm." in name:
            return torch.full(part, float(not name.endswith("bias")), device=self.device)
        return torch.randn(part, device=self.device) / shape[-1] ** 0.5


def _backend(cfg: TransformerConfig, parallel: ParallelConfig, setting: Setting) -> Backend:
    world = World(device=setting.device)

    def make() -> Transformer:
        model = DrawnOnDevice(cfg)
        model.device = setting.device
        return model

    return build_backend(parallel, make, OptimConfig(), world, 1e-5, 0, sharding_plan)


def _rows(cfg: TransformerConfig, row_tokens: int, which: str | None, number: int) -> MicroBatch:
    shorter = 1 if row_tokens > 1024 else 32
    lengths = [row_tokens]
    if which is not None:
        lengths = row_lengths(row_tokens, which, shorter, skip=100 * number)
    return pack(draw_documents(lengths, cfg.vocab_size), row_tokens)


def _step(backend: Backend, batches: list[MicroBatch]) -> Tensor:
    trained = sum(int((batch.labels_BT != -100).sum()) for batch in batches)
    nll = torch.zeros((), dtype=torch.float64, device=backend.device)
    for index, batch in enumerate(batches):
        sums = backend.forward_backward(batch, 1.0 / trained, last=index == len(batches) - 1)
        nll += sums.nll_sum
    backend.step(1e-5, 4.0)
    return nll / trained


def training(setting: Setting) -> Iterator[Case]:
    """Whole steps of fsdp2 on one card: rows through the model, clipping and update."""

    def figures(
        size: str, row_tokens: int, which: str | None, recompute: str, compiled: bool
    ) -> Iterable[Figure]:
        cfg = SIZES[size]
        parallel = ParallelConfig(
            name="fsdp2",
            dtype="bfloat16",
            recompute=recompute,  # type: ignore[arg-type]
            compile=compiled,
            reduce_each_micro_batch=True,
        )
        micro = max(1, (512 if setting.small else STEP_TOKENS) // row_tokens)
        work = RankWork(cfg, parallel, 1, row_tokens, micro, on_cpu=not setting.on_gpu)
        planned = plan_memory(work)
        backend = _backend(cfg, parallel, setting)
        batches = [_rows(cfg, row_tokens, which, number) for number in range(micro)]
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = setting.seconds(lambda: _step(backend, batches), repeats=3)
        yield from _speed(cfg, batches, seconds, setting)
        if setting.on_gpu:
            measured = torch.cuda.max_memory_allocated() / 1e9
            yield Figure.new("memory", measured, "GB", ceiling=planned.peak_bytes / 1e9)
        yield Figure.new("loss", float(_step(backend, batches)), "nats a token")

    for size, row_tokens, which, recompute, compiled in SMALL if setting.small else TRAINED:
        words = f"{size}, rows of {row_tokens}, {which or 'one document'}, recompute={recompute}"
        words += ", compiled" if compiled else ""
        yield words, partial(figures, size, row_tokens, which, recompute, compiled)


def _speed(
    cfg: TransformerConfig, batches: list[MicroBatch], seconds: float, setting: Setting
) -> Iterator[Figure]:
    """Tokens of documents a second, and the share of the peak that their operations are."""
    starts = torch.cat([batch.positions_BT.flatten() for batch in batches]) == 0
    ends = torch.cat([starts.nonzero().flatten(), torch.tensor([len(starts)])])
    lengths = ends.diff().double()
    trained = torch.cat([(batch.labels_BT != -100).flatten() for batch in batches])
    useful = torch.tensor([bool(part.any()) for part in trained.split(ends.diff().tolist())])
    tokens = float(lengths[useful].sum())
    mean = float(lengths[useful].square().sum()) / tokens
    yield Figure.new("speed", tokens / seconds, "tokens/s")
    if setting.bf16_tflops:
        peak = setting.bf16_tflops * 1e12
        for words, times in (("causal", 1), ("full", 2)):
            flops = flops_per_token(cfg, times * mean, head_only=False)
            share = 100 * flops * tokens / seconds / peak
            goal = MFU_GOAL if words == "causal" else None
            yield Figure.new(f"MFU, {words}", share, "%", goal=goal, ceiling=100.0)


def graphs(setting: Setting) -> Iterator[Case]:
    """Compiled blocks over the rows of three resolutions, three batches of each."""
    from torch._dynamo.utils import counters

    def figures() -> Iterable[Figure]:
        torch._dynamo.reset()
        counters.clear()
        cfg = SIZES["debug"] if setting.small else replace(SIZES["1b"], layers=4)
        dtype = torch.bfloat16 if setting.on_gpu else torch.float32
        plain, compiled = (Transformer(cfg) for _ in range(2))
        plain.init_weights(0)
        compiled.load_state_dict(plain.state_dict())
        for model in (plain, compiled):
            model.to(setting.device, dtype)
        compile_blocks(compiled, sharding_plan(compiled))
        apart = 0.0
        for which, row_tokens in ROW_TOKENS.items():
            for number in range(3):
                rows = _rows(cfg, 256 if setting.small else row_tokens, which, number)
                rows = rows.to(setting.device)
                hidden, expected = (
                    model(rows.ids_BT, rows.positions_BT) for model in (compiled, plain)
                )
                hidden.float().square().mean().backward()
                distance = (hidden - expected).detach().float().norm() / expected.float().norm()
                apart = max(apart, float(distance))
        yield Figure.new("graphs", float(counters["stats"]["unique_graphs"]), "", goal=3.0)
        yield Figure.new("breaks", float(sum(counters["graph_break"].values())), "", goal=0.0)
        yield Figure.new("hidden states", apart, "of the eager ones, at worst")

    yield "blocks of 512, 768 and 1024 px", figures


def saving(setting: Setting) -> Iterator[Case]:
    """What a checkpoint in the background costs the steps that go on meanwhile."""

    def figures(size: str, row_tokens: int) -> Iterable[Figure]:
        cfg = SIZES[size]
        backend = _backend(cfg, ParallelConfig(name="fsdp2", dtype="bfloat16"), setting)
        batches = [_rows(cfg, row_tokens, None, 0)]
        alone = setting.seconds(lambda: _step(backend, batches))
        setting.wait()
        began = time.perf_counter()
        snapshot = backend.snapshot(copy=True)
        stall = time.perf_counter() - began
        held = sum(piece.tensor.nbytes for piece in snapshot.pieces.values()) / 1e9
        yield Figure.new("stall", stall, "s", note=f"{held:.3g} GB to main memory")
        yield Figure.new("copy", held / stall, "GB/s")
        with tempfile.TemporaryDirectory() as folder:
            if shutil.disk_usage(folder).free < 1.5e9 * held:
                yield Figure.new("write", 0.0, "s", note="too little disk")
                return
            writer = threading.Thread(target=snapshot.write, args=(Path(folder),))
            began = time.perf_counter()
            writer.start()
            steps = _steps_while(writer, lambda: _step(backend, batches), setting)
            writer.join()
            yield Figure.new("write", time.perf_counter() - began, "s")
        if steps:
            yield Figure.new("step while writing", max(steps) / alone, "x alone, at worst")

    yield (
        "in the background",
        partial(figures, *(("debug", 256) if setting.small else ("1b", 8192))),
    )


def _steps_while(
    writer: threading.Thread, step: Callable[[], object], setting: Setting
) -> list[float]:
    durations = []
    while writer.is_alive():
        began = time.perf_counter()
        step()
        setting.wait()
        durations.append(time.perf_counter() - began)
    return durations
