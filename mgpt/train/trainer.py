"""The training loop: rows in, updates out, with a record, checkpoints and a way back.

One step reads this rank's micro-batches, runs them through the backend with one common scale,
1 / (trained tokens of the step on all ranks), and updates once. What a step does depends only on
its number: rows come from the loader by step, dropout is drawn from (seed, step, rank,
micro-batch), the learning rate is a function of the step. So a run that is continued from a
checkpoint repeats what an undisturbed one does, bit for bit at the same number of ranks.

The trainer knows no model, no task and no picture; `pictures` is a hook that the stage passes in.

    >>> trainer = Trainer(cfg, backend=backend, loader=loader, store=store, world=world,
    ...                   tracker=tracker, vocab=vocab, seed=0, config_yaml=text)
    >>> outcome = trainer.run()
    >>> isinstance(outcome, Finished), outcome.metrics["val/loss"]
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mgpt.data.loader import EndOfData, RowLoader, StepRows
from mgpt.errors import TrainingError
from mgpt.optim.config import OptimConfig
from mgpt.optim.schedule import ScheduleConfig, learning_rate
from mgpt.parallel.backend import Backend
from mgpt.parallel.dist import World
from mgpt.stop_signals import StopSignals
from mgpt.tracking.tracker import Tracker
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.gradients import accumulate
from mgpt.train.guard import GuardConfig, SlowRanks
from mgpt.train.hang import HangWatch, find_peers
from mgpt.train.metrics import LossTally, MetricsRecord, VocabularyLike, memory_mb
from mgpt.train.reports import RankReport, StepReport, meet
from mgpt.train.resume import Change, check_resumable
from mgpt.train.run_state import RunState, check_optimizer
from mgpt.train.step_folder import StepFolder
from mgpt.train.validate import HeldOut

__all__ = ["Finished", "Interrupted", "Pictures", "TrainConfig", "Trainer"]

Pictures = Callable[[int, dict[str, Tensor]], None]
"""Called on rank 0 with the step and the full weights."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Steps are fixed numbers; nothing here is decided by the clock."""

    steps: int = 0
    """Updates in all; raise it to continue a finished run. 0: as epochs says."""
    epochs: float | None = None
    """Instead of steps: passes over every sample of every task, at most max_epochs of its source.
    The steps follow, and are printed."""
    save_every: int = 500
    """Steps between checkpoints; one more is made at the end."""
    keep: int = 2
    """Newest checkpoints that stay."""
    keep_every: int = 0
    """Checkpoints after each multiple of so many steps stay for ever; 0: none."""
    async_save: bool = True
    """Training goes on while a checkpoint is written, for a copy of a rank's part of it in main
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
    """On attention and MLP outputs: 0.05 in 7B's fine-tuning, 0.1 in its pretraining."""
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
    """A signal came; everything up to this step is saved, and a new start goes on from there."""

    step: int
    signal: str


class _Done(NamedTuple):
    """What became of a step: the signal that came to any rank, the figure that leapt."""

    figures: dict[str, Any]
    signal: str | None
    leapt: str | None


class Trainer:
    """Trains to `cfg.steps`, from wherever this run folder stands.

    Args:
        cfg: the run.
        backend: the model, freshly initialised.
        loader: rows by step.
        store: this run folder's checkpoints; metrics.jsonl stands beside them.
        micro_rows: rows a rank takes at once.
        seed: of dropout.
        config_yaml, vq_fingerprint: the resolved configuration, and the VQGAN of the picture
            codes; kept with each checkpoint.
        init_from: (name, full tensor) pairs and where they come from, for a start without a
            checkpoint; None starts from the initialised weights.
        held_out: rows for validation.
        pictures: see `Pictures`.
        changes_since: the settings that differ from those a checkpoint was made with.
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
        """Trains until the last step is saved, or until a signal comes.

        Raises:
            TrainingError: superseded by a later start, or too many updates that cannot be made.
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
                earlier = self._go_back(step, done)
                if earlier is not None:
                    bar.advance(earlier - step)
                    step = earlier
                    continue
                step += 1
                watch.feed(f"what follows step {step}")
                figures = done.figures
                if self._due(step, cfg.validate_every) and step < cfg.steps:
                    figures |= self._validate()
                self._record.write({"step": step, **figures})
                if self._due(step, cfg.log_every) or step == cfg.steps:
                    drawn = self.loader.figures(self._state.loader_step(step))
                    self.tracker.log(step, figures | drawn)
                bar.advance(1, loss=figures["loss"])
                if self._due(step, cfg.save_every) or done.signal or step == cfg.steps:
                    self._save(step)
                if done.signal or step == cfg.steps:
                    self.store.wait()
                if self._due(step, cfg.pictures_every):
                    self._show_pictures(step)
                if done.signal and step < cfg.steps:
                    return Interrupted(step, done.signal)
        return Finished(step, self._final_metrics(step))

    def _start(self) -> int:
        """The first step: after the newest checkpoint, or 0 with the given or the fresh weights."""
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
        """Makes everything what it was after a checkpoint's step."""
        state = check_resumable(saved, self.vocab, self.cfg.steps)
        check_optimizer(saved, self.cfg.optim.kind)
        self.backend.load(saved.state)
        self.loader.load_state(saved.loader_state())
        self._state.load(state, self._changes_since(saved))
        self._record.cut(saved.step)

    def _go_back(self, step: int, done: _Done) -> int | None:
        """Answers a leap with the newest checkpoint, where one is there; returns its step."""
        if done.leapt is None or self.cfg.guard.on_spike != "rollback":
            return None
        newest = self.store.newest_whole(self.tracker.print)
        if newest is None:
            return None
        words = self._state.go_back(step + 1, newest.step, done.leapt, done.figures[done.leapt])
        self._restore(newest)
        self.tracker.print(words)
        return newest.step

    def _train_step(self, step: int, signals: StopSignals) -> _Done:
        """One update, unless something forbids it."""
        backend, cfg = self.backend, self.cfg
        began = time.perf_counter()
        backend.own_time.start()
        share = (backend.dp_rank, backend.dp_size, self._micro_rows)
        rows = self.loader.read_step(self._state.loader_step(step), *share)
        wait_s = time.perf_counter() - began
        nll_sum, z_sum = accumulate(backend, rows, self._tally, self._seed, step)
        own = RankReport(
            nll_sum,
            z_sum,
            self._tally.take(),
            signals.received,
            self.store.must_end(),
            wait_s,
            backend.own_time.seconds(),
            memory_mb(backend.device),
        )
        report = meet(self.world, own)
        self._check(step, rows, report)
        loss = report.nll_sum / max(1, rows.trained_tokens)
        lr = learning_rate(cfg.schedule, step, cfg.steps, cfg.optim.lr)
        grad_norm, updated = backend.step(lr, cfg.optim.max_norm, self._state.guard.limit(loss))
        leapt = self._state.guard.note(step + 1, loss, grad_norm, updated)
        step_s = time.perf_counter() - began
        self._state.count(rows)
        figures = {
            "loss": loss,
            "z": report.z_sum / max(1, rows.trained_tokens),
            **self._tally.figures(report.cells),
            "lr": lr,
            "grad_norm": grad_norm,
            "updated": int(updated),
            "spike": int(leapt is not None),
            **self._state.figures(),
            "tokens_per_s": rows.tokens / step_s,
            "data_wait_s": max(report.wait_s),
            "step_s": step_s,
            "memory_mb": max(report.memory_mb),
            **self._slow_ranks.figures(report.own_s, step_s),
        }
        return _Done(figures, report.signal, leapt)

    def _check(self, step: int, rows: StepRows, report: StepReport) -> None:
        if report.must_end:
            self.store.end()
        trained = LossTally.trained(report.cells)
        if trained != rows.trained_tokens:
            raise TrainingError(
                f"step {step + 1}: the labels hold {trained} trained tokens, the lengths promised "
                f"{rows.trained_tokens}; rebuild the lengths with mgpt reindex"
            )

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0

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
        """Figures that do not depend on interruptions, whichever attempt computes them."""
        rows = self._record.rows() if self.world.is_main else []
        tail = [row["loss"] for row in rows[-50:] if row["loss"] is not None]
        figures = {
            "steps": step,
            "loss": sum(tail) / len(tail) if tail else math.nan,
            **self._state.figures(),
            "weights_checksum": self.backend.weights_checksum(),
            **self._validate(),
        }
        return self.world.broadcast_object(figures)
