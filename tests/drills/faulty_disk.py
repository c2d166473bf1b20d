"""A disk on which one step ends all: the process dies there, or finds the disk full.

For a process of its own, whose `os` and whose modules' `open` are replaced for good. A step is a
call to one of `calls`, the opening of a file to write, or a write, which is torn in its middle.

    steps = break_disk(7, "kill", calls=("fsync", "replace"), openers=(files, storage))
    ...
    next(steps)  # how many there were
"""

import errno
import io
import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

FULL_DISK_STATUS = 3
"""What a process exits with that was told of a full disk."""


def break_disk(
    fatal: int, how: str, calls: Sequence[str], openers: Sequence[ModuleType]
) -> Iterator[int]:
    """Makes the `fatal`-th step, from 0, the last one ("kill") or an error ("full_disk").

    Returns the counter of steps.
    """
    steps = itertools.count()
    real_open = io.open

    def step() -> None:
        if next(steps) != fatal:
            return
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FaultyFile(io.FileIO):
        def write(self, data: Any) -> int:
            middle = len(data) // 2
            super().write(bytes(data)[:middle])
            step()
            return middle + super().write(bytes(data)[middle:])

    def faulty_open(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa"):
            return real_open(path, mode, *args, **options)
        step()
        stream = io.BufferedWriter(FaultyFile(path, mode.replace("b", "")))
        return stream if "b" in mode else io.TextIOWrapper(stream)

    for name in calls:
        real = getattr(os, name)
        setattr(os, name, lambda *args, real=real, **options: (step(), real(*args, **options))[1])
    for module in openers:
        module.open = faulty_open  # type: ignore[attr-defined]
    return steps
