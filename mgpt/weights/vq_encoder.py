"""The half of a VQGAN that a transformers folder holds: pictures to codes, no way back.

Its tensors stand there under `model.vqmodel.` with the names of `mgpt.tokenizers.vqgan`, all but
the decoder's. In a model folder they are kept as `vq_encoder/`, so that an export can give them
back; a whole VQGAN beside the model is `vq/`.

    >>> plan.vq.cfg.downsample, len(plan.vq.tensors)
    (16, 108)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgpt.errors import CheckpointError, ConfigError
from mgpt.models.folder import model_tensors, write_sharded
from mgpt.models.tensor_files import LazyTensor, lazy
from mgpt.tokenizers.protocol import PictureTokenizer
from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = ["ENCODER_FOLDER", "VqEncoder", "check_same_encoder", "encoder_shapes", "load_encoder"]

ENCODER_FOLDER = "vq_encoder"
_FORMAT = "mgpt-vqgan-encoder-1"
_CONFIG = "config.json"
_DECODER = "decoder."


@dataclass(frozen=True)
class VqEncoder:
    """Sizes and tensors of an encoder, its codebook and the convolutions around it."""

    cfg: VqganConfig
    tensors: list[LazyTensor]

    @classmethod
    def of(cls, model: PictureTokenizer) -> "VqEncoder | None":
        """The encoder of a whole tokenizer; None of one that transformers' layout cannot hold."""
        if type(model) is not Vqgan or model.cfg.quantizer != "vq":
            return None
        state = model.state_dict().items()
        return cls(model.cfg, [lazy(name, t) for name, t in state if not name.startswith(_DECODER)])

    def save(self, folder: Path) -> None:
        """Writes config.json and model.safetensors; see `write_sharded`."""
        write_sharded(folder, self.tensors, {"format": _FORMAT, "config": asdict(self.cfg)})


def load_encoder(folder: Path) -> VqEncoder:
    """What `VqEncoder.save` wrote. Raises CheckpointError, ConfigError."""
    path = folder / _CONFIG
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != _FORMAT:
            raise ValueError(f"format {stored['format']!r}, expected {_FORMAT!r}")
        cfg = VqganConfig(**stored["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no VQGAN encoder's configuration: {error!r}") from error
    return VqEncoder(cfg, list(model_tensors(folder).values()))


def encoder_shapes(cfg: VqganConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of an encoder of these sizes."""
    with torch.device("meta"):
        state = Vqgan(cfg).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.startswith(_DECODER)}


def check_same_encoder(given: VqEncoder, model: Vqgan, where: str, vq: str) -> None:
    """Holds an encoder against a whole VQGAN, in the precision that the encoder is stored in.

    Raises ConfigError where the sizes differ, CheckpointError naming the first tensor that does.
    """
    ours, theirs = asdict(model.cfg), asdict(given.cfg)
    # Neither changes what a trained encoder computes.
    differ = [k for k in ours if ours[k] != theirs[k] and k not in ("dropout", "out_ch")]
    if differ:
        pairs = ", ".join(f"{key} {theirs[key]} against {ours[key]}" for key in differ)
        raise ConfigError(f"the VQGAN encoder in {where} and vq={vq} are of two models: {pairs}")
    state: dict[str, Tensor] = model.state_dict()
    for tensor in given.tensors:
        if not torch.equal(tensor.read(), state[tensor.name].to(tensor.dtype)):
            raise CheckpointError(
                f"the VQGAN encoder in {where} is not that of vq={vq}: {tensor.name} differs; "
                "give the VQGAN that came with these weights, or leave vq out"
            )
