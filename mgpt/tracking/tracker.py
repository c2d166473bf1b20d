"""One record of a stage, three views: the console, `metrics.jsonl`, Weights & Biases.

A stage logs figures by step, pictures and tables; the tracker shows them. Ranks other than 0 hold
a tracker that does nothing, so the code above is written once. Knows nothing of training.

    >>> with Tracker(TrackingConfig(), Path("outputs/a"), "pack", "quickstart", {}) as tracker:
    ...     with tracker.progress(total=10, unit="samples", description="pack") as bar:
    ...         bar.advance(10)
    ...     tracker.log(0, {"samples": 10})
    ...     tracker.finish({"samples": 10})
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mgpt.tracking.progress import Bar, figure_texts, progress
from mgpt.tracking.wandb_run import (
    RunNames,
    choose_mode,
    hold_run,
    note_shown,
    open_run,
    shown_through,
)

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingConfig(RunNames):
    """Where a run is shown. Nothing here can change a result."""


class Tracker:
    """The record of one stage; also a context that closes it, marked failed on an error.

    Args:
        cfg: where it is shown.
        run_folder: the stage's output folder; wandb/ and metrics.jsonl stand there.
        stage: its name, `fp_sft`.
        group: the pipeline's name; `cfg.group` wins where it is set.
        resolved_config: plain data, shown with the run.
        is_main: False on ranks other than 0, which record nothing.
        record: whether `log` appends to metrics.jsonl; False where the trainer writes that file.
        shared: whether processes that know nothing of one another work in this folder; then one of
            them has the run, and the others show it nothing.
    """

    def __init__(
        self,
        cfg: TrackingConfig,
        run_folder: Path,
        stage: str,
        group: str = "",
        resolved_config: Mapping[str, Any] | None = None,
        is_main: bool = True,
        record: bool = True,
        shared: bool = False,
    ) -> None:
        self.is_main = is_main
        self._stage = stage
        self._run_folder = run_folder
        self._shown_step: int | None = None
        self._through = 0
        self._record = run_folder / "metrics.jsonl" if record and is_main else None
        self._run: Any = None
        self._hold: IO[str] | None = None
        wanted = is_main and choose_mode(cfg.mode) != "disabled"
        if wanted and shared:
            self._hold = hold_run(run_folder)
            wanted = self._hold is not None
        if wanted:
            config = resolved_config or {}
            self._run = open_run(cfg, run_folder, stage, group, config)
        if self._run is not None:
            # Asked before anything is shown: a table without a step changes what the run says.
            self._through = shown_through(self._run, run_folder)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._tell(lambda run: run.finish(exit_code=0 if kind is None else 1))
        if self._run is not None and self._shown_step is not None:
            note_shown(self._run_folder, self._shown_step)
        self._run = None
        if self._hold is not None:
            self._hold.close()

    @property
    def has_run(self) -> bool:
        """Whether figures and pictures are shown in a Weights & Biases run."""
        return self._run is not None

    def progress(
        self, total: float, unit: str, description: str, done: float = 0
    ) -> AbstractContextManager[Bar]:
        """A progress bar on rank 0; see `mgpt.tracking.progress`."""
        return progress(total, unit, description, done, shown=self.is_main)

    def print(self, words: str) -> None:
        """A line on the console, from rank 0 alone."""
        if self.is_main:
            print(words, flush=True)

    def log(self, step: int, figures: Mapping[str, float | int | str]) -> None:
        """Figures of one step; names with `/` make groups, `loss/task/caption`."""
        row = {"step": step, **figures}
        if self._record is not None:
            with self._record.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self._run is not None:
            self._show(row)
            self._shown_step = step

    def fill(self, rows: Callable[[], Iterable[Mapping[str, Any]]], every: int = 1) -> None:
        """Gives the run what it lacks of the record's rows at multiples of `every` steps: those of
        starts that were killed, or had no way to the server. `rows` is called where there is a run.
        """
        if self._run is None:
            return
        self._shown_step = self._through
        for row in rows():
            if row["step"] > self._through and row["step"] % every == 0:
                self._show(row)
                self._shown_step = row["step"]

    def show(self, step: int, figures: Mapping[str, float | int | str]) -> None:
        """Figures of the moment, such as a rate: shown in the run, kept in no file."""
        self._show({"step": step, **figures})

    def images(self, step: int, name: str, images: Sequence[tuple[str, np.ndarray]]) -> None:
        """A panel of (caption, uint8 picture [H, W, 3])."""
        if self._run is not None:
            import wandb

            panel = [wandb.Image(picture, caption=caption) for caption, picture in images]
            self._show({"step": step, name: panel})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, on the console and in the run."""
        if not self.is_main:
            return
        _print_table(name, columns, rows)
        if self._run is not None:
            import wandb

            words = [[_cell(value) for value in row] for row in rows]
            shown = wandb.Table(columns=list(columns), data=words)
            self._show({name: shown})

    def finish(self, summary: Mapping[str, float | int | str]) -> None:
        """The stage's final figures: a line on the console, the summary of the run."""
        if not self.is_main:
            return
        print("  ".join([f"{self._stage}: complete", *figure_texts(dict(summary))]), flush=True)
        self._tell(lambda run: run.summary.update(dict(summary)))

    def _show(self, row: Mapping[str, Any]) -> None:
        self._tell(lambda run: run.log(dict(row)))

    def _tell(self, words: Callable[[Any], object]) -> None:
        """Says something to the run; where its client has broken down, the stage does without it.

        The record is metrics.jsonl; the next start gives the run what it lacks of it.
        """
        if self._run is None:
            return
        try:
            words(self._run)
        except Exception as error:  # no view of a run may end it
            _log.warning("Weights & Biases: %s; nothing more is shown by this start", error)
            self._run = None


def console_tracker(command: str, is_main: bool = True) -> Tracker:
    """The tracker of a command that keeps no record: progress, lines and tables on the console."""
    disabled = TrackingConfig(mode="disabled")
    return Tracker(disabled, Path("."), command, is_main=is_main, record=False)


def _print_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*[_cell(value) for value in row])
    console = Console()
    # A pipe has no width; rich would cut columns at 80 characters.
    Console(width=None if console.is_terminal else 160).print(table)


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
