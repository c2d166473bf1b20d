"""What a training run measures: losses by part, the sums of a step over all ranks, and the record.

`metrics.jsonl` is the record; every other view is derived from it. It is flushed to the disk with
each checkpoint and cut back to the checkpoint's step on resume, so a run that was killed and
resumed leaves the record of an undisturbed one. Times and memory in it differ from run to run.

    >>> record = MetricsRecord(folder / "metrics.jsonl", is_main=True)
    >>> record.cut(step=100)
    >>> tally.add(micro_sums.token_nll_BT, rows)
    >>> step = all_reduce_step(world, RankStep(nll_sum, z_sum, tally.take(), ...))
    >>> record.write({"step": 101, "loss": 4.2, **tally.figures(step.cells)})
    >>> record.sync()

Shape suffixes: B rows, T positions, S sources, G tasks, M modalities, C cells [S, G, M],
V vocabulary.
"""

import json
import math
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mgpt.data.documents import IGNORED
from mgpt.data.rows import Rows
from mgpt.errors import DataError
from mgpt.files.atomic import atomic_write, disk_errors
from mgpt.parallel.dist import World
from mgpt.stop_signals import STOPPING

__all__ = [
    "MODALITIES",
    "LossTally",
    "MetricsRecord",
    "RankStep",
    "StepTotals",
    "VocabularyLike",
    "all_reduce_step",
    "memory_mb",
]

MODALITIES = ("text", "image", "layout")
"""Kinds of target: text pieces, image codes, and everything else (sizes, line ends, separators)."""


class VocabularyLike(Protocol):
    """What training asks of a vocabulary."""

    @property
    def size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def is_code(self, ids: np.ndarray) -> np.ndarray: ...

    def is_text(self, ids: np.ndarray) -> np.ndarray: ...

    def save(self, folder: Path) -> Any: ...


class MetricsRecord:
    """`metrics.jsonl`: one JSON object a step, written by rank 0 alone."""

    def __init__(self, path: Path, is_main: bool) -> None:
        self.path = path
        self._is_main = is_main
        self._file: IO[str] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The steps recorded so far, without an incomplete last line.

        Raises DataError if another line is not JSON.
        """
        if not self.path.exists():
            return []
        rows = []
        lines = self.path.read_text().split("\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{self.path}:{number}: not a line of JSON ({error}); repair or remove the line"
                ) from error
        return rows

    def cut(self, step: int) -> None:
        """Removes what was recorded after `step`, and opens the file for the next."""
        if self._is_main:
            kept = [row for row in self.rows() if row["step"] <= step]
            self.close()
            atomic_write(self.path, "".join(_line(row) for row in kept).encode())
            # Kept open: an earlier attempt that still runs writes to the file it has opened, not to
            # the one that a later attempt puts in its place.
            self._file = open(self.path, "a")  # noqa: SIM115 - `close` closes it

    def write(self, row: Mapping[str, Any]) -> None:
        if self._is_main:
            with disk_errors(self.path):
                if self._file is None:
                    self._file = open(self.path, "a")  # noqa: SIM115
                self._file.write(_line(row))
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def sync(self) -> None:
        """Returns once the record is on the disk."""
        if self._is_main and self.path.exists():
            with disk_errors(self.path), open(self.path, "rb") as file:
                os.fsync(file.fileno())


class LossTally:
    """Losses and trained tokens of one rank by source, task and modality, in float64.

    `figures` takes the sums of all ranks.
    """

    def __init__(
        self,
        source_names: Sequence[str],
        task_names: Sequence[str],
        vocab: VocabularyLike,
        device: torch.device,
    ) -> None:
        self._source_names, self._task_names = list(source_names), list(task_names)
        ids = np.arange(vocab.size)
        modality_V = np.where(vocab.is_code(ids), 1, np.where(vocab.is_text(ids), 0, 2))
        self._modality_V = torch.from_numpy(modality_V.astype(np.int64)).to(device)
        self._shape = (len(self._source_names), len(self._task_names), len(MODALITIES))
        self._cells_2C = torch.zeros(2, math.prod(self._shape), dtype=torch.float64, device=device)

    def add(self, token_nll_BT: Tensor, rows: Rows) -> None:
        """Adds the losses in nats of one micro-batch of these rows."""
        labels_BT, groups_BT, sources_BT = (
            torch.from_numpy(array).to(token_nll_BT.device, torch.int64, non_blocking=True)
            for array in (rows.labels, rows.groups, rows.sources)
        )
        trained = labels_BT != IGNORED
        part = sources_BT[trained] * len(self._task_names) + groups_BT[trained]
        cell = part * len(MODALITIES) + self._modality_V[labels_BT[trained]]
        nll, num_cells = token_nll_BT[trained].double(), math.prod(self._shape)
        self._cells_2C[0] += torch.bincount(cell, weights=nll, minlength=num_cells)
        self._cells_2C[1] += torch.bincount(cell, minlength=num_cells)

    def take(self) -> list[float]:
        """Returns the sums [2, C], flattened, and resets them."""
        values = self._cells_2C.flatten().tolist()
        self._cells_2C.zero_()
        return values

    def figures(self, values: Sequence[float]) -> dict[str, float]:
        """Mean loss of each source, task and modality that occurred, and its trained tokens."""
        nll_SGM, count_SGM = np.array(values).reshape(2, *self._shape)
        found: dict[str, float] = {}
        kinds = (
            ("source", self._source_names, (1, 2)),
            ("task", self._task_names, (0, 2)),
            ("modality", MODALITIES, (0, 1)),
        )
        for kind, names, others in kinds:
            nll, count = nll_SGM.sum(others), count_SGM.sum(others)
            for name, total, number in zip(names, nll, count, strict=True):
                if number > 0:
                    found[f"loss/{kind}/{name}"] = float(total / number)
                    found[f"tokens/{kind}/{name}"] = int(number)
        return found

    @staticmethod
    def trained(values: Sequence[float]) -> int:
        """Number of trained tokens in the sums."""
        return round(sum(values[len(values) // 2 :]))


_OF_EACH_RANK = ("wait_s", "own_s", "memory_mb")


@dataclass(frozen=True)
class RankStep:
    """One rank's part of a step."""

    nll_sum: float
    z_sum: float
    cells: Sequence[float]
    """Sums of `LossTally.take`."""
    signal: str | None
    """The one of STOPPING that this rank received, if any."""
    must_end: bool
    """Whether this rank's checkpoint store has a reason to end the run."""
    wait_s: float
    """Seconds spent waiting for rows."""
    own_s: float
    """Seconds in which this rank did not wait for others (`mgpt.parallel.own_time`)."""
    memory_mb: float


@dataclass(frozen=True)
class StepTotals:
    """A step over all ranks: sums, the signal of any rank, and lists by rank."""

    nll_sum: float
    z_sum: float
    cells: list[float]
    signal: str | None
    must_end: bool
    wait_s: list[float]
    own_s: list[float]
    memory_mb: list[float]


def all_reduce_step(world: World, step: RankStep) -> StepTotals:
    """The step of all ranks, the same on each, in one small all-reduce before the update.

    Losses, counts and flags are summed. Each rank's times and memory travel in elements of their
    own, which are 0 on the other ranks.
    """
    flags = [*(float(step.signal == name) for name in STOPPING), float(step.must_end)]
    by_rank = [0.0] * (len(_OF_EACH_RANK) * world.size)
    for index, name in enumerate(_OF_EACH_RANK):
        by_rank[index * world.size + world.rank] = getattr(step, name)
    totals = world.all_reduce_sum([step.nll_sum, step.z_sum, *step.cells, *flags, *by_rank])
    nll_sum, z_sum, *rest = totals
    cells, rest = rest[: len(step.cells)], rest[len(step.cells) :]
    signals, (must_end, *by_rank) = rest[: len(STOPPING)], rest[len(STOPPING) :]
    received = (name for name, count in zip(STOPPING, signals, strict=True) if count)
    return StepTotals(
        nll_sum,
        z_sum,
        cells,
        next(received, None),
        must_end > 0,
        *(by_rank[start : start + world.size] for start in range(0, len(by_rank), world.size)),
    )


def memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MB: the GPU's if it trains on one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN: values that are not finite are recorded as null.
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"
