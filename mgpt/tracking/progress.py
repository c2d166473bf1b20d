"""Progress of a long step: a bar with rate and time left on a terminal, plain lines elsewhere.

Knows nothing of what is counted.

    >>> with progress(total=4000, unit="samples", description="tokenize 00000.tar") as bar:
    ...     for batch in batches:
    ...         bar.advance(len(batch))
    tokenize 00000.tar  1,024/4,000 samples  26 %  310 samples/s  0:10 left
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_EVERY_S = 10.0
RATE_WINDOW_S = 30.0


class Bar(Protocol):
    """What `progress` hands out."""

    def advance(self, count: float = 1, **figures: float | str) -> None:
        """Counts `count` more units; `figures` are shown beside the rate, such as loss=2.1."""
        ...


@contextmanager
def progress(
    total: float, unit: str, description: str, done: float = 0, shown: bool = True
) -> Iterator[Bar]:
    """A bar over `total` units, `done` of which an earlier start has already finished.

    The rate counts this start's units only. `shown=False` (ranks other than 0) prints nothing.
    """
    if not shown:
        yield _SilentBar()
    elif sys.stdout.isatty():
        with _rich_bar(total, unit, description, done) as bar:
            yield bar
    else:
        lines = _LineBar(total, unit, description, done)
        yield lines
        lines.close()


class _SilentBar:
    def advance(self, count: float = 1, **figures: float | str) -> None:
        """Counts nothing."""


class _Rate:
    """Units a second over the last RATE_WINDOW_S seconds, so that a slow start fades."""

    def __init__(self) -> None:
        self._marks = [(time.monotonic(), 0.0)]

    def mark(self, count: float) -> float:
        """Takes the units counted so far in this start; returns the rate."""
        now = time.monotonic()
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, count))
        while len(self._marks) > 2 and now - self._marks[1][0] > RATE_WINDOW_S:
            self._marks.pop(0)
        since, before = self._marks[0]
        return (count - before) / max(now - since, 1e-9)


class _LineBar:
    def __init__(self, total: float, unit: str, description: str, done: float) -> None:
        self._total, self._unit, self._description = total, unit, description
        self._before, self._done = done, done
        self._rate, self._rate_now = _Rate(), 0.0
        self._figures: dict[str, float | str] = {}
        self._last_line_s = time.monotonic()

    def advance(self, count: float = 1, **figures: float | str) -> None:
        self._done += count
        self._figures.update(figures)
        self._rate_now = self._rate.mark(self._done - self._before)
        if time.monotonic() - self._last_line_s >= LINE_EVERY_S:
            self._print()

    def close(self) -> None:
        """Prints where it ended."""
        self._print()

    def _print(self) -> None:
        self._last_line_s = time.monotonic()
        left = (self._total - self._done) / self._rate_now if self._rate_now > 0 else None
        parts = [
            self._description,
            f"{self._done:,.0f}/{self._total:,.0f} {self._unit}",
            f"{100 * self._done / max(self._total, 1):.0f} %",
            rate_text(self._rate_now, self._unit),
            *figure_texts(self._figures),
            *([f"{clock(left)} left"] if left is not None and left > 0 else []),
        ]
        print("  ".join(parts), flush=True)


@contextmanager
def _rich_bar(total: float, unit: str, description: str, done: float) -> Iterator[Bar]:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, refresh_per_second=4) as rich_progress:
        task = rich_progress.add_task(
            description, total=total, completed=int(done), unit=unit, words=""
        )
        yield _RichBar(rich_progress, task, total, unit, done)


class _RichBar:
    def __init__(self, bar: object, task: object, total: float, unit: str, done: float) -> None:
        self._bar, self._task, self._total, self._unit = bar, task, total, unit
        self._before, self._done = done, done
        self._rate = _Rate()
        self._figures: dict[str, float | str] = {}

    def advance(self, count: float = 1, **figures: float | str) -> None:
        self._done += count
        self._figures.update(figures)
        rate = self._rate.mark(self._done - self._before)
        words = [rate_text(rate, self._unit), *figure_texts(self._figures)]
        if rate > 0 and self._done < self._total:
            words.append(f"{clock((self._total - self._done) / rate)} left")
        self._bar.update(  # type: ignore[attr-defined]
            self._task, completed=self._done, words="  ".join(words)
        )


def rate_text(rate: float, unit: str) -> str:
    """`310 samples/s`, or `12 s a sample` below one in two seconds."""
    if 0 < rate < 0.5:
        return f"{1 / rate:.0f} s a {unit.rstrip('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


def figure_texts(figures: dict[str, float | str]) -> list[str]:
    """`loss 2.103` for each figure."""
    return [
        f"{name} {value:.4g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in figures.items()
    ]


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
