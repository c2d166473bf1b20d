"""Rows of ids for one optimiser step, the same whatever the number of ranks.

A step takes `step_rows` rows from the mixer's windows, one after another; rank r of n gets rows
k = r (mod n) of them. Every rank runs the same number of micro-batches, and rows that are missing
are empty ones, which train nothing. A background thread, or `workers` processes, make the next
steps in advance.

    loader = RowLoader(config, vocab, seed=0)
    step = loader.read_step(12, rank=0, world=2, micro_rows=4)
    step.micro[0].ids.shape                  # (4, row_tokens)
    step.trained_tokens                      # of all ranks, known from the lengths
    loader.load_state(json.loads(text))      # of loader.state(13), in another run
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mgpt.data.documents import Drawn, describe, write_document
from mgpt.data.lengths import LENGTHS_FOLDER
from mgpt.data.mixer import Mixer, Window
from mgpt.data.rows import Rows, StepRows
from mgpt.data.source import (
    DataConfig,
    cap_of,
    open_components,
    task_names,
    vq_fingerprint_of,
    weights_after,
)
from mgpt.errors import DataError
from mgpt.files.child_processes import ProcessExecutor
from mgpt.nested import leaves
from mgpt.tokens.vocab import Vocabulary

PREFETCH_STEPS = 2
KEPT_WINDOWS = 4
KEPT_POSITIONS = 64


@dataclass(frozen=True)
class Position:
    """The next row to read: its window, and its place there."""

    window: int
    row: int


@dataclass(frozen=True)
class Start:
    """Where a run is resumed: a step, its position, (step, first window) of changes of the mix, and
    (first window, caps before it by component) wherever caps of epochs were raised."""

    step: int
    position: Position
    changed: tuple[tuple[int, int], ...] = ()
    raised: tuple[tuple[int, dict[str, int | None]], ...] = ()


class EndOfData(DataError):
    """A step after the last row of capped data."""


class RowLoader:
    """The rows of training; a pure function of (shards, vocabulary, config, seed, step).

    Raises, when it is made: whatever `open_components` refuses.
    """

    def __init__(
        self,
        config: DataConfig,
        vocab: Vocabulary,
        seed: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config, self.vocab = config, vocab
        self.step_rows = config.step_rows
        components = open_components(config, vocab, on_progress)
        self.mixer = Mixer(
            components,
            seed,
            config.row_tokens,
            config.window_documents,
            config.guidance_drop,
            config.train_on_inputs,
        )
        self.task_names = task_names(config)
        self.source_names = list(config.sources)
        self.vq_fingerprint = vq_fingerprint_of(components)
        self._group = [self.task_names.index(part.task) for part in components]
        self._source = [self.source_names.index(part.source) for part in components]
        self.started = Start(0, Position(0, 0))
        self._positions = {0: Position(0, 0)}
        self._changed: dict[int, int] = {}  # step → first window of its weights
        self._windows: dict[int, Window] = {}
        self._lock = threading.RLock()
        self._background = self._start_background()
        self._ahead: dict[tuple[int, int, int, int], Future[StepRows]] = {}

    def _start_background(self) -> Executor:
        if not self.config.workers:
            return ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        return ProcessExecutor(
            self.config.workers,
            "a background process that makes rows was killed; if memory is short, set fewer "
            "data.workers, then resume",
            _start_worker,
            (replace(self.config, workers=0), self.vocab, self.mixer.seed),
        )

    # -------------------------------------------------------------- order

    def position(self, step: int) -> Position:
        """Where a step starts, found by counting rows on from the nearest step known.

        Past the end of capped data it is the window after the last.
        """
        with self._lock:
            for change in sorted(self.config.changes):
                if change <= step and change not in self._changed:
                    position = self._position(change)
                    self.change_mix(change, position.window + (position.row > 0))
            return self._position(step)

    def _position(self, step: int) -> Position:
        known = max(number for number in self._positions if number <= step)
        position = self._positions[known]
        position = self._advance(position, (step - known) * self.step_rows)
        self._positions[step] = position
        if len(self._positions) > KEPT_POSITIONS:
            del self._positions[sorted(self._positions)[1]]
        return position

    def change_mix(self, step: int, window: int) -> None:
        """From `window` on the mix is that of the changes up to `step`."""
        self._changed[step] = window
        self._remix(window, step)

    def _remix(self, window: int, step: int) -> None:
        weights = weights_after(self.config, self.mixer.components, step)
        starts = [first for first, _ in self.started.raised if first > window]
        for first in (window, *starts):
            self.mixer.change(first, weights, self._caps_at(first))

    def _caps_at(self, window: int) -> list[int | None]:
        """Documents that each component may have given by then in all."""
        own = {part.name: part.cap for part in self.mixer.components}
        before = (caps for first, caps in self.started.raised if window < first)
        return list({**own, **next(before, {})}.values())

    def _advance(self, position: Position, num_rows: int) -> Position:
        window, row = position.window, position.row + num_rows
        while row and not self._is_end(window):
            num_here = len(self._window(window).rows)
            if row < num_here:
                return Position(window, row)
            window, row = window + 1, row - num_here
        return Position(window, 0)

    def _is_end(self, window: int) -> bool:
        return self.mixer.num_windows is not None and window >= self.mixer.num_windows

    def _window(self, number: int) -> Window:
        with self._lock:
            window = self._windows.pop(number, None)
            if window is None:
                window = self.mixer.window(number)
            self._windows[number] = window
            if len(self._windows) > KEPT_WINDOWS:
                del self._windows[next(iter(self._windows))]
            return window

    def _rows_from(self, position: Position) -> list[tuple[Window, list[int]]]:
        """The rows of the step that starts at `position`, each with the window it belongs to.

        Fewer than `step_rows` where capped data ends within the step.
        """
        rows: list[tuple[Window, list[int]]] = []
        window, first = position.window, position.row
        while len(rows) < self.step_rows and not self._is_end(window):
            current = self._window(window)
            rows += [(current, row) for row in current.rows[first:]]
            window, first = window + 1, 0
        return rows[: self.step_rows]

    def drawn(self, step: int) -> dict[str, int]:
        """Documents that each component, "source/task", has given before a step; exact."""
        position, parts = self.position(step), self.mixer.components
        given = np.array(self.mixer.given_before(position.window))
        if position.row:
            window = self._window(position.window)
            for documents in window.rows[: position.row]:
                given += np.bincount(window.component_N[documents], minlength=len(parts))
        return {part.name: int(count) for part, count in zip(parts, given, strict=True)}

    def epochs(self, step: int) -> dict[str, float]:
        """Passes over each component before a step."""
        drawn = self.drawn(step)
        return {part.name: drawn[part.name] / len(part) for part in self.mixer.components}

    def figures(self, step: int) -> dict[str, float]:
        """Both of each component, as `drawn/source/task` and `epochs/source/task`."""
        figures = {}
        for part, drawn in zip(self.mixer.components, self.drawn(step).values(), strict=True):
            figures[f"drawn/{part.name}"] = float(drawn)
            figures[f"epochs/{part.name}"] = drawn / len(part)
        return figures

    def from_start(self) -> "RowLoader":
        """One that stands where this one was started, for looking ahead without moving this one."""
        ahead = copy(self)
        ahead.mixer, ahead._positions = copy(self.mixer), {0: Position(0, 0)}
        ahead._windows, ahead._changed = {}, {}
        ahead._start_at(self.started)
        return ahead

    # -------------------------------------------------------------- reading

    def read_step(self, step: int, rank: int, world: int, micro_rows: int) -> StepRows:
        """A rank's share of a step; the steps after it are made in the background.

        Returns ceil(step_rows / (world * micro_rows)) micro-batches of `micro_rows` rows each.

        Raises:
            EndOfData: every source has reached its cap before this step.
            DataError: a damaged sample.
            MachineError: a background process that was killed.
        """
        assert 0 <= rank < world and micro_rows > 0, (rank, world, micro_rows)
        num_steps = 1 + max(PREFETCH_STEPS, self.config.workers)
        wanted = [(step + more, rank, world, micro_rows) for more in range(num_steps)]
        ahead = {key: self._ahead.pop(key, None) for key in wanted}
        for stale in self._ahead.values():
            stale.cancel()
        self._ahead = {key: future or self._submit(key) for key, future in ahead.items()}
        return self._ahead.pop(wanted[0]).result()

    def _submit(self, key: tuple[int, int, int, int]) -> Future[StepRows]:
        if not self.config.workers:
            return self._background.submit(self._make_step, *key)
        return self._background.submit(_make_in_worker, self.started, *key)

    def close(self) -> None:
        """End the background thread or processes."""
        self._background.shutdown(wait=True, cancel_futures=True)

    def _make_step(self, step: int, rank: int, world: int, micro_rows: int) -> StepRows:
        rows = self._rows_from(self.position(step))
        if not rows:
            raise EndOfData(
                f"the data end after step {step}: every source has reached its max_epochs"
            )
        num_micro = -(-self.step_rows // (world * micro_rows))
        mine = rows[rank::world]
        micro = [
            self._fill(mine[first : first + micro_rows], micro_rows)
            for first in range(0, num_micro * micro_rows, micro_rows)
        ]
        return StepRows(
            micro=micro,
            trained_tokens=sum(int(window.trained_N[row].sum()) for window, row in rows),
            documents=sum(len(row) for _, row in rows),
            tokens=sum(int(window.tokens_N[row].sum()) for window, row in rows),
        )

    def _fill(self, rows: list[tuple[Window, list[int]]], num_rows: int) -> Rows:
        filled = Rows.empty(num_rows, self.config.row_tokens, self.vocab.pad)
        place_T = np.arange(self.config.row_tokens)
        for row, (window, documents) in enumerate(rows):
            start = 0
            for document in documents:
                stop = start + int(window.tokens_N[document])
                here = row, slice(start, stop)
                self._write(window, document, filled.ids[here], filled.labels[here])
                filled.positions[here] = place_T[: stop - start]
                component = int(window.component_N[document])
                filled.groups[here] = self._group[component]
                filled.sources[here] = self._source[component]
                start = stop
            filled.positions[row, start:] = place_T[: self.config.row_tokens - start]
        return filled

    def _write(self, window: Window, document: int, ids: np.ndarray, labels: np.ndarray) -> None:
        """A document of a window into its place of a row, held against what it was packed by."""
        part = self.mixer.components[int(window.component_N[document])]
        entry, variant = int(window.entry_N[document]), int(window.variant_N[document])
        drawn = Drawn(entry, variant, bool(window.dropped_N[document]))
        trained = write_document(part, self.vocab, drawn, ids, labels)
        if self.config.train_on_inputs:
            labels[:-1] = ids[1:]
            trained = len(ids) - 1
        if trained != window.trained_N[document]:
            raise DataError(
                f"{describe(part, int(part.lengths.samples_N[entry]))}: {trained} trained tokens, "
                f"its lengths say {window.trained_N[document]}. Delete "
                f"{part.dataset.folder / LENGTHS_FOLDER} and start again"
            )

    # -------------------------------------------------------------- state

    def state(self, step: int) -> dict[str, Any]:
        """What a run that goes on at `step` needs: JSON of a few integers and fingerprints."""
        position = self.position(step)
        changed = [[change, window] for change, window in self._changed.items() if change < step]
        raised = [[first, caps] for first, caps in self.started.raised]
        return {
            "step": step,
            "window": position.window,
            "row": position.row,
            "changed": sorted(changed),
            **({"raised": raised} if raised else {}),
            "order": self._order(step),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from a `state`; its step is found at once, whatever came before it.

        Raises DataError as `check_state` does.
        """
        self.check_state(state)
        position = Position(int(state["window"]), int(state["row"]))
        changed = tuple(map(tuple, state.get("changed", ())))
        raised = tuple((int(first), caps) for first, caps in state.get("raised", ()))
        then = self._caps_of(state["order"])
        if any(then[part.name] != part.cap for part in self.mixer.components):
            raised += ((position.window + (position.row > 0), then),)
        self._start_at(Start(int(state["step"]), position, changed, raised))

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a `state` whose rows this loader would not have given.

        Shards of the sources in `allow_changed` may be others, and so may changes of the mix from
        its step on, with sources that no row was taken from before. Caps of epochs may be raised.

        Raises:
            DataError: something else that decides the order has changed; each is named with both
                values.
        """
        step = int(state["step"])
        unread = tuple(f"sources.{name}." for name in self._unread_sources(step))
        saved, current = (
            {name: value for name, value in leaves(order) if not name.startswith(unread)}
            for order in (state["order"], self._order(step))
        )
        allowed = {f"sources.{name}.shards" for name in self.config.allow_changed}
        then, parts = self._caps_of(state["order"]), self.mixer.components
        lowered = {
            part.source
            for part in parts
            if part.cap is not None and part.cap < (then[part.name] or part.cap + 1)
        }
        for part in parts:
            if part.source not in lowered:
                limits = ("max_epochs", f"max_task_epochs.{part.task}")
                allowed |= {f"sources.{part.source}.{limit}" for limit in limits}
        changed = [
            f"{name} was {saved.get(name, 'absent')}, is {current.get(name, 'absent')}"
            for name in sorted((saved.keys() | current.keys()) - allowed)
            if saved.get(name) != current.get(name)
        ]
        if changed:
            raise DataError(
                "the order of training rows is not that of the checkpoint: "
                + "; ".join(changed)
                + ". Restore these, start a new run from its weights with init_from, or allow "
                "shards that were changed on purpose with data.allow_changed=[source]"
            )

    def _caps_of(self, order: dict[str, Any]) -> dict[str, int | None]:
        """The cap of each component by the limits of a state; its own where that has none."""
        caps: dict[str, int | None] = {}
        for part in self.mixer.components:
            limits = order["sources"].get(part.source)
            if limits is None:
                caps[part.name] = part.cap
                continue
            epochs = limits.get(f"max_task_epochs.{part.task}", limits["max_epochs"])
            caps[part.name] = cap_of(len(part), epochs)
        return caps

    def _start_at(self, start: Start) -> None:
        with self._lock:
            self.started = start
            self._windows.clear()
            self._changed.clear()
            self._remix(0, 0)
            for change, window in start.changed:
                self.change_mix(change, window)
            self._positions[start.step] = start.position

    def _unread_sources(self, step: int) -> list[str]:
        """Sources that have no weight before a step, and so no part in its rows."""
        read = {part.source for part in self.mixer.components if part.weight}
        for at, mix in self.config.changes.items():
            read |= {name for name, tasks in mix.items() if at < step and any(tasks.values())}
        return [name for name in self.source_names if name not in read]

    def _order(self, step: int) -> dict[str, Any]:
        """All that the rows before a step depend on, with names for a person."""
        config, parts = self.config, self.mixer.components
        sources: dict[str, dict[str, Any]] = {}
        for part in parts:
            source = sources.setdefault(
                part.source,
                {
                    "shards": part.dataset.fingerprint,
                    "max_epochs": config.sources[part.source].max_epochs,
                },
            )
            if part.reference in (epochs := config.sources[part.source].max_task_epochs):
                source[f"max_task_epochs.{part.task}"] = epochs[part.reference]
            if part.own_fingerprint:
                source[f"task_file.{part.task}"] = part.own_fingerprint
            if part.weight:
                source[f"tasks.{part.task}"] = part.weight
        return {
            "seed": self.mixer.seed,
            "row_tokens": config.row_tokens,
            "step_rows": config.step_rows,
            "window_documents": config.window_documents,
            "guidance_drop": config.guidance_drop,
            **({"train_on_inputs": True} if config.train_on_inputs else {}),
            "vocabulary": self.vocab.fingerprint,
            "sources": sources,
            "changes": {str(at): mix for at, mix in config.changes.items() if at < step},
        }


_worker_loader: RowLoader | None = None
"""In a background process: the loader that it makes rows with."""


def _start_worker(config: DataConfig, vocab: Vocabulary, seed: int) -> None:
    global _worker_loader
    _worker_loader = RowLoader(config, vocab, seed)


def _make_in_worker(loaded: Start, step: int, rank: int, world: int, micro_rows: int) -> StepRows:
    assert _worker_loader is not None
    if _worker_loader.started != loaded:
        _worker_loader._start_at(loaded)
    return _worker_loader._make_step(step, rank, world, micro_rows)


def held_out_rows(config: DataConfig, vocab: Vocabulary, seed: int, num_rows: int) -> Rows:
    """The first `num_rows` rows of held-out sources, each sample once, no guidance drop, answers
    alone trained.

    Always the same rows; where the samples fill fewer, the rest are empty.
    """
    once = {name: replace(source, max_epochs=1.0) for name, source in config.sources.items()}
    config = replace(
        config,
        sources=once,
        guidance_drop=0.0,
        train_on_inputs=False,
        step_rows=num_rows,
        workers=0,
    )
    loader = RowLoader(config, vocab, seed)
    try:
        rows: list[tuple[Window, list[int]]] = []
        for number in range(loader.mixer.num_windows or 0):
            window = loader.mixer.window(number)
            rows += [(window, row) for row in window.rows]
            if len(rows) >= num_rows:
                break
        return loader._fill(rows[:num_rows], num_rows)
    finally:
        loader.close()
