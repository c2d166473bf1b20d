"""The processes of one run: who I am, and the few collectives that the rooms above need.

A `World` is a value: rank, size, device. Without a launcher it is one process and every collective
returns at once, so the code above is written once. Objects travel between ranks as JSON, never as
pickle. Errors travel too: `on_main` and `raise_together` end all ranks with the message of the one
that failed, where a lone `raise` would leave the others waiting for it in their next collective.

This module knows nothing of models or training.

    >>> world = init_distributed()
    >>> world.rank, world.size, world.all_reduce_sum([1.0, 2.0])
    (0, 1, [1.0, 2.0])
"""

import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mgpt.errors import MachineError, MgptError, told
from mgpt.parallel.failures import FailureWatch, share

__all__ = ["World", "init_distributed"]

_SETTLING_ROUNDS = 4

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of the run. The default is a run of one process on the CPU."""

    rank: int = 0
    """Position among all processes; rank 0 writes files and speaks to people."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Position among the processes of this machine; it picks the GPU."""
    local_size: int = 1
    """Number of processes of this machine."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    """Whose collectives these are; None: the one that all share."""
    failures: FailureWatch | None = field(default=None, compare=False)
    """Ends this rank when another one fails; None for a lone process."""

    def apart(self) -> "World":
        """The same ranks with a process group of their own: another thread may use it while this
        one is in the collectives of the first. Collective."""
        if self.size == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1), group=self.group)

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over the ranks, in float64. Every rank gives as many values."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return self.all_reduce_sum([float(flag)])[0] > 0

    def gather_objects(self, value: Any) -> list[Any]:
        """The JSON-able value of each rank, by rank, on every rank."""
        if self.size == 1:
            return [value]
        payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([payload.numel()]), group=self.group)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: payload.numel()] = payload
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.group)
        return [
            json.loads(bytes(part[: int(length)].numpy()))
            for part, length in zip(parts, lengths, strict=True)
        ]

    def broadcast_object(self, value: Any) -> Any:
        """The JSON-able value of rank 0, on every rank."""
        return self.gather_objects(value if self.is_main else None)[0]

    def raise_together(self, error: MgptError | None) -> None:
        """Raises on every rank, as the same kind, the error of the lowest rank that has one.

        Those of ranks that have none are marked as told.
        """
        found = [None, None] if error is None else [type(error).__name__, str(error)]
        for rank, (kind, message) in enumerate(self.gather_objects(found)):
            if kind is not None:
                if rank == self.rank:
                    raise share(error)
                raise told(_error_kind(kind)(f"{message} (on rank {rank})"))

    def on_main(self, action: Callable[[], T]) -> T:
        """Runs `action` on rank 0 alone; every rank returns its JSON-able result, or raises its
        MgptError. Collective."""
        error: MgptError | None = None
        result: T | None = None
        if self.is_main:
            try:
                result = action()
            except MgptError as cause:
                error = cause
        self.raise_together(error)
        return self.broadcast_object(result)

    def require_process_group(self) -> None:
        """A process group exists afterwards; a lone process gets one of its own, without ports."""
        if not dist.is_initialized():
            assert self.size == 1, "several ranks meet in init_distributed"
            dist.init_process_group(
                _collectives(self.device), store=dist.HashStore(), rank=0, world_size=1
            )

    def settle(self) -> None:
        """Returns when gloo's threads have let go of the tensors of all collectives; collective.

        They drop a tensor some time after its collective has returned, and take the interpreter's
        lock for it; where the interpreter has begun to exit by then, the process aborts with all
        its work done (PyTorch pull request 179291; on a busy machine 10 of 30 exits without this, 0
        of 60 with). A thread drops a tensor before it takes the next collective, so a few rounds
        reach them all.
        """
        for _ in range(_SETTLING_ROUNDS):
            tensor = torch.zeros(1)
            dist.all_reduce(tensor, group=self.group)
            dropped = weakref.ref(tensor)
            del tensor
            deadline = time.monotonic() + 1.0
            time.sleep(0.005)  # gives the lock away
            while dropped() is not None and time.monotonic() < deadline:
                time.sleep(0.005)

    def shutdown(self) -> None:
        """Leaves the process group, if any; collective, except while an error travels up.

        That error ends the other ranks as well; if another rank has failed before, this one ends
        here.
        """
        if not dist.is_initialized():
            return
        error = sys.exc_info()[1]
        if error is None:
            self.settle()
        if self.failures is not None:
            if error is None:
                self.failures.close()
            elif not self.failures.announce(error):
                self.failures.end()
        dist.destroy_process_group()


def init_distributed(device: str = "auto", timeout_s: float = 1800.0) -> World:
    """Joins the processes that torchrun or srun started; alone where nothing started us.

    Args:
        device: "cpu", "cuda", or "auto" for the GPU of this local rank where there is one.
        timeout_s: longest wait in one collective, in seconds.

    Raises:
        MachineError: a GPU is asked for and there is none, or the processes do not meet.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise MachineError("device=cuda: torch sees no GPU here; set device=cpu or auto")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    rank = int(os.environ.get("RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    where = torch.device("cpu")
    if has_gpu and device != "cpu":
        # With one GPU bound to each task of an srun step, that one is each task's first.
        where = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(where)
    if "RANK" in os.environ and not dist.is_initialized():
        try:
            dist.init_process_group(_collectives(where), timeout=timedelta(seconds=timeout_s))
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise MachineError(
                f"rank {rank} of {size} did not meet the others at {address}: {error}; "
                "check that the address is reachable and the port free"
            ) from error
    failures = None
    if size > 1:
        failures = FailureWatch(dist.distributed_c10d._get_default_store(), rank, size)
    return World(rank, size, local_rank, local_size, where, failures=failures)


def _collectives(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _error_kind(name: str) -> type[MgptError]:
    for kind in MgptError.__subclasses__():
        if kind.__name__ == name:
            return kind
    return MgptError
