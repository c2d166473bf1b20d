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

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgpt.data.loader import RowLoader, Rows, StepRows
from mgpt.errors import TrainingError, VocabularyError
from mgpt.parallel.backend import Backend, MicroBatch
from mgpt.parallel.dist import World
from mgpt.tracking.tracker import Tracker
from mgpt.train.checkpoint import CheckpointStore
from mgpt.train.guard import GuardConfig, NonFiniteGuard, SpikeWatch, StopSignals, slowest_rank
from mgpt.train.metrics import LossTally, MetricsRecord, VocabularyLike, memory_mb
from mgpt.train.optim import OptimConfig
from mgpt.train.schedule import ScheduleConfig, learning_rate
from mgpt.train.validate import HeldOut

__all__ = ["Finished", "Interrupted", "Pictures", "TrainConfig", "Trainer"]

Pictures = Callable[[int, dict[str, Tensor]], None]
"""Called on rank 0 with the step and the full weights."""
_FENCE_EVERY_S = 30.0


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Steps are fixed numbers; nothing here is decided by the clock."""

    steps: int
    """Updates in all; a run that is continued goes on to this number."""
    save_every: int = 500
    """Steps between checkpoints; one more is made at the end."""
    keep: int = 2
    """Newest checkpoints that stay."""
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
        for name in ("steps", "save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("validate_every", "pictures_every", "z_loss"):
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


class Trainer:
    """Trains to `cfg.steps`, from wherever this run folder stands.

    Args:
        cfg: the run.
        backend: the model, freshly initialised.
        loader: rows by step.
        store: this run folder's checkpoints; metrics.jsonl stands beside them.
        micro_rows: rows a rank takes at once.
        seed: of dropout.
        config_yaml: the resolved configuration, kept with each checkpoint.
        init_from: (name, full tensor) pairs and where they come from, for a start without a
            checkpoint; None starts from the initialised weights.
        held_out: rows for validation.
        pictures: see `Pictures`.
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
    ) -> None:
        self.cfg, self.backend, self.loader, self.store = cfg, backend, loader, store
        self.world, self.tracker, self.vocab = world, tracker, vocab
        self._micro_rows, self._seed, self._config_yaml = micro_rows, seed, config_yaml
        self._init_from, self._held_out, self._pictures = init_from, held_out, pictures
        self._record = MetricsRecord(Path(store.run_folder) / "metrics.jsonl", world.is_main)
        self._tally = LossTally(loader.task_names, vocab, backend.device)
        self._non_finite = NonFiniteGuard(cfg.guard)
        self._spikes = SpikeWatch(cfg.guard)
        self._totals = {"documents": 0, "trained_tokens": 0, "tokens": 0}
        self._fence_checked_s = time.monotonic()

    def run(self) -> Finished | Interrupted:
        """Trains until the last step is saved, or until a signal comes.

        Raises:
            TrainingError: superseded by a later start, or not finite for too long.
            CheckpointError, VocabularyError, DataError: this run's checkpoint does not fit it.
        """
        cfg = self.cfg
        step = saved = self._start()
        with (
            StopSignals() as signals,
            self.tracker.progress(cfg.steps, "steps", "train", done=step) as bar,
        ):
            while step < cfg.steps:
                figures, stop = self._train_step(step, signals)
                step += 1
                if self._due(step, cfg.validate_every) and step < cfg.steps:
                    figures |= self._validate()
                self._record.write({"step": step, **figures})
                if self._due(step, cfg.log_every) or step == cfg.steps:
                    self.tracker.log(step, figures | self._epochs(step))
                bar.advance(1, loss=figures["loss"])
                if self._due(step, cfg.save_every) or stop or step == cfg.steps:
                    self._save(step)
                    saved = step
                if self._due(step, cfg.pictures_every):
                    self._show_pictures(step)
                if stop and step < cfg.steps:
                    self.tracker.print(f"stopped by {stop}; step {saved} is saved")
                    return Interrupted(step, stop)
        return Finished(step, self._final_metrics(step))

    def _start(self) -> int:
        """The first step: after the newest checkpoint, or 0 with the given or the fresh weights."""
        self.store.require_space(self.backend.num_parameters)
        newest = self.store.newest_complete()
        if newest is None:
            self._record.cut(0)
            if self._init_from is None:
                self.tracker.print("starting from fresh weights")
            else:
                weights, origin = self._init_from
                self.backend.load_weights(weights)
                self.tracker.print(f"starting from the weights of {origin}")
            return 0
        state = newest.trainer_state()
        if state["vocabulary"] != self.vocab.fingerprint:
            raise VocabularyError(
                f"{newest.path} was trained with vocabulary {state['vocabulary']}, this run has "
                f"{self.vocab.fingerprint}; give another output folder or the same vocabulary"
            )
        if newest.step > self.cfg.steps:
            raise TrainingError(
                f"{newest.path}: this run has {newest.step} steps behind it and steps="
                f"{self.cfg.steps} are asked for; raise steps or give another output folder"
            )
        newest.verify(self.world)
        self.backend.load(newest.state)
        self.loader.load_state(newest.loader_state())
        self._totals = state["totals"]
        self._non_finite = NonFiniteGuard(self.cfg.guard, state["skipped"])
        self._spikes = SpikeWatch(self.cfg.guard, state["recent_losses"])
        self._record.cut(newest.step)
        self.tracker.print(f"going on from {newest.path}")
        return newest.step

    def _train_step(self, step: int, signals: StopSignals) -> tuple[dict[str, Any], str | None]:
        """One update. Returns its figures, and the name of a signal where one came to any rank."""
        backend, cfg = self.backend, self.cfg
        began = time.perf_counter()
        rows = self.loader.read_step(step, backend.dp_rank, backend.dp_size, self._micro_rows)
        wait_s = time.perf_counter() - began
        scale = 1.0 / max(1, rows.trained_tokens)
        sums = torch.zeros(2, dtype=torch.float64, device=backend.device)
        for index, micro in enumerate(rows.micro):
            # Keyed, not carried on: a resumed run draws what an undisturbed one draws.
            torch.manual_seed(_dropout_seed(self._seed, step, backend.dp_rank, index))
            batch, groups_BT = _to_device(micro, backend.device)
            micro_sums = backend.forward_backward(batch, scale, index == len(rows.micro) - 1)
            sums += torch.stack([micro_sums.nll_sum, micro_sums.z_sum]).double()
            self._tally.add(micro_sums.token_nll_BT, batch.labels_BT, groups_BT)
        busy_s = time.perf_counter() - began - wait_s
        lr = learning_rate(cfg.schedule, step, cfg.steps, cfg.optim.lr)
        grad_norm, finite = backend.step(lr, cfg.optim.max_norm)
        step_s = time.perf_counter() - began
        reports = self.world.gather_objects(
            [signals.received, self._is_superseded(), wait_s, busy_s, memory_mb(backend.device)]
        )
        stops, superseded, waits, busy, memory = zip(*reports, strict=True)
        if any(superseded):
            raise TrainingError(
                f"step {step + 1}: a later start of this run has begun in "
                f"{self.store.run_folder}; this one ends without saving"
            )
        nll, z, *cells = self.world.all_reduce_sum([*sums.tolist(), *self._tally.take()])
        trained = LossTally.trained(cells)
        if trained != rows.trained_tokens:
            raise TrainingError(
                f"step {step + 1}: the labels hold {trained} trained tokens, the lengths promised "
                f"{rows.trained_tokens}; rebuild the lengths with mgpt reindex"
            )
        self._non_finite.note(step + 1, finite)
        loss = nll / max(1, trained)
        self._count(rows)
        figures = {
            "loss": loss,
            "z": z / max(1, trained),
            **self._tally.figures(cells),
            "lr": lr,
            "grad_norm": grad_norm,
            "updated": int(finite),
            "skipped": self._non_finite.skipped,
            "spike": int(self._spikes.note(loss)),
            **self._totals,
            "tokens_per_s": rows.tokens / step_s,
            "data_wait_s": max(waits),
            "step_s": step_s,
            "memory_mb": max(memory),
        }
        slow = slowest_rank(cfg.guard, busy)
        if slow is not None:
            figures["slow_rank"] = slow
        return figures, next((name for name in stops if name), None)

    def _count(self, rows: StepRows) -> None:
        self._totals = {
            "documents": self._totals["documents"] + rows.documents,
            "trained_tokens": self._totals["trained_tokens"] + rows.trained_tokens,
            "tokens": self._totals["tokens"] + rows.tokens,
        }

    def _epochs(self, step: int) -> dict[str, float]:
        return {f"epochs/{name}": passes for name, passes in self.loader.epochs(step).items()}

    def _is_superseded(self) -> bool:
        """Looked up on rank 0 every 30 s; it can only end this attempt, never change a result."""
        now = time.monotonic()
        if not self.world.is_main or now - self._fence_checked_s < _FENCE_EVERY_S:
            return False
        self._fence_checked_s = now
        return self.store.is_superseded()

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def _save(self, step: int) -> None:
        self._record.sync()
        trainer_state = {
            "step": step,
            "seed": self._seed,
            "vocabulary": self.vocab.fingerprint,
            "totals": self._totals,
            "skipped": self._non_finite.skipped,
            "recent_losses": self._spikes.recent,
        }
        loader_state = self.loader.state(step)
        self.store.save(
            step, self.backend, loader_state, trainer_state, self._config_yaml, self.vocab
        )

    def _validate(self) -> dict[str, float]:
        if self._held_out is None:
            return {}
        return self._held_out.validate(self.backend, self.world, self._tally)

    def _show_pictures(self, step: int) -> None:
        if self._pictures is None:
            return
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
            **self._totals,
            "skipped": self._non_finite.skipped,
            "weights_checksum": self.backend.weights_checksum(),
            **self._validate(),
        }
        return self.world.broadcast_object(figures)


def _dropout_seed(seed: int, step: int, rank: int, micro: int) -> int:
    key = hashlib.sha256(f"dropout:{seed}:{step}:{rank}:{micro}".encode()).digest()
    return int.from_bytes(key[:8], "little") >> 1


def _to_device(rows: Rows, device: torch.device) -> tuple[MicroBatch, Tensor]:
    arrays = (rows.ids, rows.labels, rows.positions, rows.groups)
    ids_BT, labels_BT, positions_BT, groups_BT = (
        torch.from_numpy(array).to(device, torch.int64, non_blocking=True) for array in arrays
    )
    return MicroBatch(ids_BT, labels_BT, positions_BT), groups_BT
