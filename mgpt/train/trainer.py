"""The training loop: read rows, compute gradients, update; record, checkpoint, roll back, resume.

One step reads this rank's micro-batches, runs each forward and backward with one scale,
1 / (trained tokens of the step on all ranks), and updates once. A step depends on its number alone:
the loader finds rows by step, dropout is drawn from (seed, step, rank, micro-batch), the learning
rate is a function of the step. So a run that resumes from a checkpoint repeats an undisturbed one,
bit for bit at the same number of ranks.

The trainer knows no model, no task and no picture; `pictures` is a hook that the stage passes in.

    >>> trainer = Trainer(cfg, backend=backend, loader=loader, store=store, world=world,
    ...                   tracker=tracker, vocab=vocab, micro_rows=1, seed=0, config_yaml=text)
    >>> outcome = trainer.run()
    >>> isinstance(outcome, Finished), outcome.metrics["val/loss"]
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgpt.data.loader import EndOfData, RowLoader
from mgpt.data.rows import StepRows
from mgpt.errors import TrainingError
from mgpt.optim.config import OptimConfig
from mgpt.optim.schedule import ScheduleConfig, learning_rate
from mgpt.parallel.backend import Backend, MicroBatch
from mgpt.parallel.dist import World
from mgpt.stop_signals import StopSignals
from mgpt.tracking.tracker import Tracker
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.guard import GuardConfig, SlowRanks
from mgpt.train.hang import HangWatch, find_peers
from mgpt.train.metrics import (
    LossTally,
    MetricsRecord,
    RankStep,
    VocabularyLike,
    all_reduce_step,
    memory_mb,
)
from mgpt.train.run_state import Change, RunState, resumable_state
from mgpt.train.step_folder import StepFolder
from mgpt.train.validate import HeldOut

__all__ = ["Finished", "Interrupted", "Pictures", "TrainConfig", "Trainer"]

Pictures = Callable[[int, dict[str, Tensor]], None]
"""Called on rank 0 with the step and the full weights."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Steps are fixed numbers; nothing here is decided by the clock."""

    steps: int = 0
    """Total number of updates; raise it to continue a finished run. 0: epochs decides."""
    epochs: float | None = None
    """Instead of steps: passes over every sample of every task, at most max_epochs of its source.
    The number of steps is derived and printed."""
    save_every: int = 500
    """Steps between checkpoints; the last step is saved as well."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Keep every checkpoint whose step is a multiple of this; 0: none."""
    async_save: bool = True
    """Write checkpoints in the background, at the cost of a copy of each rank's part in main
    memory."""
    log_every: int = 10
    """Steps between lines on the console and in the tracker; metrics.jsonl has every step."""
    validate_every: int = 0
    """Steps between validations; 0: at the end only."""
    pictures_every: int = 0
    """Steps between sample pictures; 0: none."""
    z_loss: float = 1e-5
    """Coefficient of the mean of logsumexp² over trained tokens; without it the logits grow."""
    dropout: float = 0.0
    """Dropout of attention and MLP outputs; 7B's is 0.05 in fine-tuning, 0.1 in pretraining."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        if (self.steps == 0) == (self.epochs is None) or self.steps < 0 or (self.epochs or 1) <= 0:
            asked = f"steps={self.steps} epochs={self.epochs}"
            raise ValueError(f"{asked}: give one of the two, above 0")
        for name in ("save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("keep_every", "validate_every", "pictures_every", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")


@dataclass(frozen=True)
class Finished:
    """All steps are done and saved."""

    step: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Interrupted:
    """A signal ended the run; everything up to this step is saved, and the next start resumes."""

    step: int
    signal: str


class _Done(NamedTuple):
    """The outcome of a step: its metrics, the signal received by any rank, and what spiked."""

    metrics: dict[str, Any]
    signal: str | None
    spiked: str | None


class Trainer:
    """Trains to `cfg.steps`, from the newest checkpoint of the run folder if there is one.

    Args:
        cfg: the run.
        backend: the model, freshly initialized.
        loader: rows by step.
        store: the run folder's checkpoints; metrics.jsonl is beside them.
        micro_rows: rows of a micro-batch.
        seed: key of dropout.
        config_yaml, vq_fingerprint: the resolved configuration, and the VQGAN of the picture
            codes; saved with each checkpoint.
        init_from: (name, full tensor) pairs and their origin, for a start without a checkpoint;
            None starts from the initialized weights.
        held_out: rows for validation.
        pictures: see `Pictures`.
        changes_since: returns the settings that differ from those of a checkpoint.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        *,
        backend: Backend,
        loader: RowLoader,
        store: CheckpointStore,
        world: World,
        tracker: Tracker,
        vocab: VocabularyLike,
        micro_rows: int,
        seed: int,
        config_yaml: str = "",
        init_from: tuple[Iterable[tuple[str, Tensor]], str] | None = None,
        held_out: HeldOut | None = None,
        pictures: Pictures | None = None,
        changes_since: Callable[[StepFolder], Sequence[Change]] = lambda saved: (),
        vq_fingerprint: str | None = None,
    ) -> None:
        self.cfg, self.backend, self.loader, self.store = cfg, backend, loader, store
        self.world, self.tracker, self.vocab = world, tracker, vocab
        self._micro_rows, self._seed, self._config_yaml = micro_rows, seed, config_yaml
        self._init_from, self._held_out, self._pictures = init_from, held_out, pictures
        self._changes_since, self._vq_fingerprint = changes_since, vq_fingerprint
        self._record = MetricsRecord(Path(store.run_folder) / "metrics.jsonl", world.is_main)
        self._tally = LossTally(loader.source_names, loader.task_names, vocab, backend.device)
        self._state = RunState(cfg.guard, Path(store.run_folder), world)
        self._peers = find_peers(world)
        hosts = [peer.host for peer in self._peers]
        self._slow_ranks = SlowRanks(cfg.guard, hosts, tracker.print)

    def run(self) -> Finished | Interrupted:
        """Trains until the last step is saved, or until a signal arrives.

        Raises:
            TrainingError: a later start has taken over, or too many updates were skipped.
            CheckpointError, VocabularyError, DataError: this run's checkpoint does not fit it.
        """
        cfg = self.cfg
        step = self._start()
        self.tracker.fill(self._record.rows, cfg.log_every)
        watch = HangWatch(cfg.guard.hang_s, self.world.rank, self._peers)
        with (
            watch,
            StopSignals(self.world.is_main) as signals,
            self.store,
            self.tracker.progress(cfg.steps, "steps", "train", done=step) as bar,
        ):
            while step < cfg.steps:
                watch.feed(f"step {step + 1}")
                try:
                    done = self._train_step(step, signals)
                except EndOfData as end:
                    self.tracker.print(f"{end}; the run ends there, of {cfg.steps} steps asked for")
                    self._save(step)
                    break
                rolled_back_to = self._roll_back(step, done)
                if rolled_back_to is not None:
                    bar.advance(rolled_back_to - step)
                    step = rolled_back_to
                    continue
                step, is_last = step + 1, step + 1 == cfg.steps
                watch.feed(f"what follows step {step}")
                metrics = done.metrics
                if _is_due(step, cfg.validate_every) and not is_last:
                    metrics |= self._validate()
                self._record.write({"step": step, **metrics})
                if _is_due(step, cfg.log_every) or is_last:
                    drawn = self.loader.figures(self._state.loader_step(step))
                    self.tracker.log(step, metrics | drawn)
                bar.advance(1, loss=metrics["loss"])
                if _is_due(step, cfg.save_every) or done.signal or is_last:
                    self._save(step)
                if done.signal or is_last:
                    self.store.wait()
                if _is_due(step, cfg.pictures_every):
                    self._show_pictures(step)
                if done.signal and not is_last:
                    return Interrupted(step, done.signal)
        return Finished(step, self._final_metrics(step))

    def _train_step(self, step: int, signals: StopSignals) -> _Done:
        """Rows, gradients, one all-reduce of the step's sums, one update if the guard allows."""
        backend, cfg, state = self.backend, self.cfg, self._state
        began = time.perf_counter()
        backend.own_time.start()
        share = (backend.dp_rank, backend.dp_size, self._micro_rows)
        rows = self.loader.read_step(state.loader_step(step), *share)
        wait_s = time.perf_counter() - began
        nll_sum, z_sum = self._forward_backward(rows, step)
        own = RankStep(
            nll_sum,
            z_sum,
            self._tally.take(),
            signals.received,
            self.store.must_end(),
            wait_s,
            backend.own_time.seconds(),
            memory_mb(backend.device),
        )
        totals = all_reduce_step(self.world, own)
        if totals.must_end:
            self.store.end()
        _check_trained_tokens(step, rows, totals.cells)
        loss = totals.nll_sum / max(1, rows.trained_tokens)
        lr = learning_rate(cfg.schedule, step, cfg.steps, cfg.optim.lr)
        grad_norm, updated = backend.step(lr, cfg.optim.max_norm, state.guard.limit(loss))
        spiked = state.guard.note(step + 1, loss, grad_norm, updated)
        step_s = time.perf_counter() - began
        state.count(rows)
        metrics = {
            "loss": loss,
            "z": totals.z_sum / max(1, rows.trained_tokens),
            **self._tally.figures(totals.cells),
            "lr": lr,
            "grad_norm": grad_norm,
            "updated": int(updated),
            "spike": int(spiked is not None),
            **state.figures(),
            "tokens_per_s": rows.tokens / step_s,
            "data_wait_s": max(totals.wait_s),
            "step_s": step_s,
            "memory_mb": max(totals.memory_mb),
            **self._slow_ranks.figures(totals.own_s, step_s),
        }
        return _Done(metrics, totals.signal, spiked)

    def _forward_backward(self, rows: StepRows, step: int) -> tuple[float, float]:
        """Accumulates the gradients of this rank's micro-batches.

        Returns this rank's sums, over trained tokens, of the losses in nats and of logsumexp².
        """
        backend, scale = self.backend, 1.0 / max(1, rows.trained_tokens)
        sums = torch.zeros(2, dtype=torch.float64, device=backend.device)
        for index, micro in enumerate(rows.micro):
            torch.manual_seed(_dropout_seed(self._seed, step, backend.dp_rank, index))
            batch = MicroBatch.from_rows(micro, backend.device)
            is_last = index == len(rows.micro) - 1
            micro_sums = backend.forward_backward(batch, scale, is_last)
            sums += torch.stack([micro_sums.nll_sum, micro_sums.z_sum]).double()
            self._tally.add(micro_sums.token_nll_BT, micro)
        nll_sum, z_sum = sums.tolist()
        return nll_sum, z_sum

    def _start(self) -> int:
        """The first step: after the newest checkpoint, or 0 from given or fresh weights."""
        self.store.require_space(self.backend.checkpoint_bytes, self.cfg.steps)
        newest = self.store.newest_whole(self.tracker.print)
        if newest is not None:
            self._restore(newest)
            self.tracker.print(f"resuming from {newest.path}")
            for change in self._changes_since(newest):
                self.tracker.print(str(change))
            return newest.step
        self._record.cut(0)
        if self._init_from is None:
            self.tracker.print("starting from fresh weights")
        else:
            weights, origin = self._init_from
            self.backend.load_weights(weights)
            self.tracker.print(f"starting from the weights of {origin}")
        return 0

    def _restore(self, saved: StepFolder) -> None:
        """Restores model, optimizer, data position, run state and record from a checkpoint."""
        state = resumable_state(saved, self.vocab, self.cfg.optim.kind, self.cfg.steps)
        self.backend.load(saved.state)
        self.loader.load_state(saved.loader_state())
        self._state.load(state, self._changes_since(saved))
        self._record.cut(saved.step)

    def _roll_back(self, step: int, done: _Done) -> int | None:
        """On a spike, restores the newest checkpoint if there is one; returns its step."""
        if done.spiked is None or self.cfg.guard.on_spike != "rollback":
            return None
        newest = self.store.newest_whole(self.tracker.print)
        if newest is None:
            return None
        value = done.metrics[done.spiked]
        told = self._state.roll_back(step + 1, newest.step, done.spiked, value)
        self._restore(newest)
        self.tracker.print(told)
        return newest.step

    def _save(self, step: int) -> None:
        self._record.sync()
        trainer_state = {
            "step": step,
            "seed": self._seed,
            "vocabulary": self.vocab.fingerprint,
            "optimizer": self.cfg.optim.kind,
            "vq_fingerprint": self._vq_fingerprint,
            **self._state.state(),
        }
        loader_state = self.loader.state(self._state.loader_step(step))
        self.store.save(
            step, self.backend, loader_state, trainer_state, self._config_yaml, self.vocab
        )

    def _validate(self) -> dict[str, float]:
        if self._held_out is None:
            return {}
        return self._held_out.validate(self.backend, self.world)

    def _show_pictures(self, step: int) -> None:
        if self._pictures is None:
            return
        with self.backend.averaged_weights():
            weights = self.backend.full_weights()
        if self.world.is_main:
            self._pictures(step, weights)
        self.world.barrier()

    def _final_metrics(self, step: int) -> dict[str, Any]:
        """Metrics of the whole run, the same however often it was interrupted."""
        rows = self._record.rows() if self.world.is_main else []
        tail = [row["loss"] for row in rows[-50:] if row["loss"] is not None]
        metrics = {
            "steps": step,
            "loss": sum(tail) / len(tail) if tail else math.nan,
            **self._state.figures(),
            "weights_checksum": self.backend.weights_checksum(),
            **self._validate(),
        }
        return self.world.broadcast_object(metrics)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_trained_tokens(step: int, rows: StepRows, cells: Sequence[float]) -> None:
    trained = LossTally.trained(cells)
    if trained != rows.trained_tokens:
        raise TrainingError(
            f"step {step + 1}: the labels have {trained} trained tokens, the lengths "
            f"{rows.trained_tokens}; rebuild the lengths with mgpt reindex"
        )


def _dropout_seed(seed: int, step: int, rank: int, micro: int) -> int:
    key = hashlib.sha256(f"dropout:{seed}:{step}:{rank}:{micro}".encode()).digest()
    return int.from_bytes(key[:8], "little") >> 1
