"""The files that authors release a picture tokenizer in: weights under plain names, and settings.

Weights are safetensors, or a pickle (.pt, .pth, .ckpt, .bin) that is read with torch's restricted
unpickler and nowhere else in the package but in `mgpt.weights.meta`. A pickle may hold the weights
under `ema`, `model` or `state_dict`, and Lightning's files an averaged copy beside the trained
weights, which is the one that authors evaluate: it is taken, under the plain names. The networks of
a training loss are dropped.

    >>> released = read_released(Path("IBQ-Tokenizer-16384"))
    >>> released.stated["n_embed"], released.state["encoder.conv_in.weight"].shape
    (16384, torch.Size([128, 3, 3, 3]))
"""

import argparse
import functools
import json
import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mgpt.errors import CheckpointError, ConfigError, MachineError
from mgpt.files.file_sums import check_sums

__all__ = [
    "LOOKED_FOR",
    "NoTokenizerError",
    "Released",
    "read_pickle",
    "read_released",
    "read_yaml",
    "weight_files",
]

LOOKED_FOR = "*.safetensors, *.ckpt, *.pt, *.pth or *.bin"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# Larger than any released tokenizer, and than the shards of the models that hold one.
_MAX_BYTES = 16 * 1024**3
_MAX_SETTINGS_BYTES = 256 * 1024
_ABOVE = ("ema", "model", "state_dict")
_AVERAGED = "model_ema."
_PARTS_AVERAGED = "ema_"  # MoVQGAN averages each part by itself: ema_encoder.<name without dots>
_JANUS = "gen_vision_model."
_DROPPED = ("loss.",)
_log = logging.getLogger(__name__)


class NoTokenizerError(CheckpointError):
    """A folder in which nothing is a picture tokenizer's."""


@dataclass
class Released:
    """What a folder or file holds.

    Attributes:
        state: tensors by the authors' names.
        stated: fields of the configuration file, flat; empty where there is none.
        notes: what was chosen among several, for whoever imports it.
    """

    where: Path
    state: dict[str, Tensor]
    stated: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.state.items()}


def read_released(path: Path) -> Released:
    """Weights and settings in a folder, or of one file in it.

    Raises:
        CheckpointError: no weights, several to choose from, a damaged file, or one that is not as
            the folder's list of hashes has it.
        ConfigError: a configuration file that is none.
    """
    files = weight_files(path)
    check_sums(files)
    content: dict[str, Any] = {}
    for file in files:
        # Shards are of a whole model with a tokenizer in it, whose other weights are not needed.
        is_shard = len(files) > 1
        if _is_safetensors(file):
            content |= _read_safetensors(file, is_shard)
        else:
            content |= _of_janus(read_pickle(file)) if is_shard else read_pickle(file)
    if not content:
        raise NoTokenizerError(f"{path} holds a model without a picture tokenizer ({_JANUS}*)")
    stated = _read_settings(files[0])
    released = Released(path, {}, stated)
    released.state = _plain_names(_weights_of(content, path), released)
    return released


def weight_files(path: Path) -> list[Path]:
    """The file with the weights, or all shards of it. Raises CheckpointError unless it is clear
    which."""
    if path.is_file():
        return [path]
    for endings in ((".safetensors",), _PICKLES):
        found = sorted(p for p in path.iterdir() if p.suffix in endings and p.is_file())
        if len(found) > 1 and any(path.glob(f"*{found[0].suffix}.index.json")):
            return found
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise CheckpointError(
                f"{path} holds several files of weights ({names}); name one of them, such as "
                f"{found[0]}"
            )
        if found:
            return found
    if any(path.glob("*.jit")):
        raise CheckpointError(
            f"{path} holds TorchScript files, which carry code and are not read; convert them to "
            "safetensors where they can be loaded, as mgpt/tokenizers/README.md shows"
        )
    raise NoTokenizerError(f"{path} holds no weights: looked for {LOOKED_FOR}")


def read_pickle(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The dict in a pickle, by torch's restricted unpickler. Raises CheckpointError."""
    num_bytes = path.stat().st_size
    if num_bytes > max_bytes:
        raise CheckpointError(
            f"{path} has {num_bytes} bytes, more than the {max_bytes} that a picture tokenizer "
            "may have: this is another file"
        )
    _warn_once(path)
    try:
        # Trainers keep their arguments beside the weights; a Namespace holds values alone.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name")
    return content


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises ConfigError, MachineError."""
    try:
        import yaml
    except ImportError as error:
        raise MachineError(f"{path}: reading it needs PyYAML: pip install pyyaml") from error
    try:
        return yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error


@functools.cache
def _warn_once(path: Path) -> None:
    _log.warning(
        f"{path} is a pickle, which can carry code: it is read with torch's restricted unpickler "
        f"(weights_only). mgpt import input={path.parent} makes safetensors of it"
    )


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _read_safetensors(path: Path, is_shard: bool) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
            of_janus = list(_of_janus(dict.fromkeys(names)))
            return {name: file.get_tensor(name) for name in (of_janus if is_shard else names)}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _of_janus(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if str(name).startswith(_JANUS)}


def _weights_of(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The dict of tensors in a checkpoint, which trainers put beside other things."""
    for name in _ABOVE:
        inner = content.get(name)
        if isinstance(inner, dict) and inner:
            content = inner
            break
    found = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not found or len(found) < len(content):
        other = [str(name) for name in content if name not in found]
        raise CheckpointError(
            f"{path} holds no weights by name: {', '.join(other[:4]) or 'it is empty'}"
            f"{' …' if len(other) > 4 else ''} is no tensor"
        )
    return found


def _plain_names(state: dict[str, Tensor], released: Released) -> dict[str, Tensor]:
    """The tensors of the tokenizer alone, averaged where the file has averages."""
    inside = {n.removeprefix(_JANUS): t for n, t in state.items() if n.startswith(_JANUS)}
    state = inside or {n: t for n, t in state.items() if not n.startswith(_DROPPED)}
    averaged = {n: t for n, t in state.items() if n.startswith((_AVERAGED, _PARTS_AVERAGED))}
    if not averaged:
        return state
    plain = {name: tensor for name, tensor in state.items() if name not in averaged}
    if released.stated.get("use_ema") is False:
        return plain
    lacking = [name for name in plain if not any(n in averaged for n in _averaged_names(name))]
    if lacking:
        raise CheckpointError(
            f"{released.where}: averaged weights are there, but none of {', '.join(lacking[:4])}"
            f"{f' and {len(lacking) - 4} more' if len(lacking) > 4 else ''}; the file is not whole"
        )
    released.notes.append("the averaged weights, which the authors evaluate, not the trained ones")
    return {
        name: next(averaged[n] for n in _averaged_names(name) if n in averaged) for name in plain
    }


def _averaged_names(name: str) -> Iterator[str]:
    yield _AVERAGED + name.replace(".", "")
    part, _, rest = name.partition(".")
    yield f"{_PARTS_AVERAGED}{part}.{rest.replace('.', '')}"


def _read_settings(weights: Path) -> dict[str, Any]:
    """Fields of the configuration beside the weights, flat: {} where there is none."""
    folder = weights.parent
    candidates = [folder / "config.json", *(weights.with_suffix(s) for s in (".yaml", ".yml"))]
    candidates += [folder / "config.yaml"]
    alone = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    candidates += alone if len(alone) == 1 else []
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return {}
    try:
        content = json.loads(_text(path)) if path.suffix == ".json" else read_yaml(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not settings by name")
    return dict(_flat(content))


def _flat(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and name in ("model", "params", "init_args", "ddconfig"):
            yield from _flat(value)
        elif not isinstance(value, dict):
            yield str(name), value


def _text(path: Path) -> str:
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_SETTINGS_BYTES:
        raise ConfigError(f"{path} has {num_bytes} bytes; this is no configuration file")
    return path.read_text()
