"""Activation checkpointing: a block keeps its input only, and runs again in the backward pass.

Costs one more forward (about a third of a step), saves all activations inside the blocks. Dropout
draws the same numbers in both runs, since the generator's state is put back.

    >>> recompute_blocks(model, ["blocks.0", "blocks.1"], reentrant=False)
"""

import functools
from collections.abc import Iterable

from torch.utils.checkpoint import checkpoint

from mgpt.parallel.backend import TrainableModel

__all__ = ["recompute_blocks"]


def recompute_blocks(model: TrainableModel, names: Iterable[str], *, reentrant: bool) -> None:
    """Makes each named submodule recompute itself; parameter names stay as they are.

    A module without submodules is left alone: the head makes its gradients in its forward pass and
    keeps nothing worth saving.

    Args:
        reentrant: True for ZeRO-3 alone. Its parameters are empty between uses, which the
            non-reentrant form reports as recomputed values of another shape.
    """
    for name in names:
        block = model.get_submodule(name)
        if next(block.children(), None) is None:
            continue
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=reentrant)
