"""What one machine is: versions, GPUs and their links, and how fast it writes and reads a folder.

Facts are plain data, so that those of all nodes can be compared on one of them. Nothing here
touches a GPU: what is said of them comes from nvidia-smi.

    >>> facts = node_facts(Path("outputs/doctor"), file_mb=64)
    >>> facts["node"], facts["versions"]["torch"], facts["files"]["write_mb_s"]
    ('gpu-017', '2.13.0', 1840.2)
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

SMI_PATIENCE_S = 30
_SMI_FIELDS = {
    "index": "index",
    "name": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "uncorrected_errors": "ecc.errors.uncorrected.volatile.total",
    "temperature_c": "temperature.gpu",
    "pcie_lanes": "pcie.link.width.current",
    "pcie_lanes_most": "pcie.link.width.max",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BLOCK = 1 << 20


def node_name() -> str:
    """Slurm's name of this node, else its hostname without the domain."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]


def node_facts(folder: Path, file_mb: int) -> dict[str, Any]:
    """All facts of this machine; `folder` is where files are measured."""
    return {
        "node": node_name(),
        "versions": versions(),
        "gpus": gpus(),
        "links": gpu_links(),
        "files": measure_files(folder, file_mb),
    }


def versions() -> dict[str, str]:
    """Versions of Python, CUDA, NCCL, mgpt's own code and every installed package."""
    found = {
        str(package.metadata["Name"]).lower(): package.version
        for package in metadata.distributions()
        if package.metadata["Name"]
    }
    found |= {"python": platform.python_version(), "mgpt code": code_fingerprint()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    found["torch"] = torch.__version__
    return found


def code_fingerprint() -> str:
    """First digits of the sha256 of mgpt's Python files, as this machine sees them."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def gpus() -> list[dict[str, str]]:
    """One entry a GPU that nvidia-smi lists; its word where it cannot say a figure."""
    query = f"--query-gpu={','.join(_SMI_FIELDS.values())}"
    lines = _smi(query, "--format=csv,noheader,nounits").splitlines()
    return [
        dict(zip(_SMI_FIELDS, (word.strip() for word in line.split(",")), strict=True))
        for line in lines
        if line.count(",") == len(_SMI_FIELDS) - 1
    ]


def gpu_links() -> dict[str, str]:
    """Pair of GPUs → what joins them, from nvidia-smi's matrix: NV18 is eighteen NVLinks, PIX to
    SYS are ways over PCIe, from one switch to between sockets."""
    lines = [_COLOUR.sub("", line).split("\t") for line in _smi("topo", "-m").splitlines()]
    header = next((line for line in lines if "GPU0" in (word.strip() for word in line)), [])
    columns = [word.strip() for word in header]
    found = {}
    for line in lines:
        words = [word.strip() for word in line]
        if words is columns or not re.fullmatch(r"GPU\d+", words[0]):
            continue
        for other, link in zip(columns[1:], words[1:]):
            if re.fullmatch(r"GPU\d+", other) and int(words[0][3:]) < int(other[3:]):
                found[f"{words[0]}-{other}"] = link
    return found


def measure_files(folder: Path, file_mb: int) -> dict[str, Any]:
    """MB/s of writing a file to the disk and of reading it, milliseconds of a small file's making,
    and free GB; `error` instead where the folder cannot be used.

    The read is not from this machine's memory, but may be from the file server's.
    """
    path = folder / f".{node_name()}.doctor"
    block = os.urandom(_BLOCK)
    try:
        began = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(file_mb):
                file.write(block)
            os.fsync(file.fileno())
            write_s = time.perf_counter() - began
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while file.read(_BLOCK):
                pass
        read_s = time.perf_counter() - began
        began = time.perf_counter()
        for index in range(20):
            small = path.with_name(f"{path.name}.{index}")
            small.write_bytes(b"1")
            small.unlink()
        small_ms = (time.perf_counter() - began) / 20 * 1e3
        path.unlink()
    except OSError as error:
        return {"error": f"{folder}: {error.strerror or error}"}
    megabytes = file_mb * _BLOCK / 1e6
    return {
        "write_mb_s": megabytes / write_s,
        "read_mb_s": megabytes / read_s,
        "small_ms": small_ms,
        "free_gb": shutil.disk_usage(folder).free / 1e9,
    }


def _smi(*words: str) -> str:
    """What nvidia-smi prints; nothing where there is none or it fails."""
    try:
        return subprocess.run(
            ["nvidia-smi", *words],
            capture_output=True,
            text=True,
            timeout=SMI_PATIENCE_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
