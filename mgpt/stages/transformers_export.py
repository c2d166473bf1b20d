"""Our weights as a folder that transformers loads, with VQ encoder and tokenizer where they are.

`plan_export` says what the folder will hold without reading a tensor; `Export.write` reads them one
by one. transformers has no VQ decoder and no tokenizer of ours: the whole VQGAN stands beside as
vq/, a vocabulary from scratch as vocabulary/, and an import takes them back.

    planned = plan_export("omni_sft", vq="models/chameleon-7b/vq")
    print("\\n".join(planned.notes))
    planned.write(Path("lumina-mine"))
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mgpt.files.atomic import atomic_write
from mgpt.lifecycle.weights import VOCABULARY, Weights
from mgpt.models.folder import split_by_size, write_sharded
from mgpt.models.tensor_files import LazyTensor
from mgpt.stages.released import (
    VQ,
    check_codes,
    counted,
    removed_on_failure,
    vocabulary_map,
    vqgan_beside,
)
from mgpt.tokenizers.folder import save_tokenizer
from mgpt.tokenizers.protocol import PictureTokenizer
from mgpt.tokens.vocab import Vocabulary
from mgpt.weights.transformers_config import VQ_KEY, transformers_config
from mgpt.weights.transformers_folder import transformers_tensors
from mgpt.weights.vq_encoder import ENCODER_FOLDER, VqEncoder, load_encoder


@dataclass(frozen=True)
class Export:
    """A transformers folder before its tensors are read."""

    config: dict[str, Any]
    tensors: list[LazyTensor]
    vocabulary: Vocabulary | None
    vq: PictureTokenizer | None
    notes: list[str]

    def figures(self) -> dict[str, int]:
        """What the stage reports."""
        return {
            "tensors": len(self.tensors),
            "bytes": sum(tensor.num_bytes for tensor in self.tensors),
            "files": len(split_by_size(self.tensors)),
        }

    def write(self, folder: Path, on_tensor: Callable[[], None] = lambda: None) -> None:
        """Writes the folder, config.json last; where that fails, no part of it stays."""
        written = (VOCABULARY, VQ, "tokenizer.json", "tokenizer_config.json")
        with removed_on_failure(folder, *written):
            if self.vocabulary is not None:
                _write_tokenizer(self.vocabulary, folder, self.config["max_position_embeddings"])
            if self.vq is not None:
                save_tokenizer(self.vq, folder / VQ)
            write_sharded(folder, counted(self.tensors, on_tensor), self.config)


def plan_export(
    ckpt: str | Path,
    vq: str | None = None,
    with_vq: bool = True,
    dtype: torch.dtype | None = None,
    averaged: bool = True,
) -> Export:
    """The transformers folder of some weights.

    Args:
        ckpt: a model folder, a step folder or a run folder.
        vq: the VQGAN that goes with them; None takes the model folder's own, where it has one.
        with_vq: whether its encoder goes into the transformers weights.
        dtype: what the transformer's tensors are cast to; None keeps them.
        averaged: takes a checkpoint's averaged weights if it has some.

    Raises:
        CheckpointError: no weights there, or a file that cannot be read.
        ConfigError: a model that transformers' Chameleon cannot be.
    """
    weights = Weights.find(ckpt, averaged)
    cfg = replace(weights.config(), dropout=0.0)
    vocabulary = weights.own_vocabulary()
    model = vqgan_beside(weights.folder, vq)
    notes: list[str] = []
    if model is not None:
        weights.check_vq(model.fingerprint(), f"vq={vq or weights.folder / VQ}", notes.append)
    encoder = None
    if with_vq and model is not None:
        encoder = VqEncoder.of(model)
    elif with_vq and (weights.folder / ENCODER_FOLDER).exists():
        encoder = load_encoder(weights.folder / ENCODER_FOLDER)
    check_codes(vocabulary, model or encoder, weights.folder)
    stored = weights.stored()
    if dtype is not None:
        stored = [tensor.then(lambda t: t.to(dtype), dtype=dtype) for tensor in stored]
    names: dict[str, int] = {} if vocabulary is None else vocabulary_map(vocabulary)
    special = {
        f"{name}_token_id": None if vocabulary is None else getattr(vocabulary, name)
        for name in ("bos", "pad", "eos")
    }
    config = transformers_config(
        cfg, encoder.cfg if encoder else None, stored[0].dtype, special, names
    )
    config[VQ_KEY] = weights.vq_fingerprint()
    notes += weights.notes()
    if encoder is None:
        notes.append(
            "no VQ encoder: transformers will make up a fresh one and say so; give vq=DIR where "
            "the pictures' VQGAN is at hand"
        )
    if vocabulary is None:
        notes.append("no vocabulary in the model folder: the export has no tokenizer")
    elif vocabulary.layout != "chameleon":
        notes.append(
            f"the {vocabulary.layout} vocabulary goes along as {VOCABULARY}/; transformers has no "
            "such tokenizer"
        )
    return Export(config, transformers_tensors(cfg, stored, encoder), vocabulary, model, notes)


def _write_tokenizer(vocabulary: Vocabulary, folder: Path, max_positions: int) -> None:
    if vocabulary.layout != "chameleon":
        vocabulary.save(folder / VOCABULARY)
        return
    vocabulary.text.save(folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
    }
    atomic_write(folder / "tokenizer_config.json", (json.dumps(config, indent=1) + "\n").encode())
