"""Checkpoints of any size for the tests of exports, without training one.

step = write_checkpoint(folder, cfg, ranks=4)
"""

from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import Tensor

from mgpt.cli.settings import to_plain
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.parallel.snapshot import Piece, Snapshot
from mgpt.train.run_folder import RunFolder


def values(name: str, shape: torch.Size) -> Tensor:
    """Different in each tensor and each row, and quickly made."""
    rows = torch.arange(shape[0], dtype=torch.float32).remainder_(251).add_(len(name))
    return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)


def write_checkpoint(
    folder: Path,
    cfg: TransformerConfig,
    ranks: int,
    make: Callable[[str, torch.Size], Tensor] = values,
    average: Callable[[str, torch.Size], Tensor] | None = None,
) -> Path:
    """The step folder of a run folder, its weights as `ranks` ranks write them, and with `average`
    averaged weights, without other optimizer state."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Transformer(cfg).state_dict().items()}
    owner = RunFolder(folder)
    work = owner.begin(1)
    sums = {}
    for rank in range(ranks):
        pieces = {}
        for kind, makes in (("model", make), ("ema", average)):
            for name, shape in shapes.items() if makes else ():
                each = -(-shape[0] // ranks)
                rows = makes(name, shape)[rank * each : (rank + 1) * each]
                if len(rows):
                    pieces[f"{kind}.{name}"] = Piece(rank * each, rows)
        sums |= Snapshot(pieces, num_updates=1, rank=rank).write(work / "state")
    (work / "config.yaml").write_text(yaml.safe_dump({"transformer": to_plain(cfg)}))
    files = {f"state/{name}": entry._asdict() for name, entry in sums.items()}
    return owner.publish(work, 1, files).path
