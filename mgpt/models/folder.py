"""The model folder: `config.json` beside safetensors, whole or absent.

Weights stand under transformers' Chameleon names in `model.safetensors`, or, above 4 GiB, in
`model-00001-of-00003.safetensors` and so on with transformers' index file. `config.json` is
written last: a folder that has it is complete. The vocabulary beside it is the caller's. This
module reads safetensors and JSON only, never a pickle, and knows nothing of checkpoints' moments.

    >>> save_model("outputs/pretrain/model", model.cfg, model.state_dict())
    >>> model = load_model("outputs/pretrain/model", dtype=torch.bfloat16, device="cuda")
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgpt.errors import CheckpointError, MgptError
from mgpt.files import atomic_write, disk_errors, publish, remove_leftovers, temporary_path
from mgpt.models.transformer import Transformer, TransformerConfig

__all__ = ["load_model", "load_model_config", "read_weights", "save_model"]

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_MODEL_TYPE = "mgpt"
_MAX_FILE_BYTES = 4 << 30
_SHOWN_PROBLEMS = 8


def save_model(
    folder: str | Path, cfg: TransformerConfig, state_dict: Mapping[str, Tensor]
) -> None:
    """Writes `cfg` and all of `state_dict` (any device, any layout) as a model folder.

    An older model in the folder is replaced; other files there stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    for prefix in ("model", _CONFIG):
        remove_leftovers(folder, prefix)
    groups = _split_by_size(state_dict)
    names = ["model.safetensors"]
    if len(groups) > 1:
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    for path in folder.glob("model*.safetensors*"):
        if path.name not in names:
            path.unlink()
    for name, group in zip(names, groups, strict=True):
        tensors = {key: state_dict[key].detach().cpu().contiguous() for key in group}
        _write_tensors(folder / name, tensors)
    if len(groups) > 1:
        places = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        total = sum(_num_bytes(tensor) for tensor in state_dict.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(folder / _INDEX, index)
    _write_json(folder / _CONFIG, {"model_type": _MODEL_TYPE, **asdict(cfg)})


def load_model_config(folder: str | Path) -> TransformerConfig:
    """The sizes of the model in `folder`; CheckpointError where there is none."""
    path = Path(folder) / _CONFIG
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a model folder: it has no {_CONFIG}; give the folder that a training"
            " stage wrote as <output>/model"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    known = {field.name for field in fields(TransformerConfig)}
    model_type = stored.pop("model_type", None) if isinstance(stored, dict) else None
    if model_type != _MODEL_TYPE:
        raise CheckpointError(f"{path}: model_type is {model_type!r}, expected {_MODEL_TYPE!r}")
    if stored.keys() != known:
        raise CheckpointError(
            f"{path}: fields missing {sorted(known - stored.keys())}, unknown"
            f" {sorted(stored.keys() - known)}; it was written by another version of mgpt"
        )
    try:
        return TransformerConfig(**stored)
    except (MgptError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) in the folder's safetensors, one tensor in memory at a time.

    Raises CheckpointError where there are none or a file is cut short or altered in its header.
    """
    paths = sorted(Path(folder).glob("model*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder}: no model*.safetensors; the folder holds no weights")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} ({path.stat().st_size} bytes) cannot be read: {error}; copy or export the"
                " model again"
            ) from error


def load_model(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Transformer:
    """The model in `folder`, in evaluation mode, weights cast to `dtype` on `device`.

    Raises CheckpointError naming every missing, unknown or wrongly shaped tensor.
    """
    cfg = load_model_config(folder)
    with torch.device("meta"):
        model = Transformer(cfg)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    problems = []
    for name, tensor in read_weights(folder):
        if name not in wanted:
            problems.append(f"{name} is unknown to this configuration")
        elif tuple(tensor.shape) != wanted[name]:
            problems.append(f"{name} is {tuple(tensor.shape)}, expected {wanted[name]}")
        else:
            weights[name] = tensor.to(device=device, dtype=dtype)
            continue
        wanted.pop(name, None)
    problems += [f"{name} is missing" for name in wanted if name not in weights]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        listed = "; ".join(problems[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError(f"{folder}: the weights do not fit {_CONFIG}: {listed}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _split_by_size(state_dict: Mapping[str, Tensor]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(state_dict):
        size = _num_bytes(state_dict[name])
        if groups[-1] and filled + size > _MAX_FILE_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_json(path: Path, content: object) -> None:
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    temporary = temporary_path(path)
    with disk_errors(path):
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
            with open(temporary, "rb+") as stream:
                publish(stream, temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
