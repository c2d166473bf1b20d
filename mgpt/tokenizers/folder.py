"""A picture tokenizer in a folder: ours, or a released one of any family.

Ours is `config.json` with family, sizes and fingerprint, beside `model.safetensors` under the
authors' names. A released folder is recognised by its tensors, and by its configuration where names
and shapes are those of several families; it is read strictly, and kept in float32.

    >>> tokenizer = load_tokenizer("LlamaGen")       # vq_ds16_c2i.pt
    >>> save_tokenizer(tokenizer, "models/vq16")
    >>> load_tokenizer("models/vq16").fingerprint() == tokenizer.fingerprint()
    True
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mgpt.errors import CheckpointError, ConfigError, MgptError
from mgpt.files.atomic import atomic_write
from mgpt.tokenizers.protocol import PictureTokenizer, fingerprint
from mgpt.tokenizers.registry import TOKENIZERS
from mgpt.tokenizers.released_files import LOOKED_FOR, NoTokenizerError, read_released
from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tokenizers.vqgan_convert import is_released_folder, read_released_folder
from mgpt.tokenizers.vqgan_layers import to_channels_last

__all__ = [
    "build_tokenizer",
    "load_tokenizer",
    "load_vqgan",
    "open_tokenizer",
    "save_tokenizer",
]

_FORMAT = "mgpt-tokenizer-1"
_VQGAN_FORMAT = "mgpt-vqgan-1"  # of our VQGAN's folders since before there were other families
_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_SHIPPED = Path(__file__).parent / "pretrained"
_PROBLEMS_SHOWN = 8


@dataclass(frozen=True)
class Opened:
    """A tokenizer, and what its importer should know of the files it came in."""

    tokenizer: PictureTokenizer
    notes: list[str] = field(default_factory=list)


def load_tokenizer(folder: str | Path) -> PictureTokenizer:
    """A tokenizer in evaluation mode, on CPU, in fp32.

    Args:
        folder: a folder of ours (or a model folder with one in vq/, or a training's output with one
            in model/), a released one, one file of weights in it, or the bare name of a model
            shipped with the package, such as `scenes_f8`.

    Raises:
        CheckpointError: nothing there that is recognised, or weights that are not what their
            configuration says.
        ConfigError: a configuration that describes no tokenizer.
    """
    return open_tokenizer(folder).tokenizer


def load_vqgan(folder: str | Path) -> Vqgan:
    """`load_tokenizer` where only our own family will do. Raises ConfigError for another."""
    tokenizer = load_tokenizer(folder)
    if type(tokenizer) is not Vqgan:
        raise ConfigError(f"{folder} is {tokenizer.title}, and a VQGAN belongs here")
    return tokenizer


def open_tokenizer(folder: str | Path) -> Opened:
    """`load_tokenizer`, with notes."""
    path = _resolve(folder)
    for place in (path, path / "vq", path / "model"):
        if _is_own(place):
            return Opened(_load_own(place))
    if is_released_folder(path):
        cfg, state = read_released_folder(path)
        return Opened(build_tokenizer(Vqgan, cfg, state, str(path)))
    try:
        released = read_released(path)
    except NoTokenizerError:
        raise NoTokenizerError(
            f"{path} holds no VQGAN or other picture tokenizer: {_looked_for()}"
        ) from None
    shapes = released.shapes
    for family in TOKENIZERS.values():
        if family.recognises(shapes, released.stated):
            try:
                cfg = family.read_config(shapes, released.stated)
            except MgptError as error:
                raise type(error)(f"{path}, taken for {family.title}: {error}") from error
            tokenizer = build_tokenizer(family, cfg, released.state, str(path))
            return Opened(tokenizer, released.notes)
    names = ", ".join(sorted(shapes)[:4])
    raise NoTokenizerError(
        f"{path} holds weights of no known picture tokenizer ({names} …): {_looked_for()}"
    )


def save_tokenizer(
    tokenizer: PictureTokenizer, folder: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Writes `config.json` and `model.safetensors`; each appears whole, the configuration last.

    Args:
        dtype: how weights are stored. With float16 the loaded model, and its fingerprint, are
            those of the rounded weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        if tensor.is_floating_point()
        else tensor.detach().cpu()
        for name, tensor in tokenizer.state_dict().items()
    }
    family = type(tokenizer)
    head: dict[str, Any] = {"format": _VQGAN_FORMAT}
    if family is not Vqgan:
        head = {"format": _FORMAT, "family": family.family}
    description = {
        **head,
        "fingerprint": fingerprint(family, tokenizer.cfg, stored),
        "config": tokenizer.cfg.record(),
    }
    atomic_write(folder / _WEIGHTS_FILE, safetensors.torch.save(stored))
    text = json.dumps(description, indent=2) + "\n"
    atomic_write(folder / _CONFIG_FILE, text.encode())


def build_tokenizer(
    family: type[PictureTokenizer], cfg: Any, state: Mapping[str, Tensor], where: str
) -> PictureTokenizer:
    """A model in evaluation mode with exactly these weights, cast to fp32.

    Raises:
        CheckpointError: names missing, left over or of another shape, all in one message.
    """
    # Initialised on CPU, not "meta": there torch would import its compiler, seconds a process.
    with torch.random.fork_rng(devices=[]):
        model = family(cfg)
    own = model.state_dict()
    # What changes no code may be absent: the value the model starts with stands for it.
    state = {name: own[name] for name in family.not_weights if name not in state} | dict(state)
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is left over" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:_PROBLEMS_SHOWN])
        more = len(problems) - _PROBLEMS_SHOWN
        raise CheckpointError(
            f"{where}: weights do not fit the {family.title} of its configuration: {shown}"
            + (f"; and {more} more" if more > 0 else "")
        )
    cast = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    model.load_state_dict(cast, assign=True)
    to_channels_last(model)
    return model.eval()


def _resolve(folder: str | Path) -> Path:
    # A shipped name means the shipped model wherever one stands; ./name is a folder of that name.
    shipped = sorted(path.parent.name for path in _SHIPPED.glob(f"*/{_CONFIG_FILE}"))
    if str(folder) in shipped:
        return _SHIPPED / str(folder)
    if Path(folder).exists():
        return Path(folder)
    raise CheckpointError(
        f"{folder} is neither a folder nor a VQGAN shipped with the package ({', '.join(shipped)})"
    )


def _looked_for() -> str:
    titles = ", ".join(family.title for name, family in TOKENIZERS.items() if name != "vqgan")
    return (
        f"looked for {_CONFIG_FILE} and {_WEIGHTS_FILE} of ours, vqgan.yaml and vqgan.ckpt of "
        f"Chameleon, and {LOOKED_FOR} of {titles}"
    )


def _is_own(folder: Path) -> bool:
    """Whether a configuration there is ours, or none that anyone could read."""
    try:
        content = json.loads((folder / _CONFIG_FILE).read_text())
    except OSError:
        return False
    except ValueError:
        return True
    return isinstance(content, dict) and {"format", "config"} <= content.keys()


def _load_own(folder: Path) -> PictureTokenizer:
    path = folder / _CONFIG_FILE
    try:
        description = json.loads(path.read_text())
        settings, wanted = description["config"], description["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a VQGAN configuration: {error!r}") from error
    found_format = description.get("format")
    if found_format not in (_FORMAT, _VQGAN_FORMAT):
        raise CheckpointError(
            f"{path}: format is {found_format!r}, this software reads {_VQGAN_FORMAT!r} and "
            f"{_FORMAT!r}"
        )
    name = "vqgan" if found_format == _VQGAN_FORMAT else description.get("family")
    if name not in TOKENIZERS:
        raise CheckpointError(
            f"{path}: family is {name!r}, this software has {', '.join(TOKENIZERS)}"
        )
    family = TOKENIZERS[name]
    config = family.config_class
    unknown = sorted(settings.keys() - config.__dataclass_fields__.keys())
    if unknown:
        raise ConfigError(f"{path}: unknown settings {', '.join(unknown)}")
    try:
        state = safetensors.torch.load_file(folder / _WEIGHTS_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS_FILE} cannot be read: {error}") from error
    model = build_tokenizer(family, config(**settings), state, str(folder))
    found = model.fingerprint()
    if found != wanted:
        raise CheckpointError(
            f"{folder}: the weights have fingerprint {found}, {_CONFIG_FILE} says {wanted}; "
            "the two files are not of one model: copy or train it again"
        )
    return model
