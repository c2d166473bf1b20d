"""How a block runs: what it keeps for its backward pass, and whether it is compiled.

*full*: a block keeps its input only and runs again in the backward pass: one more forward, about a
third of a step, for all activations inside the blocks. *selective*: it keeps what its matrix
products and its attention gave as well, and makes only the rest again: norms, rotations, gates,
which cost memory and little time. Dropout draws the same numbers in both runs, since the
generator's state is put back.

Parameter names stay as they are: the block's `forward` is replaced, not the block. What a sharding
library hooks to the block stays outside of it, so a compiled block is compiled whole.

    >>> recompute_blocks(model, ["blocks.0", "blocks.1"], "full")
    >>> compile_blocks(model, ["blocks.0", "blocks.1"])
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from mgpt.parallel.backend import TrainableModel

__all__ = ["blocks_of", "compile_blocks", "recompute_blocks"]

# Products and attention kernels by their names in the dispatcher, of CPUs and GPUs. FlexAttention
# compiled on its own is not seen from outside; in a compiled block it is.
_KEPT_BY_SELECTIVE = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_flash_attention_forward",
        "torch_attn::_varlen_attn",
        "flex_attention",
    }
)


def blocks_of(model: TrainableModel, names: Iterable[str]) -> Iterator[nn.Module]:
    """The modules of a sharding plan that have modules inside.

    The others, such as the head, make their gradients in the forward pass and keep nothing worth
    making again.
    """
    for name in names:
        block = model.get_submodule(name)
        if next(block.children(), None) is not None:
            yield block


def recompute_blocks(
    model: TrainableModel, names: Iterable[str], what: str, *, reentrant: bool = False
) -> None:
    """Makes the blocks among the named submodules recompute themselves.

    Args:
        what: none, selective or full.
        reentrant: True for ZeRO-3 alone, and full alone. Its parameters are empty between uses,
            which the non-reentrant form reports as recomputed values of another shape.
    """
    if what == "none":
        return
    settings: dict[str, Any] = {"use_reentrant": reentrant}
    if what == "selective":
        assert not reentrant, "a reentrant pass keeps nothing but inputs"
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks_of(model, names):
        block.forward = _recomputing(block.forward, settings)


def _recomputing(forward: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    def recomputed(*args: Any) -> Any:
        return checkpoint(forward, *args, **settings)

    return recomputed


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op.name() in _KEPT_BY_SELECTIVE:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: TrainableModel, names: Iterable[str]) -> None:
    """Compiles the blocks among the named submodules, with their recomputation; one of them is
    compiled, since the others are alike and share its code. Nothing happens before the first pass.
    """
    for block in blocks_of(model, names):
        block.forward = torch.compile(block.forward)
