"""Training runs over real gloo processes, for the tests of backends, resuming and checkpoints.

Imported, it makes a small corpus (`make_corpus`) and does runs (`run_ranks`). As a script it is one
rank, which does the given runs one after another with the real loader, model, backends and trainer.

    corpus = make_corpus(folder)
    run_ranks([Run(corpus, folder / "a", backend="fsdp2", steps=4)], size=2)
"""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CAPTIONS = [
    f"a {size} {colour} {shape} {place}"
    for size in ("large", "small")
    for colour in ("red", "green", "blue")
    for shape in ("cube", "sphere", "cone")
    for place in ("on the left", "on the right behind a wall")
]
NUM_CODES = 64
ROW_TOKENS = 128
STEP_ROWS = 5  # leaves one rank of two with an empty row at two rows a micro-batch


@dataclass(frozen=True)
class Run:
    """One training run; paths as text, since it travels as JSON."""

    corpus: str
    folder: str
    backend: str = "single"
    steps: int = 6
    save_every: int = 3
    async_save: bool = True
    validate_every: int = 0
    micro_rows: int = 2
    dropout: float = 0.0
    recompute: str = "none"
    dtype: str = "float32"
    gather: str = "block"
    reduce_each_micro_batch: bool = False
    parallel: dict[str, Any] = field(default_factory=dict)
    """Further fields of ParallelConfig."""
    lr: float = 1e-3
    optim: dict[str, Any] = field(default_factory=dict)
    """Further fields of OptimConfig."""
    warmup_steps: int = 0
    schedule: str = "constant"
    seed: int = 0
    init_from: str = ""
    """A step folder to take weights from."""
    continue_from: str = ""
    """A step folder that is copied into `folder` before the start, as if it had been made there."""
    poison: tuple[int, ...] = ()
    """Steps in which the last rank's loss is not a number."""
    poison_loss: tuple[int, ...] = ()
    """Steps in which the last rank's loss is reported as not a number, its gradients being fine."""
    leaps: tuple[tuple[int, float, float], ...] = ()
    """(loader's step, factor of the loss, factor of the gradients): rows that make them leap."""
    sleep_s: float = 0.0
    """The last rank sleeps so long before each micro-batch."""
    hang: tuple[int, str] | None = None
    """Step in which the last rank hangs, and how: `stop` (SIGSTOP), `loop` or `lock`."""
    die_at: int = 0
    """Update after which every rank kills itself."""
    max_skipped: int = 8
    head_rows: tuple[int, int] | None = None
    """Only these rows of the head train."""
    weight_decay: float = 0.1
    die_in_save: int = 0
    """Step in whose save rank 0 kills itself, after the state is written."""
    signal_at: int = 0
    """Step during which rank 0 sends itself SIGTERM."""
    signal_after: tuple[float, int] | None = None
    """Seconds after its first step in which a rank, by its number, gets SIGUSR1."""
    guard: dict[str, Any] = field(default_factory=dict)
    """Further fields of GuardConfig."""
    held_out_rows: int = 3


def make_corpus(
    folder: Path,
    samples: int = len(CAPTIONS),
    drawn_codes: int = NUM_CODES,
    sides: tuple[int, ...] = (2, 4),
) -> str:
    """Tokenised shards with captions and random codes of 2x2 to 4x4, and their vocabulary.

    Args:
        samples: in all; captions come again with other codes.
        drawn_codes: codes are drawn from the first so many.
        sides: of grids.
    """
    import numpy as np

    from mgpt.data.shards import ShardWriter, TokenisedSample
    from mgpt.tokens.text import SentencePieceText, train_sentencepiece
    from mgpt.tokens.vocab import scratch_vocabulary

    rng = np.random.default_rng(0)
    with ShardWriter(folder / "32", "00000") as writer:
        for index in range(samples):
            caption = CAPTIONS[index % len(CAPTIONS)]
            height, width = rng.choice(sides, size=2)
            codes = rng.integers(0, drawn_codes, (height, width)).astype(np.uint16)
            meta = {"caption": caption, "width": int(width) * 8, "height": int(height) * 8}
            writer.add(TokenisedSample(f"{index:06d}", meta, {"image": codes}))
        writer.close(
            {
                "raw": {"name": "00000.tar", "sha256": "0" * 64},
                "rejected": [],
                "resolution_px": 32,
                "latent_px": 8,
                "num_codes": NUM_CODES,
                "vq_fingerprint": "0" * 16,
                "settings_fingerprint": "0" * 16,
            }
        )
    model = train_sentencepiece(CAPTIONS, folder / "text.model", num_pieces=300)
    scratch_vocabulary(SentencePieceText(model), NUM_CODES, max_grids=4).save(folder / "vocab")
    return str(folder)


def run_ranks(runs: list[Run], size: int = 1, timeout_s: float = 250.0) -> None:
    """Does the runs on `size` processes, in this one where that is enough.

    Fails with the ranks' output where one of them fails.
    """
    if size == 1 and not any(run.die_in_save or run.die_at or run.hang for run in runs):
        from mgpt.parallel.dist import World

        for run in runs:
            train(run, World())
        return
    specs = json.dumps([dataclasses.asdict(run) for run in runs])
    codes, logs = start_ranks([__file__, specs], size, timeout_s)
    assert codes == [0] * size, f"exit codes {codes}\n" + "\n".join(logs)


def start_ranks(
    arguments: list[str], size: int, timeout_s: float = 250.0
) -> tuple[list[int], list[str]]:
    """Runs `python *arguments` on `size` ranks; returns their exit codes and what they wrote.

    Ranks that are late are killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, logs = [], []
    for rank in range(size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        command = [sys.executable, *arguments]
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        logs.append(log)
    deadline = time.monotonic() + timeout_s
    texts = []
    for process, log in zip(processes, logs, strict=True):
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.seek(0)
        texts.append(log.read().decode(errors="replace"))
        log.close()
    return [process.returncode for process in processes], texts


def metrics_of(folder: str | Path) -> list[dict[str, Any]]:
    """The recorded steps without what the clock and the machine decide."""
    measured = {"tokens_per_s", "data_wait_s", "step_s", "memory_mb", "slow_rank"}
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in measured}
        for line in lines
    ]


def train(run: Run, world: Any) -> None:
    """One run on this rank; rank 0 leaves `outcome.json` in its folder."""
    from mgpt.data.loader import RowLoader, held_out_rows
    from mgpt.data.source import DataConfig, SourceConfig
    from mgpt.tokens.vocab import Vocabulary
    from mgpt.tracking.tracker import Tracker, TrackingConfig
    from mgpt.train.checkpoint import CheckpointStore
    from mgpt.train.metrics import LossTally
    from mgpt.train.step_folder import export_weights, newest_complete
    from mgpt.train.trainer import Trainer
    from mgpt.train.validate import HeldOut

    vocab = Vocabulary.load(Path(run.corpus) / "vocab")
    source = SourceConfig(f"{run.corpus}/32", {"text_to_image": 2.0, "caption": 1.0})
    data = DataConfig({"scenes": source}, ROW_TOKENS, STEP_ROWS, 0.3, window_documents=32)
    loader = RowLoader(data, vocab, run.seed)
    cfg = _train_config(run)
    backend = _backend(run, cfg, vocab.size, world)
    if run.continue_from and world.is_main:
        step = Path(run.continue_from)
        shutil.copytree(step, Path(run.folder) / step.name)
    world.barrier()
    store = CheckpointStore(
        Path(run.folder), world, cfg.keep, cfg.keep_every, background=cfg.async_save
    )
    _misbehave(run, backend, loader, world)
    tracking, folder = TrackingConfig("disabled"), store.run_folder
    init_from = None
    if run.init_from:
        init_from = (export_weights(Path(run.init_from)).items(), run.init_from)
    try:
        outcome = Trainer(
            cfg,
            backend=backend,
            loader=loader,
            store=store,
            world=world,
            tracker=Tracker(tracking, folder, "test", is_main=world.is_main, record=False),
            vocab=vocab,
            micro_rows=run.micro_rows,
            seed=run.seed,
            config_yaml="model: test\n",
            init_from=init_from,
            held_out=HeldOut(
                held_out_rows(data, vocab, 7, run.held_out_rows),
                run.micro_rows,
                LossTally(loader.source_names, loader.task_names, vocab, backend.device),
            ),
        ).run()
    finally:
        loader.close()
    if world.is_main:
        result = {"kind": type(outcome).__name__, **dataclasses.asdict(outcome)}
        (folder / "outcome.json").write_text(json.dumps(result))
        newest = newest_complete(folder)
        with open(folder / "ends.jsonl", "a") as ends:
            end = {"kind": result["kind"], "step": outcome.step, "newest": newest and newest.step}
            ends.write(json.dumps(end) + "\n")


def _train_config(run: Run) -> Any:
    from mgpt.optim.config import OptimConfig
    from mgpt.optim.schedule import ScheduleConfig
    from mgpt.train.guard import GuardConfig
    from mgpt.train.trainer import TrainConfig

    return TrainConfig(
        steps=run.steps,
        save_every=run.save_every,
        async_save=run.async_save,
        validate_every=run.validate_every,
        keep=20,
        z_loss=1e-4,
        optim=OptimConfig(
            **{"lr": run.lr, "max_norm": 1.0, "weight_decay": run.weight_decay, **run.optim}
        ),
        schedule=ScheduleConfig(run.schedule, run.warmup_steps),
        guard=GuardConfig(**{"max_skipped": run.max_skipped, **run.guard}),
    )


def _backend(run: Run, cfg: Any, vocab_size: int, world: Any) -> Any:
    from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
    from mgpt.parallel.backend import ParallelConfig, build_backend

    model = TransformerConfig(
        hidden=64,
        ffn=96,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocab_size=vocab_size,
        dropout=run.dropout,
    )
    parallel = ParallelConfig(
        name=run.backend,
        micro_rows=run.micro_rows,
        recompute=run.recompute,
        dtype=run.dtype,
        gather=run.gather,
        reduce_each_micro_batch=run.reduce_each_micro_batch,
        **run.parallel,
    )

    def make() -> Transformer:
        made = Transformer(model)
        return made.train_head_rows(*run.head_rows) if run.head_rows else made

    return build_backend(parallel, make, cfg.optim, world, cfg.z_loss, run.seed, sharding_plan)


def _misbehave(run: Run, backend: Any, loader: Any, world: Any) -> None:
    """Puts the faults that a run asks for around the real methods."""
    _misbehave_in_rows(run, backend, loader, world)
    forward_backward, step, snapshot = backend.forward_backward, backend.step, backend.snapshot
    done = 0

    def poisoned(batch: Any, scale: float, last: bool) -> Any:
        bad = done in run.poison and world.rank == world.size - 1
        if last and done + 1 == run.signal_at and world.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward_backward(batch, float("nan") if bad else scale, last)

    def counted(lr: float, max_norm: float, limit: float) -> Any:
        nonlocal done
        done += 1
        made = step(lr, max_norm, limit)
        if done == run.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    def deadly(copy: bool) -> Any:
        taken = snapshot(copy)
        if done != run.die_in_save or not world.is_main:
            return taken
        write = taken.write
        # The snapshot is frozen for whoever is not a test.
        object.__setattr__(
            taken, "write", lambda folder: (write(folder), os.kill(os.getpid(), signal.SIGKILL))
        )
        return taken

    backend.forward_backward, backend.step, backend.snapshot = poisoned, counted, deadly


def _misbehave_in_rows(run: Run, backend: Any, loader: Any, world: Any) -> None:
    """Faults of some rows, and those of the last rank while it works on them."""
    forward_backward, read_step = backend.forward_backward, loader.read_step
    leaps = {step: factors for step, *factors in run.leaps}
    reads, reading = 0, 0

    def noted(step: int, *share: int) -> Any:
        nonlocal reads, reading
        reads, reading = reads + 1, step
        if reads == 1 and run.signal_after and run.signal_after[1] == world.rank:
            alarm = threading.Timer(
                run.signal_after[0], os.kill, (os.getpid(), signal.SIGUSR1.value)
            )
            alarm.daemon = True
            alarm.start()
        return read_step(step, *share)

    def faulty(batch: Any, scale: float, last: bool) -> Any:
        if world.rank == world.size - 1:
            if run.sleep_s:
                time.sleep(run.sleep_s)
            if run.hang and reads == run.hang[0]:
                _hang(run.hang[1])
        of_loss, of_gradients = leaps.get(reading, (1.0, 1.0))
        sums = forward_backward(batch, scale * of_gradients, last)
        if reads - 1 in run.poison_loss and world.rank == world.size - 1:
            of_loss = float("nan")
        return sums._replace(nll_sum=sums.nll_sum * of_loss)

    loader.read_step, backend.forward_backward = noted, faulty


def _hang(how: str) -> None:
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    else:
        while True:
            pass


def main() -> None:
    from mgpt.parallel.dist import init_distributed

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # one that comes between two runs
    world = init_distributed(timeout_s=120.0)
    for spec in json.loads(sys.argv[1]):
        train(Run(**spec), world)
    world.shutdown()


if __name__ == "__main__":
    main()
