"""Every optimizer by the name that `optim.kind` takes. A new one is a file and a row here."""

from mgpt.optim.adamw import AdamW
from mgpt.optim.muon import Muon
from mgpt.optim.rule import Rule

__all__ = ["OPTIMIZERS"]

OPTIMIZERS: dict[str, type[Rule]] = {
    "adamw": AdamW,
    "muon": Muon,
}
