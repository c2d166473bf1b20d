"""What a training starts from, weights and vocabulary, and how it differs from its checkpoint.

saved = newest_for_all(folder, world)                   # a StepFolder, or None
weights = start_weights(cfg, saved, folder, world, tracker)
vocabulary = choose_vocabulary(cfg, weights, saved is not None)
changes_since(saved, cfg)                               # [Change(6, "optim.lr", 0.0001, 5e-05)]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mgpt.cli.settings import MISSING, to_plain
from mgpt.data.loader import RowLoader
from mgpt.dtypes import DtypeChoice
from mgpt.errors import VocabularyError
from mgpt.lifecycle.comparison import Made, differences, is_one_of
from mgpt.lifecycle.weights import NO_PICTURES, Weights, load_vocabulary
from mgpt.optim.schedule import ScheduleConfig, learning_rate
from mgpt.parallel.dist import World
from mgpt.stages.released import is_released, plan_import
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokens.vocab import Vocabulary, check_same
from mgpt.tracking.tracker import Tracker
from mgpt.train.run_state import Change
from mgpt.train.step_folder import StepFolder, newest_complete
from mgpt.train.step_layout import step_name

INIT_FROM = "init_from"  # in the output: what a released folder was imported into


def newest_for_all(output: Path, world: World) -> StepFolder | None:
    """The newest checkpoint of a run as rank 0 finds it; collective."""
    newest = newest_complete(output) if world.is_main else None
    step = world.broadcast_object(newest.step if newest is not None else None)
    return None if step is None else StepFolder(output / step_name(step), step)


def start_weights(
    cfg: Any, saved: StepFolder | None, folder: Path, world: World, tracker: Tracker
) -> Weights | None:
    """The weights of the checkpoint, else of `init_from`; None for a start from nothing.

    Rank 0 imports a released folder first, once. Collective.
    """
    if saved is not None:
        return Weights(saved.path, is_checkpoint=True)
    if cfg.init_from is None:
        return None
    if not is_released(cfg.init_from):
        weights = Weights.find(cfg.init_from, cfg.averaged)
        for note in weights.notes():
            tracker.print(note)
        return weights
    imported = folder / INIT_FROM

    def import_once() -> None:
        if not (imported / "config.json").exists():
            planned = plan_import(Path(cfg.init_from))
            for line in planned.lines():
                tracker.print(line)
            planned.write(imported)

    world.on_main(import_once)
    return Weights.find(imported)


def choose_vocabulary(cfg: Any, weights: Weights | None, is_resumed: bool = False) -> Vocabulary:
    """The vocabulary of the weights, or the configured one for weights that have none.

    Raises VocabularyError if there is none, two differ, or it does not fit the weights.
    """
    # A checkpoint has its own vocabulary; the one it started from may be gone.
    is_given = cfg.vocabulary and not (is_resumed and not Path(cfg.vocabulary).exists())
    given = load_vocabulary(str(cfg.vocabulary)) if is_given else None
    own = None if weights is None else weights.own_vocabulary()
    chosen = own or given
    if chosen is None:
        raise VocabularyError(
            f"init_from={cfg.init_from} has no vocabulary; give vocabulary= with the "
            "tokenizer.json that came with these weights"
        )
    if own is not None and given is not None:
        check_same(own, given, f"init_from={cfg.init_from}", f"vocabulary={cfg.vocabulary}")
    if weights is not None and chosen.size != weights.config().vocab_size:
        raise VocabularyError(
            f"the vocabulary has {chosen.size} ids, the weights of init_from={cfg.init_from} "
            f"{weights.config().vocab_size}; give the tokenizer that came with these weights"
        )
    return chosen


def choose_shape(
    cfg: Any, weights: Weights | None, vocabulary: Vocabulary, saved: StepFolder | None
) -> Any:
    """The decoder's configuration: the weights' own, or that of `model` without weights.

    Raises ConfigError if another size was asked for than the weights have.
    """
    shape = cfg.model.decoder(vocabulary) if weights is None else weights.config()
    if weights is not None:
        origin = f"init_from={cfg.init_from}" if saved is None else str(saved.path)
        cfg.model.check_same(shape, origin)
    return replace(shape, dropout=cfg.dropout)


def initial_weights(
    cfg: Any, weights: Weights | None, vocabulary: Vocabulary
) -> tuple[Iterator[tuple[str, Tensor]], str] | None:
    """(name, full float32 tensor) pairs for a start without a checkpoint, and their origin."""
    if weights is None:
        return None
    zeroed = slice(*image_rows(vocabulary)) if cfg.image_rows == "zero" else None

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for stored in weights.stored():
            tensor = stored.read().float()
            if zeroed is not None and stored.name == "lm_head.weight":
                tensor = tensor.clone()
                tensor[zeroed] = 0.0
            yield stored.name, tensor

    note = "" if zeroed is None else ", its head's image rows at 0"
    return tensors(), f"{weights.folder}{note}"


def image_rows(vocabulary: Vocabulary) -> tuple[int, int]:
    """Rows of embedding and head that belong to image codes: first, and one past the last."""
    return vocabulary.image_start, vocabulary.image_start + vocabulary.num_codes


def code_vectors(codebook: str | None, vq_fingerprint: str) -> Tensor | None:
    """The vectors [N, C] of the tokenizer's codes, which must be those of the data.

    Raises VocabularyError if the data have the codes of another tokenizer.
    """
    if codebook is None:
        return None
    tokenizer = load_tokenizer(codebook)
    check_same_vq(vq_fingerprint, tokenizer.fingerprint(), f"codebook={codebook}")
    return tokenizer.code_vectors()


def picture_codes_of(
    weights: Weights | None, loader: RowLoader, report: Callable[[str], None]
) -> str:
    """The fingerprint of the VQGAN whose codes this run trains on, or NO_PICTURES.

    Raises VocabularyError if the weights know the codes of another.
    """
    of_data = loader.vq_fingerprint
    if weights is not None:
        of_data = weights.check_vq(of_data, "data.sources", report)
    return of_data or NO_PICTURES


def check_same_vq(ours: str, theirs: str | None, where: str) -> None:
    """Raises VocabularyError if something used in a run has codes of another VQGAN."""
    if NO_PICTURES != ours != theirs is not None:
        raise VocabularyError(
            f"vq_mismatch: data.sources have the codes of VQGAN {ours}, {where} has those of "
            f"{theirs}; give what was made with the same VQGAN"
        )


def checkpoint_inputs(output: Path) -> dict[str, str] | None:
    """The identities of the sources as the newest checkpoint recorded them; None without one."""
    newest = newest_complete(output)
    if newest is None:
        return None
    sources = newest.loader_state()["order"]["sources"]
    return {f"data.sources.{name}.path": f"shards:{one['shards']}" for name, one in sources.items()}


def changes_since(saved: StepFolder, cfg: Any) -> list[Change]:
    """The settings that differ from those that a checkpoint was made with."""
    found = differences(Made(_stored(saved)["config"], {}), Made(to_plain(cfg), {}), type(cfg))
    return [
        Change(saved.step, one.path, _plain(one.then), _plain(one.now))
        for one in found
        if not is_one_of(one.path, type(cfg).CHANGEABLE.starts)
    ]


def changed_rate(saved: StepFolder, cfg: Any) -> str | None:
    """A note if the learning rate right after a checkpoint is no longer what it was to be.

    A schedule spans all steps of the run as configured now: with more steps, the rate of each
    further step is that of a run of the new length, so a cosine that had fallen rises again.
    """
    config = _stored(saved)["config"]
    if not config.get("steps"):
        return None
    known = {one.name for one in fields(ScheduleConfig)}
    schedule = ScheduleConfig(**{k: v for k, v in config["schedule"].items() if k in known})
    then = learning_rate(schedule, saved.step, config["steps"], config["optim"]["lr"])
    now = learning_rate(cfg.schedule, saved.step, cfg.steps, cfg.optim.lr)
    if math.isclose(then, now, rel_tol=1e-3):
        return None
    return f"learning rate of step {saved.step + 1}: {then:.3g} → {now:.3g} ({cfg.steps:,} steps)"


def changed_dtype(saved: StepFolder, dtype: DtypeChoice) -> str | None:
    """A note if a checkpoint was computed in another type than this start computes in."""
    stored = _stored(saved)
    # Before `auto` the configuration said it.
    chosen = stored.get("dtype") or stored.get("config", {}).get("parallel", {})
    before = chosen.get("name", chosen.get("dtype", dtype.name))
    if before == dtype.name:
        return None
    return (
        f"dtype: {saved.path} was trained in {before}, this start continues in {dtype.name}; "
        f"its weights and moments are float32 either way (parallel.dtype={before} keeps it)"
    )


def _stored(saved: StepFolder) -> dict[str, Any]:
    return yaml.safe_load((saved.path / "config.yaml").read_text()) or {}


def _plain(value: Any) -> Any:
    return "absent" if value == MISSING else value
