"""Measurements that may hang or die, each in a process of its own that is ended when it is late.

An all-reduce between two nodes, and what each GPU of a node computes and copies. The processes
come from a server that has torch imported already, so that one starts at once; the caller itself
never touches a GPU.

    >>> bounded(gpu_speeds, (), patience_s=60)
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


def bounded(
    measure: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], patience_s: float
) -> dict[str, Any]:
    """What the function returns in a process of its own, or {"error": why not}."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, measure, arguments), daemon=True)
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


def _report(
    sender: Connection, measure: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]
) -> None:
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
