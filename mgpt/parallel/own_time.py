"""How long a rank works by itself in a step, which tells a slow rank from those that wait for it.

Sharded ranks run in lockstep: where one is late, all are, and the time of a step says nothing about
whose fault it was. What counts here is what lies between the collectives: from the start of the
step to the first of them, the gaps between micro-batches, and the forward pass of each block, after
its weights have been gathered. On a GPU the blocks are timed by its own clock.

    >>> own_time = OwnTime(device)
    >>> own_time.watch(model.get_submodule(name) for name in sharding_plan(model))
    >>> own_time.start()            # the step
    >>> own_time.enter()            # collectives follow
    >>> own_time.leave()
    >>> own_time.seconds()
"""

import time
from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["OwnTime"]


class OwnTime:
    """A stopwatch of this rank."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._since, self._seconds = time.perf_counter(), 0.0
        self._entered_block = 0.0
        self._marks: list[torch.cuda.Event] = []

    def watch(self, blocks: Iterable[nn.Module]) -> None:
        """Times the forward passes of these. Called before they are sharded: what a library hooks
        in afterwards then runs around the time that is taken."""
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: self._mark(True))
            block.register_forward_hook(lambda *_: self._mark(False))

    def start(self) -> None:
        """A step begins, on all ranks at about the same time."""
        self._since, self._seconds = time.perf_counter(), 0.0
        self._marks.clear()

    def enter(self) -> None:
        """A micro-batch begins, and from here on ranks wait for one another."""
        self._seconds += time.perf_counter() - self._since

    def leave(self) -> None:
        """It has ended."""
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Of this step so far. On a GPU it must have come to the end of the work given to it."""
        if not self._on_gpu:
            return self._seconds
        pairs = zip(self._marks[::2], self._marks[1::2], strict=False)
        return self._seconds + sum(start.elapsed_time(end) for start, end in pairs) / 1e3

    def _mark(self, begins: bool) -> None:
        if not torch.is_grad_enabled():  # a validation's
            return
        if self._on_gpu:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            self._marks.append(mark)
        elif begins:
            self._entered_block = time.perf_counter()
        else:
            self._seconds += time.perf_counter() - self._entered_block
