"""The gradients of one step on this rank, micro-batch by micro-batch, and what they cost.

Every micro-batch has the same scale, 1 / (trained tokens of the step on all ranks), so how rows are
shared out cannot change the sum. Dropout is drawn from (seed, step, rank, micro-batch): a resumed
run draws what an undisturbed one draws.

    >>> nll_sum, z_sum = accumulate(backend, rows, tally, seed=0, step=12)
"""

import hashlib

import torch
from torch import Tensor

from mgpt.data.loader import Rows, StepRows
from mgpt.parallel.backend import Backend, MicroBatch
from mgpt.train.metrics import LossTally

__all__ = ["accumulate", "place_rows"]


def accumulate(
    backend: Backend, rows: StepRows, tally: LossTally, seed: int, step: int
) -> tuple[float, float]:
    """Runs the rows forward and backward and adds their losses to the tally.

    Returns this rank's sums of the losses in nats and of logsumexp² over trained tokens.
    """
    scale = 1.0 / max(1, rows.trained_tokens)
    sums = torch.zeros(2, dtype=torch.float64, device=backend.device)
    for index, micro in enumerate(rows.micro):
        torch.manual_seed(_dropout_seed(seed, step, backend.dp_rank, index))
        batch, groups_BT, sources_BT = place_rows(micro, backend.device)
        micro_sums = backend.forward_backward(batch, scale, index == len(rows.micro) - 1)
        sums += torch.stack([micro_sums.nll_sum, micro_sums.z_sum]).double()
        tally.add(micro_sums.token_nll_BT, batch.labels_BT, groups_BT, sources_BT)
    nll_sum, z_sum = sums.tolist()
    return nll_sum, z_sum


def place_rows(rows: Rows, device: torch.device) -> tuple[MicroBatch, Tensor, Tensor]:
    """The micro-batch, and the places of each token's task and source, int64 [B, T]."""
    arrays = (rows.ids, rows.labels, rows.positions, rows.groups, rows.sources)
    ids_BT, labels_BT, positions_BT, groups_BT, sources_BT = (
        torch.from_numpy(array).to(device, torch.int64, non_blocking=True) for array in arrays
    )
    return MicroBatch(ids_BT, labels_BT, positions_BT), groups_BT, sources_BT


def _dropout_seed(seed: int, step: int, rank: int, micro: int) -> int:
    key = hashlib.sha256(f"dropout:{seed}:{step}:{rank}:{micro}".encode()).digest()
    return int.from_bytes(key[:8], "little") >> 1
