"""Weights into a training stage and out of it: what a first start reads, and `<output>/model`.

weights = start_weights(cfg, folder, world, tracker)
tensors, origin = initial_weights(cfg, weights, vocabulary)
write_model(last, shape, vocabulary, vq_fingerprint, cfg.averaged, world, tracker.print)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from mgpt.errors import MgptError
from mgpt.lifecycle.weights import MODEL, Weights
from mgpt.models.transformer import TransformerConfig
from mgpt.parallel.dist import World
from mgpt.stages.build import write_model_folder
from mgpt.stages.released import is_released, plan_import
from mgpt.tokens.vocab import Vocabulary
from mgpt.tracking.tracker import Tracker
from mgpt.train.step_folder import StepFolder

INIT_FROM = "init_from"  # what a released folder was imported into


def write_model(
    last: StepFolder,
    shape: TransformerConfig,
    vocabulary: Vocabulary,
    vq_fingerprint: str,
    averaged: bool,
    world: World,
    report: Callable[[str], None],
) -> None:
    """`<output>/model` from the last checkpoint, tensor by tensor: nobody holds it whole."""
    last.verify(world)
    error = None
    try:
        if world.is_main:
            weights = Weights.of_checkpoint(last.path, averaged)
            for note in weights.notes():
                report(f"{MODEL}/ has {note}")
            tensors = weights.stored(verify=False)
            folder = last.path.parent / MODEL
            write_model_folder(folder, shape, tensors, vocabulary, vq_fingerprint)
    except MgptError as cause:
        error = cause
    world.raise_together(error)


def start_weights(cfg: Any, folder: Path, world: World, tracker: Tracker) -> Weights | None:
    """The weights of `init_from`; a released folder is imported first, once, by rank 0."""
    if cfg.init_from is None:
        return None
    if not is_released(cfg.init_from):
        weights = Weights.find(cfg.init_from, cfg.averaged)
        for note in weights.notes():
            tracker.print(note)
        return weights
    imported, error = folder / INIT_FROM, None
    if world.is_main and not (imported / "config.json").exists():
        try:
            planned = plan_import(Path(cfg.init_from))
            for line in planned.lines():
                tracker.print(line)
            planned.write(imported)
        except MgptError as cause:
            error = cause
    world.raise_together(error)
    return Weights.find(imported)


def initial_weights(
    cfg: Any, weights: Weights | None, vocabulary: Vocabulary
) -> tuple[Iterator[tuple[str, Tensor]], str] | None:
    """(name, full tensor) pairs with the head's image rows as asked for; where they are from."""
    if weights is None:
        return None
    tensors, origin = weights.tensors(), str(weights.folder)
    if cfg.image_rows == "keep":
        return tensors, origin
    rows = slice(*image_rows(vocabulary))

    def zeroed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if name == "lm_head.weight":
                tensor = tensor.clone()
                tensor[rows] = 0.0
            yield name, tensor

    return zeroed(), f"{origin}, its head's image rows at 0"


def image_rows(vocabulary: Vocabulary) -> tuple[int, int]:
    """Rows of embedding and head that stand for image codes: first, and one past the last."""
    return vocabulary.image_start, vocabulary.image_start + vocabulary.num_codes
