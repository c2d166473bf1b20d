"""Safetensors files read and written one tensor at a time, whatever the size of the model.

A `LazyTensor` is a tensor's name, shape and type, and a function that makes it. Reading looks at
headers only; a tensor's bytes are mapped when it is made and unmapped when it is let go. Writing
knows every size beforehand, so that a file is laid out first and filled tensor by tensor: memory
holds one tensor, where the library's own `save_file` needs all of a file's.

    >>> stored = read_headers([Path("model.safetensors")])
    >>> stored["model.norm.weight"].shape, stored["model.norm.weight"].read()
    ((4096,), tensor([...]))
    >>> write_tensors(Path("copy.safetensors"), stored.values())
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgpt.errors import CheckpointError
from mgpt.files.atomic import disk_errors, publish, temporary_path

__all__ = ["LazyTensor", "lazy", "misfits", "name_list", "read_headers", "write_tensors"]

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The order in which the library lays out the types of a file: widest first, so that all is aligned.
_ORDER = ("F64", "I64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
_SHOWN_NAMES = 8


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not in memory yet."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Makes the tensor, on the CPU."""

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def then(self, change: Callable[[Tensor], Tensor], **fields: Any) -> "LazyTensor":
        """What `change` makes of this tensor when it is read; `fields` are those that differ."""
        return replace(self, read=lambda: change(self.read()), **fields)


def lazy(name: str, tensor: Tensor) -> LazyTensor:
    """A tensor at hand, on any device, as one to be read."""
    return LazyTensor(name, tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu())


def read_headers(paths: Iterable[Path]) -> dict[str, LazyTensor]:
    """Every tensor in some files, by name; no tensor's bytes are read.

    Raises CheckpointError where a file is cut short, altered in its header, holds a type that no
    model has, or a name that another file holds too.
    """
    found: dict[str, LazyTensor] = {}
    places: dict[str, Path] = {}
    for path in paths:
        for tensor in _header(path):
            if tensor.name in found:
                raise CheckpointError(
                    f"{tensor.name} stands in {places[tensor.name]} and in {path}; one of the two "
                    "is left over from another model: remove it"
                )
            found[tensor.name], places[tensor.name] = tensor, path
    return found


def write_tensors(path: Path, tensors: Iterable[LazyTensor]) -> str:
    """Writes a safetensors file, whole or not at all, in the library's own layout; its sha256.

    Raises MachineError where the disk does not take it, and what reading a tensor raises.
    """
    ordered = sorted(tensors, key=lambda t: (_ORDER.index(_NAMES[t.dtype]), t.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = temporary_path(path)
    with disk_errors(path):
        try:
            with open(temporary, "xb") as stream:
                head = len(text).to_bytes(8, "little") + text
                digest = hashlib.sha256(head)
                stream.write(head)
                for tensor in ordered:
                    value = tensor.read().contiguous()
                    assert value.shape == tensor.shape and value.dtype == tensor.dtype, tensor
                    data = value.view(-1).view(torch.uint8).numpy().data
                    digest.update(data)
                    stream.write(data)
                    del value, data
                publish(stream, temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def name_list(names: Iterable[str]) -> str:
    """Names for a message: the first few, and how many more there are."""
    names = sorted(names)
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """What is missing, left over or of another shape, in words; empty where nothing is."""
    missing, left_over = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    shapes = [
        f"{name} is {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    problems = [f"missing {name_list(missing)}"] if missing else []
    problems += [f"left over {name_list(left_over)}"] if left_over else []
    problems += [name_list(shapes)] if shapes else []
    return "; ".join(problems)


def _header(path: Path) -> list[LazyTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            sizes = {name: (tuple(p.get_shape()), p.get_dtype()) for name, p in parts.items()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    unknown = {name for name, (_, kind) in sizes.items() if kind not in DTYPES}
    if unknown:
        kinds = sorted({sizes[name][1] for name in unknown})
        raise CheckpointError(
            f"{path}: {name_list(unknown)} have the type {', '.join(kinds)}; weights must be one "
            f"of {', '.join(DTYPES)}"
        )
    return [
        LazyTensor(name, shape, DTYPES[kind], functools.partial(_read, path, name))
        for name, (shape, kind) in sizes.items()
    ]


def _read(path: Path, name: str) -> Tensor:
    # Opened for each tensor: what was read of a mapped file counts as memory until it is closed.
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    size = f"{path.stat().st_size} bytes" if path.exists() else "not there"
    return CheckpointError(
        f"{path} ({size}) cannot be read: {error}; copy or export the model again"
    )
