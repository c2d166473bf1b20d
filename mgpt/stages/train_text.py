"""mgpt train_text: a SentencePiece model on the words of tokenised shards, as a vocabulary.

The text pieces are learned from what training will read: every sample through every task and
variant it can serve, prompts included. Text, picture codes, picture sizes and control tokens
together make the vocabulary, whose fingerprint the weights carry.

    mgpt train_text input=outputs/tokens output=outputs/text num_pieces=512
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgpt.data.dataset import TokenisedDataset, open_dataset, resolution_folders
from mgpt.errors import ConfigError
from mgpt.lifecycle.identity import dataset_identity
from mgpt.lifecycle.rehearsal import Estimate, Scale, timed
from mgpt.lifecycle.run import run_stage
from mgpt.tasks.registry import READINGS, TASKS, SampleView, can_serve
from mgpt.tokens.chat import Conversation, Document
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import scratch_vocabulary
from mgpt.tracking.tracker import Tracker, TrackingConfig

_MEASURED_TEXTS = 2000
_REHEARSED_PIECES = 360  # a few samples have words for so many


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt train_text` can be given."""

    input: str | list[str]
    """Tokenised folders (each with a folder a resolution, or one of those)."""
    output: str
    """Folder for the vocabulary."""
    num_pieces: int = 512
    """Text pieces, 258 of which are the bytes, the unknown and the newline."""
    max_grids: int | None = None
    """Largest side of a picture in grids of two latents; null: what an aspect of 4 at the largest
    resolution needs."""
    max_samples: int = 2_000
    """Samples read of each resolution, evenly spaced; each gives all texts of all its tasks."""
    num_threads: int = 1
    """SentencePiece's threads; its result depends on their number."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    return {path: dataset_identity(path) for path in _paths(cfg)}


def main(cfg: Config) -> None:
    run_stage("train_text", cfg, inputs(cfg), _train)


def _train(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    datasets = [open_dataset(path) for path in resolution_folders(_paths(cfg))]
    num_codes = {dataset.num_codes for dataset in datasets}
    if len(num_codes) > 1:
        raise ConfigError(f"input: codebooks of {sorted(num_codes)} codes; give one VQGAN's shards")
    folder = Path(cfg.output)
    total = sum(min(len(dataset), cfg.max_samples) for dataset in datasets)
    with tracker.progress(total, "samples", "reading words") as bar:
        texts = list(_texts(datasets, cfg.max_samples, bar.advance))
    model = train_sentencepiece(
        texts, folder / SentencePieceText.FILE, cfg.num_pieces, cfg.num_threads
    )
    text = SentencePieceText(model)
    max_grids = cfg.max_grids or max(d.resolution_px // d.latent_px for d in datasets)
    vocabulary = scratch_vocabulary(text, num_codes.pop(), max_grids)
    vocabulary.save(folder)
    measured = texts[:: -(-len(texts) // _MEASURED_TEXTS)]
    pieces = sum(len(text.encode(words)) for words in measured)
    figures = {
        "vocabulary": vocabulary.size,
        "text_pieces": text.num_pieces,
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "characters_per_piece": round(sum(map(len, measured)) / max(pieces, 1), 3),
    }
    tracker.log(0, figures)
    tracker.finish(figures)
    return figures


def _paths(cfg: Config) -> list[str]:
    return [cfg.input] if isinstance(cfg.input, str) else cfg.input


def _texts(
    datasets: list[TokenisedDataset], max_samples: int, advance: Callable[[], None]
) -> Iterator[str]:
    """Every text part of every task and document that the samples serve, as often as it stands
    there: what is frequent in training gets whole pieces."""
    for dataset in datasets:
        for index in range(0, len(dataset), -(-len(dataset) // max_samples)):
            shard, number = dataset.locate(index)
            view = SampleView(shard.meta(number), shard.shapes(number), dataset.latent_px)
            yield from _texts_of(view)
            advance()


def _texts_of(view: SampleView) -> Iterator[str]:
    names = [name for name in READINGS if can_serve(name, view.meta, view.shapes)]
    if "conversation" in names:  # a task would give the same words a second time
        names = [name for name in names if name not in TASKS]
    for name in names:
        for variant in range(READINGS[name].variants):
            yield from _parts(READINGS[name].build(view, variant))


def _parts(item: Conversation | Document) -> Iterator[str]:
    if isinstance(item, Document):
        parts = list(item.parts)
    else:
        parts = [part for turn in item.turns for part in (*turn.question, *turn.answer)]
    yield from (part for part in parts if isinstance(part, str))


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """Trains on a few samples and on twice as many: what a sample costs, and what all training."""
    datasets = [open_dataset(path) for path in resolution_folders(_paths(cfg))]
    times = max(map(scale, _paths(real)))
    most = min(32, max(len(dataset) for dataset in datasets))
    seconds = {}
    for samples in (most // 2, most):
        some = replace(
            cfg,
            output=cfg.output if samples == most else f"{cfg.output}_half",
            max_samples=samples,
            num_pieces=min(cfg.num_pieces, _REHEARSED_PIECES),
        )
        read = sum(min(len(dataset), samples) for dataset in datasets)
        seconds[read] = timed(functools.partial(main, some))
    (few, few_s), (many, many_s) = seconds.items()
    of_each = max(0.0, many_s - few_s) / max(1, many - few)
    total = sum(min(len(dataset) * times, real.max_samples) for dataset in datasets)
    return Estimate(many_s + of_each * (total - many), times)
