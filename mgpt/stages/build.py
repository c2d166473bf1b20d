"""What several stages build from their configuration: vocabulary, model, weights.

A path to weights means the same everywhere: a model folder (config.json + safetensors), a
checkpoint's step folder, or a run folder, which stands for its `model/` or else its newest
complete checkpoint.

    vocabulary = load_vocabulary(cfg.init_from)
    pipeline = build_pipeline(cfg.ckpt, cfg.vq, pick_device(cfg.device))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from mgpt.allocator import keep_freed_memory
from mgpt.errors import CheckpointError, ConfigError, VocabularyError
from mgpt.files.file_sums import SUMS
from mgpt.infer.engine import Engine
from mgpt.infer.pipeline import Pipeline
from mgpt.models.folder import (
    load_model_config,
    model_tensors,
    vocabulary_fingerprint,
    vq_fingerprint,
    write_model,
)
from mgpt.models.sizes import SIZES
from mgpt.models.tensor_files import LazyTensor
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokens.vocab import FILE as VOCABULARY_FILE
from mgpt.tokens.vocab import Vocabulary, chameleon_vocabulary
from mgpt.train.step_folder import has_averages, newest_complete, stored_weights

MODEL, VOCABULARY = "model", "vocabulary"
NO_PICTURES = "none"  # in the place of a VQGAN's fingerprint: weights that only saw text
TOKENIZER_FILES = ("tokenizer.json", "text_tokenizer.json")  # transformers' name, and Meta's


@dataclass(frozen=True)
class ModelConfig:
    """Which transformer. A model taken from `init_from` keeps its own size."""

    size: str = "quickstart"
    """A name of mgpt.models.sizes: debug, quickstart, 1b, 7b, 34b."""
    max_positions: int | None = None
    """Longest document the rotary embedding is made for, in tokens; null: the size's own."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size={self.size!r} is none of {', '.join(SIZES)}")

    def check_same(self, found: TransformerConfig, origin: str) -> None:
        """Raises ConfigError where another size than that of given weights was asked for. The
        default size asks for none."""
        asked = SIZES[self.size]
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

    def transformer(self, vocabulary: Vocabulary) -> TransformerConfig:
        """The size with this vocabulary."""
        chosen = replace(SIZES[self.size], vocab_size=vocabulary.size)
        if chosen.axial_rope_dims:
            chosen = replace(
                chosen,
                begin_image_id=vocabulary.begin_image,
                end_line_id=vocabulary.end_line,
                end_image_id=vocabulary.end_image,
            )
        if self.max_positions is not None:
            chosen = replace(chosen, max_positions=self.max_positions)
        return chosen


@dataclass(frozen=True)
class Weights:
    """Where weights are: a model folder, or a complete checkpoint of a run."""

    folder: Path
    is_checkpoint: bool
    is_averaged: bool = False
    """Whether these are a checkpoint's averaged weights."""

    @classmethod
    def find(cls, path: str | Path, averaged: bool = True) -> Weights:
        """The weights that a path stands for. Raises CheckpointError that says what is there.

        Args:
            averaged: takes a checkpoint's averaged weights if it has some; False: its raw weights,
                and those of a run folder's newest checkpoint even if it has a model folder.
        """
        path = Path(path)
        newest = newest_complete(path) if path.is_dir() else None
        for folder in (path, path / MODEL):
            if (folder / "config.json").exists() and (averaged or newest is None):
                return cls(folder, is_checkpoint=False)
        if (path / "COMPLETE").exists():
            return cls.of_checkpoint(path, averaged)
        if newest is not None:
            return cls.of_checkpoint(newest.path, averaged)
        there = "does not exist" if not path.exists() else "holds no weights"
        raise CheckpointError(
            f"{path} {there}; give a model folder (config.json; mgpt import makes one of released "
            "weights), a complete step folder, or the output folder of a training stage"
        )

    @classmethod
    def of_checkpoint(cls, folder: Path, averaged: bool) -> Weights:
        """Those of a complete step folder, averaged if it has averages and they are asked for."""
        return cls(folder, True, is_averaged=averaged and has_averages(folder / "state"))

    def notes(self) -> list[str]:
        """What to tell whoever asked for them."""
        if not self.is_averaged:
            return []
        return [f"the averaged weights of {self.folder}; averaged=false takes the raw ones"]

    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the weights were trained with.

        Raises VocabularyError where it is missing, or another stands in its place.
        """
        found = load_vocabulary(self.folder)
        trained_with = None if self.is_checkpoint else vocabulary_fingerprint(self.folder)
        if trained_with not in (None, found.fingerprint):
            raise VocabularyError(
                f"{self.folder}: its weights were trained with vocabulary {trained_with}, and the "
                f"one that stands there is {found.fingerprint} ({found.layout}, {found.size} ids); "
                "copy the whole model folder again"
            )
        return found

    def own_vocabulary(self) -> Vocabulary | None:
        """The same, or None where none stands beside the weights: an import without tokenizer."""
        try:
            return self.vocabulary()
        except VocabularyError:
            if any((self.folder / name).exists() for name in (VOCABULARY, "vocab")):
                raise
            return None

    def vq_fingerprint(self) -> str | None:
        """The VQGAN whose codes the weights know, `NO_PICTURES` where they know none; None for
        weights of a version that did not write it down, or imported without a whole VQGAN."""
        if not self.is_checkpoint:
            return vq_fingerprint(self.folder)
        file = self.folder / "trainer.json"
        stored = json.loads(file.read_text()) if file.exists() else {}
        return stored.get("vq_fingerprint")

    def check_vq(self, theirs: str | None, where: str, report: Callable[[str], None]) -> str | None:
        """Compares the weights' VQGAN with that of something they are used with.

        Args:
            theirs: its fingerprint; None where it has no pictures.
            where: what it is, such as `vq=scenes_f8`.
            report: told where the weights do not say which VQGAN theirs is.

        Returns the fingerprint that both have; `NO_PICTURES` where neither knows a picture.

        Raises VocabularyError with both fingerprints.
        """
        ours = self.vq_fingerprint()
        if ours is None and theirs is not None:
            report(
                f"note: {self.folder} does not say which VQGAN its codes are of (it was made by an "
                f"older version, or imported without one); taken to be {theirs}, that of {where}"
            )
        known = None if ours in (None, NO_PICTURES) else ours
        if known is None or theirs in (None, known):
            return known or theirs or ours
        raise VocabularyError(
            f"vq_mismatch: the weights in {self.folder} know the codes of VQGAN {known}, {where} "
            f"has those of {theirs}, and the same code is another picture in each; give the VQGAN "
            "that tokenized their training data, or shards made with it"
        )

    def config(self) -> TransformerConfig:
        """The transformer's shape, without its dropout."""
        if not self.is_checkpoint:
            return load_model_config(self.folder)
        stored = yaml.safe_load((self.folder / "config.yaml").read_text())
        return TransformerConfig(**stored["transformer"])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by name, in float32 on the CPU."""
        for tensor in self.stored():
            yield tensor.name, tensor.read().float()

    def stored(self, verify: bool = True) -> list[LazyTensor]:
        """Every weight as it is stored, not read yet. Files are held against their hashes here; not
        a checkpoint's where verify=False says that it was done just now."""
        if not self.is_checkpoint:
            return list(model_tensors(self.folder).values())
        return [
            LazyTensor(name, tuple(weight.shape), weight.dtype, weight.read)
            for name, weight in stored_weights(self.folder, verify, self.is_averaged).items()
        ]

    def load(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Transformer:
        """The model, for inference."""
        model = Transformer(self.config())
        model.load_state_dict(dict(self.tensors()), strict=True)
        return model.to(device=device, dtype=dtype).eval()


def load_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary at or in a path: its own folder, a model folder, a checkpoint, a run folder,
    or Chameleon's tokenizer.json.

    Raises VocabularyError that names the places looked at.
    """
    path = Path(path)
    places = [path, path / VOCABULARY, path / MODEL / VOCABULARY, path / "vocab"]
    newest = newest_complete(path) if path.is_dir() else None
    if newest is not None:
        places.append(newest.path / "vocab")
    for place in places:
        if (place / VOCABULARY_FILE).exists():
            return Vocabulary.load(place)
    file = tokenizer_file([path])
    if file is not None:
        return released_vocabulary(file)
    raise VocabularyError(
        f"{path}: no {VOCABULARY_FILE} in any of {', '.join(str(place) for place in places)}; give "
        "the output of mgpt train_text, a model folder, or Chameleon's tokenizer.json"
    )


def tokenizer_file(places: Iterable[Path]) -> Path | None:
    """The first tokenizer of Chameleon's that is one of some paths or stands in one."""
    for place in places:
        if place.is_file():
            return place
        for name in TOKENIZER_FILES:
            if (place / name).is_file():
                return place / name
    return None


def released_vocabulary(file: Path) -> Vocabulary:
    """Chameleon's vocabulary from a tokenizer.json; VocabularyError that names the file."""
    try:
        return chameleon_vocabulary(file)
    except VocabularyError as error:
        raise VocabularyError(f"{file}: {error}") from error


def write_model_folder(
    folder: Path,
    cfg: TransformerConfig,
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


def vq_input(vq: str | None) -> dict[str, str]:
    """A VQGAN as a stage's input: its folder or shipped name → its fingerprint."""
    return {} if vq is None else {vq: f"vq:{load_tokenizer(vq).fingerprint()}"}


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
