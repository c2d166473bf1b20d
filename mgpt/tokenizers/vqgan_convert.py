"""Reads Chameleon's released VQGAN: a folder with `vqgan.yaml` and `vqgan.ckpt`.

The checkpoint is a pickle, read as `mgpt.tokenizers.released_files` reads them. A file from
training also holds the loss's networks under `loss.*`; these, and only these, are dropped.

    >>> cfg, state = read_released_folder(Path("chameleon/tokenizer"))
    >>> cfg.n_embed, cfg.downsample
    (8192, 16)
"""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from mgpt.errors import CheckpointError, ConfigError
from mgpt.files.file_sums import check_sums
from mgpt.tokenizers.released_files import read_pickle, read_yaml
from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = ["is_released_folder", "read_released_folder"]

_YAML = "vqgan.yaml"
_CHECKPOINT = "vqgan.ckpt"
# The released file is 281 MB; beyond this size it is something else.
_MAX_CHECKPOINT_BYTES = 4 * 1024**3
_DROPPED_PREFIX = "loss."


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
    return _read_config(folder / _YAML), _read_state(folder / _CHECKPOINT)


def _read_config(path: Path) -> VqganConfig:
    try:
        params: dict[str, Any] = read_yaml(path)["model"]["params"]
        settings = dict(params["ddconfig"])
        settings |= {name: params[name] for name in ("embed_dim", "n_embed")}
    except (ConfigError, KeyError, TypeError, ValueError) as error:
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
    content = read_pickle(path, _MAX_CHECKPOINT_BYTES)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} holds no `state_dict` of tensors")
    return {name: t for name, t in state.items() if not name.startswith(_DROPPED_PREFIX)}


def _has_type_of(value: object, default: object) -> bool:
    assert default is not MISSING
    if isinstance(default, tuple):
        return isinstance(value, list) and all(type(item) is int for item in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)
