"""Counts the bytes of tensors that are alive while code runs, on any device, the meta device too.

On the meta device tensors have sizes and no memory, so a 34-billion-parameter forward and backward
pass is measured on a laptop in seconds, from the model's own code.

    >>> with LiveBytes() as counter:
    ...     a = torch.empty(1000, device="meta")
    ...     b = a + 1
    ...     del a
    >>> counter.live, counter.peak
    (4000, 8000)
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Storages made inside the `with` block: bytes alive now, and the most at any moment.

    Args:
        outside: tensors that exist already and are not counted when something returns them.
    """

    def __init__(self, outside: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()
        for tensor in outside:
            self._know(tensor.untyped_storage(), 0)

    def restart_peak(self) -> None:
        """Forgets the highest value so far."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._know(storage, storage.nbytes())
        return out

    def _know(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        # The Python object of a storage lives as long as the storage itself.
        self._known.add(storage._cdata)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes
