"""What several stages build from their configuration: a model's shape, its folder, a pipeline.

pipeline = build_pipeline(cfg.ckpt, cfg.vq, pick_device(cfg.device))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mgpt.allocator import keep_freed_memory
from mgpt.errors import ConfigError
from mgpt.files.file_sums import SUMS
from mgpt.infer.engine import Engine
from mgpt.infer.pipeline import Pipeline
from mgpt.lifecycle.weights import VOCABULARY, Weights
from mgpt.models.folder import write_model
from mgpt.models.table import DecoderConfig, decoder_of, sizes
from mgpt.models.tensor_files import LazyTensor
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokens.vocab import Vocabulary


@dataclass(frozen=True)
class ModelConfig:
    """Which decoder. A model from `init_from` keeps its own size."""

    size: str = "quickstart"
    """A size of mgpt.models.table: debug, quickstart, 1b, 7b, 34b."""
    max_positions: int | None = None
    """Longest document the rotary embedding is made for, in tokens; null: the size's own."""

    def __post_init__(self) -> None:
        if self.size not in sizes():
            raise ValueError(f"size={self.size!r} is none of {', '.join(sizes())}")

    def check_same(self, found: DecoderConfig, origin: str) -> None:
        """Raises ConfigError where another size than that of given weights was asked for. The
        default size asks for none."""
        asked = sizes()[self.size]
        pairs = []
        if self.size != ModelConfig.size:
            pairs = [(n, getattr(asked, n), getattr(found, n)) for n in ("layers", "hidden")]
        if self.max_positions is not None:
            pairs.append(("max_positions", self.max_positions, found.max_positions))
        differs = [f"{name} {own} and not {other}" for name, other, own in pairs if own != other]
        if differs:
            raise ConfigError(
                f"model.size={self.size}, model.max_positions={self.max_positions}: {origin} has "
                f"{', '.join(differs)}, and weights keep their own size; leave model= out, or "
                "start without init_from"
            )

    def decoder(self, vocabulary: Vocabulary) -> Any:
        """The size with this vocabulary."""
        chosen = sizes()[self.size]
        chosen = decoder_of(chosen).for_vocabulary(chosen, vocabulary)
        if self.max_positions is not None:
            chosen = replace(chosen, max_positions=self.max_positions)
        return chosen


def write_model_folder(
    folder: Path,
    cfg: Any,
    tensors: Sequence[LazyTensor],
    vocabulary: Vocabulary,
    vq: str | None = None,
) -> None:
    """config.json, safetensors and vocabulary/: what `ckpt=` and `init_from=` take.

    One tensor is in memory at a time. `vq` is the fingerprint of the VQGAN of their codes.
    """
    vocabulary.save(folder / VOCABULARY)
    write_model(folder, replace(cfg, dropout=0.0), tensors, vocabulary.fingerprint, vq)


def remove_model(folder: Path) -> None:
    """Removes the files of a model folder, config.json first: without it there is no model. What
    else lies there stays."""
    names = ("config.json", SUMS, "model*.safetensors", "model.safetensors.index.json")
    for file in [file for name in names for file in folder.glob(name)]:
        file.unlink()


def build_pipeline(
    ckpt: str,
    vq: str,
    device: torch.device,
    dtype: torch.dtype,
    averaged: bool,
    report: Callable[[str], None],
) -> Pipeline:
    """A model for inference with the VQGAN that draws its pictures.

    Args:
        averaged: as for `Weights.find`; which weights were taken is told to `report`.

    Raises VocabularyError if the model knows the codes of another VQGAN.
    """
    keep_freed_memory()
    weights = Weights.find(ckpt, averaged)
    for note in weights.notes():
        report(note)
    vocabulary = weights.vocabulary()
    tokenizer = load_tokenizer(vq)
    weights.check_vq(tokenizer.fingerprint(), f"vq={vq}", report)
    engine = Engine(weights.load(device, dtype), vocabulary)
    return Pipeline(engine, tokenizer.to(device).eval(), vocabulary)


def pick_device(device: str = "auto") -> torch.device:
    """auto: the first GPU where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
