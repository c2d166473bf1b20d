"""Validation: the loss on held-out rows, the same rows at every step and world size.

    >>> held_out = HeldOut(rows, micro_rows=2, tally=LossTally(sources, tasks, vocab, device))
    >>> figures = held_out.validate(backend, world)
    >>> figures["val/loss"], figures["val/loss/task/caption"], figures["val/loss/source/scenes"]

Shape suffixes: R held-out rows, B rows of a micro-batch, T positions.
"""

from dataclasses import dataclass, fields

import numpy as np

from mgpt.data.documents import IGNORED
from mgpt.data.rows import Rows
from mgpt.parallel.backend import Backend, MicroBatch
from mgpt.parallel.dist import World
from mgpt.train.metrics import LossTally

__all__ = ["HeldOut"]


@dataclass(frozen=True)
class HeldOut:
    """Rows [R, T] for validation, the number in a micro-batch, and the tally of their losses."""

    rows: Rows
    micro_rows: int
    tally: LossTally

    def validate(self, backend: Backend, world: World) -> dict[str, float]:
        """Mean loss in nats by trained token: in all, by source, task, modality; collective.

        Also that of the averaged weights, in all, if the backend keeps some.
        """
        figures = self._losses(backend, world)
        if backend.has_averages:
            with backend.averaged_weights():
                figures["val/averaged_loss"] = self._losses(backend, world)["val/loss"]
        return figures

    def _losses(self, backend: Backend, world: World) -> dict[str, float]:
        self.tally.take()
        for index_B in self._shares(backend.dp_rank, backend.dp_size):
            rows = self._select(index_B)
            sums = backend.evaluate(MicroBatch.from_rows(rows, backend.device))
            self.tally.add(sums.token_nll_BT, rows)
        values = world.all_reduce_sum(self.tally.take())
        trained = max(1, LossTally.trained(values))
        figures = self.tally.figures(values)
        losses = {f"val/{name}": value for name, value in figures.items() if name[0] == "l"}
        return {"val/loss": sum(values[: len(values) // 2]) / trained, **losses}

    def _shares(self, rank: int, size: int) -> list[np.ndarray]:
        """Row numbers of each micro-batch of this rank; -1 is a filler, so that all ranks run as
        many."""
        num_rows, together = len(self.rows.ids), self.micro_rows * size
        padded = -(-num_rows // together) * together
        numbers = np.where(np.arange(padded) < num_rows, np.arange(padded), -1)
        return list(numbers[rank::size].reshape(-1, self.micro_rows))

    def _select(self, index_B: np.ndarray) -> Rows:
        """Rows by number; a filler repeats the last row and trains nothing."""
        rows = Rows(**{one.name: getattr(self.rows, one.name)[index_B] for one in fields(Rows)})
        rows.labels[index_B < 0] = IGNORED
        return rows
