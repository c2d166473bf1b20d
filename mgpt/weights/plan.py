"""What an import will write, known from headers alone: sizes, tensors under our names, notes.

A reader of one layout (`transformers_folder`, `meta`) makes the plan; whoever writes it reads the
tensors one by one. Names are matched strictly: what is missing, left over or of another shape ends
the plan with one message.

    >>> plan = plan_transformers(Path("chameleon-7b"))
    >>> plan.cfg.layers, plan.num_parameters
    (32, 7013158912)
"""

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mgpt.errors import CheckpointError
from mgpt.models.tensor_files import LazyTensor, misfits
from mgpt.models.transformer import Transformer
from mgpt.models.transformer_config import TransformerConfig
from mgpt.weights.vq_encoder import VqEncoder

__all__ = ["ModelPlan", "check_fit", "checked_values"]

_CHECKED_VALUES = 1 << 20


@dataclass(frozen=True)
class ModelPlan:
    """A model folder before its tensors are read."""

    layout: str
    """What was found, in words."""
    cfg: TransformerConfig
    tensors: list[LazyTensor]
    """All of the model's, under its names."""
    files: list[Path]
    """What it was read from, all in one folder."""
    vq: VqEncoder | None = None
    """The VQGAN's encoder, where it came along."""
    vq_fingerprint: str | None = None
    """The VQGAN whose codes the weights know; None where the configuration does not name it."""
    states_vq: bool = False
    """Whether the configuration says that, or that it is not known."""
    vocabulary_map: dict[str, int] = field(default_factory=dict)
    """Token names and ids that the configuration gives, to hold against the tokenizer's."""
    num_source_tensors: int = 0
    """Stored tensors that these are made from."""
    notes: list[str] = field(default_factory=list)
    """What a person should know: names left out and why, pickles read."""

    @property
    def num_parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Type of tensor → how many, the most frequent first."""
        counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors)
        return dict(counts.most_common())


def check_fit(cfg: TransformerConfig, tensors: Iterable[LazyTensor], where: Path) -> None:
    """Raises CheckpointError that lists every name missing, left over or of another shape."""
    with torch.device("meta"):
        model = Transformer(cfg)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = misfits(wanted, {tensor.name: tensor.shape for tensor in tensors})
    if problems:
        raise CheckpointError(
            f"{where}: the tensors do not fit its configuration (hidden {cfg.hidden}, layers "
            f"{cfg.layers}, heads {cfg.heads}/{cfg.kv_heads}, vocabulary {cfg.vocab_size}): "
            f"{problems}; the files are of another model, or the configuration was changed"
        )


def checked_values(tensors: Iterable[LazyTensor], where: Path) -> list[LazyTensor]:
    """The same tensors; reading one raises CheckpointError where it holds NaN or infinity."""

    def checked(name: str, value: Tensor) -> Tensor:
        # In parts: the check makes copies, and an embedding can have a gigabyte.
        parts = value.flatten().split(_CHECKED_VALUES) if value.is_floating_point() else ()
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            wrong = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"{where}: {name} holds {wrong} of {value.numel()} values that are not "
                "finite; the file was altered or badly copied: fetch it again"
            )
        return value

    return [tensor.then(functools.partial(checked, tensor.name)) for tensor in tensors]
