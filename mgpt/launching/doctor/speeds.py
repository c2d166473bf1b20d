"""Measurements that may hang or die, each in a process of its own that is ended when it is late.

An all-reduce between two nodes, and what each GPU of a node computes and copies. The processes are
forks of one that was forked before the caller had threads or a GPU: torch is imported already, and
CUDA starts afresh in each.

    >>> with Bench() as bench:
    ...     bench.measure(gpu_speeds, (), patience_s=60)
    {'gpus': [{'tflops': 702.1}], 'copies': {}}
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

_ROUNDS = 5
_MATRIX = 8192
_COPY_BYTES = 1 << 28
_FORK = multiprocessing.get_context("fork")
Measure = Callable[..., dict[str, Any]]


class Bench:
    """Where measurements are made, one at a time; to be opened before anything has a thread."""

    def __enter__(self) -> Bench:
        self._end, other = _FORK.Pipe()
        self._process = _FORK.Process(target=_serve, args=(other, self._end))
        self._process.start()
        other.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._process.join(5)
        self._process.kill()
        self._process.join(5)

    def measure(
        self, measure: Measure, arguments: tuple[Any, ...], patience_s: float
    ) -> dict[str, Any]:
        """What the function returns in a process of its own, or {"error": why not}."""
        self._end.send((measure, arguments, patience_s))
        try:
            return self._end.recv()
        except EOFError:
            return {"error": "the process that measures is gone"}


def _serve(end: Connection, callers_end: Connection) -> None:
    callers_end.close()
    while True:
        try:
            measure, arguments, patience_s = end.recv()
        except EOFError:  # the caller is done, or dead
            os._exit(0)
        end.send(_bounded(measure, arguments, patience_s))


def _bounded(measure: Measure, arguments: tuple[Any, ...], patience_s: float) -> dict[str, Any]:
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_report, args=(sender, measure, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(patience_s):
            return {"error": f"no answer in {patience_s:g} s"}
        return receiver.recv()
    except EOFError:
        process.join(5)
        return {"error": f"ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join(10)


def _report(sender: Connection, measure: Measure, arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(measure(*arguments))
    except Exception as error:  # whatever it is, it is the finding
        sender.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
    sender.close()
    os._exit(0)


def pair_speed(
    address: str, port: int, name: str, rank: int, on_gpu: bool, payload_mb: int, patience_s: float
) -> dict[str, Any]:
    """GB/s at which this process and the pair's other all-reduce, by NCCL between the first GPUs,
    by gloo where there are none.

    Two ranks send and receive the payload once each: bytes / seconds is the bus bandwidth.
    """
    timeout = timedelta(seconds=patience_s)
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore(name, store),
        rank=rank,
        world_size=2,
        timeout=timeout,
    )
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    payload = torch.zeros(payload_mb * 1_000_000 // 4, device=device)
    dist.all_reduce(payload)  # the connections
    _settle(device)
    fastest_s = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        dist.all_reduce(payload)
        _settle(device)
        fastest_s = min(fastest_s, time.perf_counter() - began)
    return {"gb_s": payload.numel() * 4 / fastest_s / 1e9}


def gpu_speeds() -> dict[str, Any]:
    """bf16 TFLOP/s of each GPU on a matrix product, and GB/s of copies between each two."""
    found: list[dict[str, float]] = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        a = torch.randn(_MATRIX, _MATRIX, device=device, dtype=torch.bfloat16)
        fastest_s = _fastest(lambda a=a: a @ a, device)  # type: ignore[misc]
        found.append({"tflops": 2 * _MATRIX**3 / fastest_s / 1e12})
    copies = {}
    for first in range(len(found)):
        for second in range(first + 1, len(found)):
            source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=f"cuda:{first}")
            target = torch.empty_like(source, device=f"cuda:{second}")
            device = torch.device("cuda", second)
            took_s = _fastest(lambda t=target, s=source: t.copy_(s), device)  # type: ignore[misc]
            copies[f"GPU{first}-GPU{second}"] = _COPY_BYTES / took_s / 1e9
    return {"gpus": found, "copies": copies}


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    fastest_s = float("inf")
    for _ in range(_ROUNDS + 1):  # the first warms up
        began = time.perf_counter()
        work()
        _settle(device)
        fastest_s = min(fastest_s, time.perf_counter() - began)
    return fastest_s


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
