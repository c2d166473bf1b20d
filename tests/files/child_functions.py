"""Functions that the tests of `mgpt.files.child_processes` call in other processes, by name."""

import os
import signal
import time
from multiprocessing.connection import Connection

import numpy as np

from mgpt.errors import DataError


def double(array: np.ndarray) -> np.ndarray:
    return 2 * array


def refuse(name: str) -> None:
    raise DataError(f"{name}: damaged")


def pid_after(pause_s: float = 0.0) -> int:
    time.sleep(pause_s)
    return os.getpid()


def die_in_its_answer() -> bytes:
    def send_half(self: Connection, data: bytes) -> None:
        os.write(self.fileno(), data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Connection._send = send_half
    return bytes(10_000)


def die_before_its_answer() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def remember(number: int) -> None:
    global remembered
    remembered = number


def recall() -> int:
    return remembered
