"""Reads Chameleon's released VQGAN: a folder with `vqgan.yaml` and `vqgan.ckpt`.

The checkpoint is a pickle. It is read with torch's restricted unpickler, only after a check of its
size, and nowhere else in the package; `mgpt.tokenizers.vqgan.save_vqgan` keeps the result as
safetensors. A file from training also holds the loss's networks under `loss.*`; these, and only
these, are dropped.

    >>> cfg, state = read_released_folder(Path("chameleon/tokenizer"))
    >>> cfg.n_embed, cfg.downsample
    (8192, 16)
"""

import functools
import logging
import pickle
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgpt.errors import CheckpointError, ConfigError, MachineError
from mgpt.files.file_sums import check_sums
from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = ["is_released_folder", "read_released_folder"]

_YAML = "vqgan.yaml"
_CHECKPOINT = "vqgan.ckpt"
# The released files are 281 MB and 1 kB; beyond these sizes the folder is something else.
_MAX_CHECKPOINT_BYTES = 4 * 1024**3
_MAX_YAML_BYTES = 64 * 1024
_DROPPED_PREFIX = "loss."
_log = logging.getLogger(__name__)


def is_released_folder(folder: Path) -> bool:
    """Whether both files are there."""
    return (folder / _YAML).is_file() and (folder / _CHECKPOINT).is_file()


def read_released_folder(folder: Path) -> tuple[VqganConfig, dict[str, Tensor]]:
    """Configuration and weights, by the names of `mgpt.tokenizers.vqgan.Vqgan`.

    Raises:
        ConfigError: the yaml is not a VQ model's, or has settings this software does not know.
        CheckpointError: the checkpoint is too large, is not a plain state dict, or is damaged; a
            file is not as the folder's list of hashes has it.
        MachineError: PyYAML is not installed.
    """
    check_sums([folder / _YAML, folder / _CHECKPOINT])
    _warn_once(folder)
    return _read_config(folder / _YAML), _read_state(folder / _CHECKPOINT)


@functools.cache
def _warn_once(folder: Path) -> None:
    _log.warning(
        f"{folder / _CHECKPOINT} is a pickle, which can carry code: it is read with torch's "
        f"restricted unpickler (weights_only). mgpt import input={folder} makes safetensors of it"
    )


def _read_config(path: Path) -> VqganConfig:
    try:
        import yaml
    except ImportError as error:
        raise MachineError(f"{path}: reading it needs PyYAML: pip install pyyaml") from error
    _check_size(path, _MAX_YAML_BYTES)
    try:
        params: dict[str, Any] = yaml.safe_load(path.read_text())["model"]["params"]
        settings = dict(params["ddconfig"])
        settings |= {name: params[name] for name in ("embed_dim", "n_embed")}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a VQGAN configuration: it needs model.params with ddconfig, embed_dim "
            f"and n_embed ({error!r})"
        ) from error
    known = {field.name: field for field in fields(VqganConfig)}
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{path}: ddconfig has unknown settings {', '.join(unknown)}")
    wrong = [
        f"{name}={value!r}"
        for name, value in settings.items()
        if not _has_type_of(value, known[name].default)
    ]
    if wrong:
        raise ConfigError(f"{path}: settings of a wrong type: {', '.join(wrong)}")
    return VqganConfig(**settings)


def _read_state(path: Path) -> dict[str, Tensor]:
    _check_size(path, _MAX_CHECKPOINT_BYTES)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} holds no `state_dict` of tensors")
    return {name: t for name, t in state.items() if not name.startswith(_DROPPED_PREFIX)}


def _check_size(path: Path, max_bytes: int) -> None:
    num_bytes = path.stat().st_size
    if num_bytes > max_bytes:
        raise CheckpointError(
            f"{path} has {num_bytes} bytes, more than the {max_bytes} a VQGAN may have: "
            "this is another file"
        )


def _has_type_of(value: object, default: object) -> bool:
    assert default is not MISSING
    if isinstance(default, tuple):
        return isinstance(value, list) and all(type(item) is int for item in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)
