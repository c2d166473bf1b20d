"""How this process's memory allocator treats large blocks that were freed.

glibc gives them back to the system at once, and the next tensor of the same size is filled page by
page anew: a fifth to a third of the time of a small convolutional network on a CPU.

    keep_freed_memory()      # before the first large tensor
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_KEPT_BYTES = 1 << 30
_PAD_BYTES = 64 << 20
_LARGEST_BYTES = 32 << 20  # the most that glibc takes; what is larger stays a mapping of its own


def keep_freed_memory() -> bool:
    """Keep up to 1 GB of freed memory for what is allocated next; False where that is not done.

    The most memory the process ever holds does not change. Other allocators than glibc's stay as
    they are, and so does glibc's where the environment sets it (`MALLOC_…_`, `GLIBC_TUNABLES`).
    """
    if sys.platform != "linux" or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return (
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES) == 1
        and mallopt(_TOP_PAD, _PAD_BYTES) == 1
        and mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES) == 1
    )
