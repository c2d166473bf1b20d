"""The record of a training run: figures of every step in `metrics.jsonl`, and how they are summed.

The file is the truth; every other view is made from it. It is flushed to the disk with each
checkpoint and cut back to the checkpoint's step at the start, so that a run that was killed and
continued leaves the record of an undisturbed one. Times and memory stand beside the figures and
differ from run to run.

    >>> record = MetricsRecord(folder / "metrics.jsonl", is_main=True)
    >>> record.cut(step=100)
    >>> record.write({"step": 101, "loss": 4.2})
    >>> record.sync()

Shape suffixes: B rows, T positions, S sources, G tasks, M modalities, V vocabulary.
"""

import json
import math
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mgpt.data.documents import IGNORED
from mgpt.errors import DataError
from mgpt.files.atomic import atomic_write, disk_errors

__all__ = ["MODALITIES", "LossTally", "MetricsRecord", "VocabularyLike", "memory_mb"]

MODALITIES = ("text", "image", "layout")
"""Of a target: a piece of text; an image code; anything else (sizes, ends of line, separators)."""


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
    """`metrics.jsonl`, one object a step, written by rank 0 alone."""

    def __init__(self, path: Path, is_main: bool) -> None:
        self.path = path
        self._is_main = is_main
        self._file: IO[str] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The steps recorded so far, without a last line that was cut short.

        Raises DataError where a line before the last is not JSON.
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
                    f"{self.path}:{number}: not a line of JSON ({error}); mend or remove the line"
                ) from error
        return rows

    def cut(self, step: int) -> None:
        """Drops what was recorded after `step`."""
        if self._is_main:
            kept = [row for row in self.rows() if row["step"] <= step]
            self.close()
            atomic_write(self.path, "".join(_line(row) for row in kept).encode())
            # Held open: what an earlier attempt still writes, when a later one has replaced the
            # file, is in nobody's way.
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
    """Sums of losses and counts of trained tokens by source, task and modality, in float64.

    One accumulates per rank; `values` of all ranks added up give the `figures`.
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

    def add(
        self, token_nll_BT: Tensor, labels_BT: Tensor, groups_BT: Tensor, sources_BT: Tensor
    ) -> None:
        """Adds one micro-batch: losses in nats, targets (-100 ignored), places of task and source.

        C counts the cells [S, G, M].
        """
        trained = labels_BT != IGNORED
        part = sources_BT[trained].long() * len(self._task_names) + groups_BT[trained]
        cell = part * len(MODALITIES) + self._modality_V[labels_BT[trained]]
        nll, num_cells = token_nll_BT[trained].double(), math.prod(self._shape)
        self._cells_2C[0] += torch.bincount(cell, weights=nll, minlength=num_cells)
        self._cells_2C[1] += torch.bincount(cell, minlength=num_cells)

    def take(self) -> list[float]:
        """The sums so far; they start again from zero."""
        values = self._cells_2C.flatten().tolist()
        self._cells_2C.zero_()
        return values

    def figures(self, values: Sequence[float]) -> dict[str, float]:
        """Mean loss by trained token of each source, task and modality that occurred, and their
        counts."""
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
        """Trained tokens in the sums."""
        return round(sum(values[len(values) // 2 :]))


def memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far in MB: the GPU's where it trains on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN; a figure that is not finite is recorded as null.
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"
