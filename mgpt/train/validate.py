"""The loss on rows that are never trained, the same rows at every step and world size.

    >>> held_out = HeldOut(rows, micro_rows=2)
    >>> figures = held_out.validate(backend, world, tally)
    >>> figures["val/loss"], figures["val/loss/task/caption"]

Shape suffixes: R held-out rows, B rows of a micro-batch, T positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mgpt.data.loader import IGNORED, Rows
from mgpt.parallel.backend import Backend, MicroBatch
from mgpt.parallel.dist import World
from mgpt.train.metrics import LossTally

__all__ = ["HeldOut"]


@dataclass(frozen=True)
class HeldOut:
    """Rows [R, T] for validation, and how many of them go through at once."""

    rows: Rows
    micro_rows: int

    def validate(self, backend: Backend, world: World, tally: LossTally) -> dict[str, float]:
        """Mean loss in nats by trained token, in all and by task and modality; collective."""
        tally.take()
        for index_B in self._shares(backend.dp_rank, backend.dp_size):
            batch, groups_BT = self._batch(index_B)
            batch = batch.to(backend.device)
            sums = backend.evaluate(batch)
            tally.add(sums.token_nll_BT, batch.labels_BT, groups_BT.to(backend.device))
        values = world.all_reduce_sum(tally.take())
        trained = max(1, LossTally.trained(values))
        figures = tally.figures(values)
        losses = {f"val/{name}": value for name, value in figures.items() if name[0] == "l"}
        return {"val/loss": sum(values[: len(values) // 2]) / trained, **losses}

    def _shares(self, rank: int, size: int) -> list[np.ndarray]:
        """Row numbers of each micro-batch of this rank; -1 fills up, so that all have as many."""
        num_rows, together = len(self.rows.ids), self.micro_rows * size
        padded = -(-num_rows // together) * together
        numbers = np.where(np.arange(padded) < num_rows, np.arange(padded), -1)
        return list(numbers[rank::size].reshape(-1, self.micro_rows))

    def _batch(self, index_B: np.ndarray) -> tuple[MicroBatch, torch.Tensor]:
        labels = self.rows.labels[index_B].copy()
        labels[index_B < 0] = IGNORED
        arrays = (self.rows.ids[index_B], labels, self.rows.positions[index_B])
        batch = MicroBatch(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))
        return batch, torch.from_numpy(self.rows.groups[index_B].astype(np.int64))
