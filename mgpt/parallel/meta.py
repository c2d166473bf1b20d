"""Models without memory: names, shapes and code, on the meta device.

>>> model = on_meta(lambda: Transformer(SIZES["34b"]))  # in a moment, in no memory
>>> model.lm_head.weight.device.type
'meta'
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["on_meta"]

Made = TypeVar("Made")


class _Uninitialised(TorchFunctionMode):
    """Leaves new weights as they are: drawing them on the meta device imports torch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def on_meta(make: Callable[[], Made]) -> Made:
    """What `make` makes, with the meta device as the default and nothing drawn at random."""
    with torch.device("meta"), _Uninitialised():
        return make()
