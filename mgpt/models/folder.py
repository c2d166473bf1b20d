"""The model folder: `config.json` beside safetensors, whole or absent.

Weights stand under transformers' Chameleon names in `model.safetensors`, or, above 4 GiB, in
`model-00001-of-00003.safetensors` and so on with transformers' index file. `SHA256SUMS` lists
what each of these files must hold, and is held against them before weights are read. `config.json`
is written last: a folder that has it is complete. The vocabulary beside it is the caller's. This
module reads safetensors and JSON only, never a pickle, one tensor in memory at a time, and knows
nothing of checkpoints' moments.

    >>> save_model("outputs/pretrain/model", model.cfg, model.state_dict())
    >>> model = load_model("outputs/pretrain/model", dtype=torch.bfloat16, device="cuda")
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgpt.errors import CheckpointError
from mgpt.files.atomic import atomic_write, disk_errors, remove_leftovers
from mgpt.files.file_sums import SUMS, check_sums, write_sums
from mgpt.models.table import DecoderModel, config_from, decoder_of, to_record
from mgpt.models.tensor_files import LazyTensor, lazy, misfits, read_headers, write_tensors

__all__ = [
    "load_model",
    "load_model_config",
    "model_tensors",
    "model_with",
    "save_model",
    "split_by_size",
    "vocabulary_fingerprint",
    "vq_fingerprint",
    "write_model",
    "write_sharded",
]

_CONFIG = "config.json"
_VOCABULARY, _VQ = "vocabulary", "vq_fingerprint"
_INDEX = "model.safetensors.index.json"
_MODEL_TYPE = "mgpt"
_MAX_FILE_BYTES = 4 << 30


def save_model(
    folder: str | Path,
    cfg: Any,
    state_dict: Mapping[str, Tensor],
    vocabulary: str | None = None,
) -> None:
    """Writes `cfg` and all of `state_dict` (any device, any layout) as a model folder.

    `vocabulary` is the fingerprint of the one that the weights were trained with. An older model in
    the folder is replaced; other files there stay.
    """
    tensors = [lazy(name, tensor) for name, tensor in state_dict.items()]
    write_model(Path(folder), cfg, tensors, vocabulary)


def write_model(
    folder: Path,
    cfg: Any,
    tensors: Sequence[LazyTensor],
    vocabulary: str | None = None,
    vq: str | None = None,
) -> None:
    """Writes a model folder from tensors that are read one by one; see `write_sharded`.

    `vocabulary` and `vq` are the fingerprints of what the weights were trained with; None where
    that is not known.
    """
    head = {"model_type": _MODEL_TYPE, _VOCABULARY: vocabulary, **({_VQ: vq} if vq else {})}
    write_sharded(folder, tensors, {**head, **to_record(cfg)})


def write_sharded(folder: Path, tensors: Sequence[LazyTensor], config: Mapping[str, Any]) -> None:
    """Writes safetensors, an index where there are several files, SHA256SUMS, and config.json last.

    An older model in the folder is replaced. Where a tensor cannot be read or a file cannot be
    written, no part of the new model stays.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_CONFIG, SUMS):
            (folder / name).unlink(missing_ok=True)
        for prefix in ("model", _CONFIG, SUMS):
            remove_leftovers(folder, prefix)
        for path in folder.glob("model*.safetensors*"):
            path.unlink()
    files = split_by_size(tensors)
    texts = {_CONFIG: _json(config)}
    if len(files) > 1:
        places = {tensor.name: name for name, group in files.items() for tensor in group}
        total = sum(tensor.num_bytes for tensor in tensors)
        weight_map = dict(sorted(places.items()))
        texts[_INDEX] = _json({"metadata": {"total_size": total}, "weight_map": weight_map})
    try:
        sums = {name: write_tensors(folder / name, group) for name, group in files.items()}
        sums |= {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
        if _INDEX in texts:
            atomic_write(folder / _INDEX, texts[_INDEX])
        write_sums(folder, sums)
    except BaseException:
        for path in folder.glob("model*.safetensors*"):
            path.unlink()
        raise
    atomic_write(folder / _CONFIG, texts[_CONFIG])


def split_by_size(tensors: Sequence[LazyTensor]) -> dict[str, list[LazyTensor]]:
    """Each file of a model → its tensors, in order of their names, up to 4 GiB a file."""
    groups: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if groups[-1] and filled + tensor.num_bytes > _MAX_FILE_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.num_bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def load_model_config(folder: str | Path) -> Any:
    """The decoder's configuration in `folder`; CheckpointError if there is none."""
    path = Path(folder) / _CONFIG
    stored = _read_config(path)
    for name in (_VOCABULARY, _VQ):
        stored.pop(name, None)
    try:
        return config_from(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def vocabulary_fingerprint(folder: str | Path) -> str | None:
    """The fingerprint of the vocabulary that the weights in `folder` were trained with; None where
    it was not known. CheckpointError where there is no model."""
    return _stated(folder, _VOCABULARY)


def vq_fingerprint(folder: str | Path) -> str | None:
    """The fingerprint of the VQGAN whose codes the weights in `folder` know; None where it was not
    known. CheckpointError where there is no model."""
    return _stated(folder, _VQ)


def _stated(folder: str | Path, name: str) -> str | None:
    value = _read_config(Path(folder) / _CONFIG).get(name)
    return None if value is None else str(value)


def _read_config(path: Path) -> dict[str, Any]:
    """The fields of config.json beside its kind."""
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is not a model folder: it has no {_CONFIG}; give the folder that a"
            " training stage wrote as <output>/model"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    model_type = stored.pop("model_type", None) if isinstance(stored, dict) else None
    if model_type != _MODEL_TYPE:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}, expected {_MODEL_TYPE!r}; mgpt import makes a "
            "model folder of released weights"
        )
    return dict(stored)


def model_tensors(folder: str | Path) -> dict[str, LazyTensor]:
    """The folder's tensors by name, not read yet; their files are held against SHA256SUMS here.

    Raises CheckpointError where there are none, or a file is cut short or altered.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder}: no model*.safetensors; the folder holds no weights")
    tensors = read_headers(paths)
    check_sums([*paths, *(path for path in (folder / _INDEX, folder / _CONFIG) if path.exists())])
    return tensors


def load_model(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DecoderModel:
    """The decoder in a model folder; see `model_with`."""
    cfg = load_model_config(folder)
    return model_with(cfg, model_tensors(folder).values(), folder, dtype, device)


def model_with(
    cfg: Any,
    tensors: Iterable[LazyTensor],
    where: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DecoderModel:
    """The decoder of a configuration with these weights, in evaluation mode, one tensor at a time.

    Args:
        where: what the weights are of, for messages.

    Raises CheckpointError naming every missing, unknown or wrongly shaped tensor.
    """
    with torch.device("meta"):
        model = decoder_of(cfg).model(cfg)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    found: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        found[tensor.name] = tensor.shape
        if tensor.shape == wanted.get(tensor.name):
            weights[tensor.name] = tensor.read().to(device=device, dtype=dtype)
    problems = misfits(wanted, found)
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit {_CONFIG}: {problems}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
