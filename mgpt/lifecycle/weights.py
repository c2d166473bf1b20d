"""Where the weights and the vocabulary are that a path stands for.

A path to weights means the same everywhere: a model folder (config.json + safetensors), a
checkpoint's step folder, or a run folder, which stands for its `model/` or else its newest
complete checkpoint.

    weights = Weights.find("outputs/pretrain")
    model, vocabulary = weights.load(device), weights.vocabulary()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mgpt.errors import CheckpointError, VocabularyError
from mgpt.models.folder import (
    load_model_config,
    model_tensors,
    model_with,
    vocabulary_fingerprint,
    vq_fingerprint,
)
from mgpt.models.table import DecoderModel, config_from
from mgpt.models.tensor_files import LazyTensor
from mgpt.tokens.vocab import FILE as VOCABULARY_FILE
from mgpt.tokens.vocab import Vocabulary, chameleon_vocabulary
from mgpt.train.step_folder import has_averages, newest_complete, stored_weights
from mgpt.train.step_layout import COMPLETE

MODEL, VOCABULARY = "model", "vocabulary"
NO_PICTURES = "none"  # in the place of a VQGAN's fingerprint: weights that only saw text
TOKENIZER_FILES = ("tokenizer.json", "text_tokenizer.json")  # transformers' name, and Meta's


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
        if (path / COMPLETE).exists():
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

    def config(self) -> Any:
        """The decoder's configuration, without its dropout."""
        if not self.is_checkpoint:
            return load_model_config(self.folder)
        stored = yaml.safe_load((self.folder / "config.yaml").read_text())
        return config_from(stored["transformer"])

    def stored(self, verify: bool = True) -> list[LazyTensor]:
        """Every weight as it is stored, not read yet. Files are held against their hashes here; not
        a checkpoint's where verify=False says that it was done just now."""
        if not self.is_checkpoint:
            return list(model_tensors(self.folder).values())
        return list(stored_weights(self.folder, verify, self.is_averaged).values())

    def load(self, device: torch.device, dtype: torch.dtype = torch.float32) -> DecoderModel:
        """The model, for inference."""
        return model_with(self.config(), self.stored(), self.folder, dtype, device)


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
