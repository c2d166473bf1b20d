"""What is trained on: sources, their tasks and weights, opened and checked before a run starts.

A *component* is one task of one source: a list of samples, each giving one document per epoch.
Its weight is a share of documents. Everything that would fail in mid-run and can be known before
is refused here, with the numbers: a task that no sample serves, a document longer than a row, a
picture code that the vocabulary lacks.

    config = DataConfig({"scenes": SourceConfig("output/64", {"caption": 1.0})}, 1024, 16)
    components = open_components(config, vocab)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mgpt.data.dataset import TokenisedDataset, open_dataset
from mgpt.data.lengths import TOKENS, TaskLengths, load_lengths
from mgpt.errors import ConfigError, DataError, VocabularyError
from mgpt.files.storage import locate
from mgpt.tasks.registry import READINGS, is_own, task_fingerprint, task_name
from mgpt.tokens.vocab import Vocabulary


@dataclass(frozen=True)
class SourceConfig:
    """One folder of tokenised shards and what to train on from it.

    path: the folder of one resolution, such as output/512.
    tasks: weight of each task or pretraining document, relative to all weights of all sources; the
        file of a task of your own stands for its name.
    max_epochs: passes over the samples after which a task of this source is used up and its
        weight goes to the rest; null for no limit.
    max_task_epochs: the same for single tasks, where they differ from it.
    """

    path: str
    tasks: dict[str, float]
    max_epochs: float | None = None
    max_task_epochs: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks or any(weight < 0 for weight in self.tasks.values()):
            raise ValueError(f"tasks of {self.path}: weights of at least one task, none below 0")
        for epochs in (self.max_epochs, *self.max_task_epochs.values()):
            if epochs is not None and epochs <= 0:
                raise ValueError(f"max_epochs of {self.path} is {epochs}; above 0, or null")


@dataclass(frozen=True)
class DataConfig:
    """The mix and the batch.

    sources: by name. A weight is a share of documents: what has a larger one than its samples
        warrant is seen more often.
    row_tokens: length of a packed row.
    step_rows: rows of one optimiser step, over all ranks.
    guidance_drop: share of picture answers whose context is dropped, for guidance (paper: 0.1).
    train_on_inputs: whether prompts are trained as well as answers: all of a document but its first
        token. A prompt's picture then teaches how pictures look, for the cost of the head alone.
    window_documents: documents that are packed together; more fill rows better and plan longer.
    workers: background processes a rank that make rows; 0 for a thread. Rows do not depend on it.
    temperature: multiplies each weight by (number of samples)^(1 / temperature): 1 mixes in
        proportion to size, more evens out; null takes the weights as they are.
    changes: step → source → task → the weight from the first window on that starts at or after
        that step; what is not named keeps its weight.
    allow_changed: sources whose shards may be others than the checkpoint's that a run goes on from.
    """

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    row_tokens: int = 4096
    step_rows: int = 16
    guidance_drop: float = 0.1
    train_on_inputs: bool = False
    window_documents: int = 2048
    workers: int = 0
    temperature: float | None = None
    changes: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    allow_changed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("row_tokens", "step_rows", "window_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; 0 or more")
        if not 0.0 <= self.guidance_drop <= 1.0:
            raise ValueError(f"guidance_drop is {self.guidance_drop}; a share, 0 to 1")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; above 0, or null")
        for step, sources in self.changes.items():
            if step < 1:
                raise ValueError(f"changes at step {step}: 1 or more")
            if unknown := sorted(sources.keys() - self.sources.keys()):
                raise ValueError(f"changes at step {step}: no source {', '.join(unknown)}")
            if any(weight < 0 for tasks in sources.values() for weight in tasks.values()):
                raise ValueError(f"changes at step {step}: no weight is below 0")
        self._check_weights_add_up()

    def _check_weights_add_up(self) -> None:
        """Raises ValueError where nothing at all is drawn, from the start or after a change."""
        weights = {
            (name, task): weight
            for name, source in self.sources.items()
            for task, weight in source.tasks.items()
        }
        if weights and not sum(weights.values()):
            shown = ", ".join(f"{name}.tasks.{task}=0" for name, task in weights)
            raise ValueError(
                f"the weights of all sources add up to 0 ({shown}); give a task one above 0"
            )
        for step in sorted(self.changes):
            for name, tasks in self.changes[step].items():
                weights |= {(name, task): weight for task, weight in tasks.items()}
            if not sum(weights.values()):
                raise ValueError(
                    f"changes at step {step}: all weights are 0 from there on; give a task one "
                    "above 0, or end the run there"
                )

    def weights(self, source: str) -> dict[str, float]:
        """The weight at first of each task of a source that is trained on at any step."""
        found = {name: weight for name, weight in self.sources[source].tasks.items() if weight > 0}
        for sources in self.changes.values():
            for name, weight in sources.get(source, {}).items():
                if weight > 0:
                    found.setdefault(name, 0.0)
        return dict(sorted(found.items()))


def task_names(config: DataConfig) -> list[str]:
    """Names of all tasks by which metrics of this mix can be grouped: ours, then the mix's own.

    Raises ConfigError if two files give one name.
    """
    files: dict[str, str] = {}
    for source in config.sources:
        for reference in filter(is_own, config.weights(source)):
            other = files.setdefault(task_name(reference), reference)
            if other != reference:
                raise ConfigError(
                    f"data.sources: {other} and {reference} are both the task "
                    f"{task_name(reference)!r}; rename one"
                )
    return [*READINGS, *sorted(files)]


def at_resolution(
    sources: dict[str, SourceConfig], resolution_px: int | None
) -> dict[str, SourceConfig]:
    """The sources with each path at that resolution's folder; unchanged without a resolution.

    Raises DataError if a source was not tokenized at it.
    """
    if resolution_px is None:
        return sources
    found = {}
    for name, source in sources.items():
        folder = locate(source.path) / str(resolution_px)
        if not folder.is_dir():
            raise DataError(
                f"source {name}: path={source.path} holds no {resolution_px}/; tokenize it "
                f"with resolution=[…,{resolution_px}], or set another resolution"
            )
        found[name] = replace(source, path=str(folder))
    return found


def capped(config: DataConfig, epochs: float) -> DataConfig:
    """The same mix with no sample drawn more often than `epochs` times."""

    def at_most(limit: float | None) -> float:
        return epochs if limit is None else min(limit, epochs)

    sources = {
        name: replace(
            source,
            max_epochs=at_most(source.max_epochs),
            max_task_epochs={task: at_most(one) for task, one in source.max_task_epochs.items()},
        )
        for name, source in config.sources.items()
    }
    return replace(config, sources=sources)


@dataclass(frozen=True)
class Component:
    """One task of one source, opened: which samples, how long, how much of the mix.

    `weight` is that at the first step; `scale` is what temperature makes of its size, and already
    in it. `cap` is the number of documents it can give in all, None for no limit. `reference` is
    how the mix names the task: one of the user's own by its file, whose fingerprint is
    `own_fingerprint`.
    """

    source: str
    task: str
    dataset: TokenisedDataset
    lengths: TaskLengths
    weight: float
    cap: int | None
    scale: float = 1.0
    reference: str = ""
    own_fingerprint: str | None = None

    @property
    def name(self) -> str:
        return f"{self.source}/{self.task}"

    def __len__(self) -> int:
        return len(self.lengths)


def open_components(
    config: DataConfig,
    vocab: Vocabulary,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Component]:
    """Every (source, task) of a weight above 0 at some step, ordered by name.

    Args:
        on_progress: called with (samples counted, samples in all) where lengths are made now.

    Raises:
        DataError: no source; a component without samples; documents longer than a row, with the
            longest of each task; sources of different VQ models.
        VocabularyError: shards with more picture codes than the vocabulary has.
    """
    components = []
    for source_name, source in sorted(config.sources.items()):
        dataset = open_dataset(source.path)
        if dataset.num_codes > vocab.num_codes:
            raise VocabularyError(
                f"source {source_name} ({source.path}): its VQ model has {dataset.num_codes} "
                f"codes, the vocabulary {vocab.num_codes}; use the vocabulary made for that model"
            )
        weights = config.weights(source_name)
        lengths = load_lengths(dataset, vocab, weights, on_progress)
        for reference, weight in weights.items():
            entries, name = lengths[reference], task_name(reference)
            if not len(entries):
                raise DataError(_no_samples(source_name, name, dataset))
            epochs = source.max_task_epochs.get(reference, source.max_epochs)
            cap = cap_of(len(entries), epochs)
            scale = size_scale(len(entries), config.temperature)
            components.append(
                Component(
                    source_name,
                    name,
                    dataset,
                    entries,
                    weight * scale,
                    cap,
                    scale,
                    reference,
                    task_fingerprint(reference) if is_own(reference) else None,
                )
            )
    if not components:
        raise DataError("nothing to train on: give data.sources a source and a task above weight 0")
    vq_fingerprint_of(components)
    check_row_tokens(components, config.row_tokens)
    return components


def vq_fingerprint_of(components: Sequence[Component]) -> str | None:
    """The VQ model that made all picture codes; None where there are none.

    Raises DataError where two sources were encoded with different models.
    """
    found: dict[str, Component] = {}
    for part in components:
        if part.dataset.has_pictures:
            found.setdefault(part.dataset.vq_fingerprint, part)
    if len(found) > 1:
        (ours, first), (theirs, second), *_ = found.items()
        raise DataError(
            f"source {first.source} ({first.dataset.folder}) was encoded with VQ model {ours}, "
            f"source {second.source} ({second.dataset.folder}) with {theirs}; the same code is "
            "another picture in each: tokenize both with one vq="
        )
    return next(iter(found), None)


def cap_of(num_samples: int, epochs: float | None) -> int | None:
    """Documents that so many samples give in so many epochs; None for no limit."""
    return None if epochs is None else max(1, int(epochs * num_samples))


def weights_after(config: DataConfig, parts: list[Component], step: int) -> list[float]:
    """The weight of each component once the changes up to `step` are in force."""
    weights = {part.name: part.weight for part in parts}
    scales = {part.name: part.scale for part in parts}
    for _, sources in sorted(item for item in config.changes.items() if item[0] <= step):
        for source, tasks in sources.items():
            for task, weight in tasks.items():
                if (name := f"{source}/{task_name(task)}") in weights:  # others never have a weight
                    weights[name] = weight * scales[name]
    return list(weights.values())


def size_scale(num_samples: int, temperature: float | None) -> float:
    """num_samples^(1 / temperature), to six digits: powers differ in the last of sixteen from
    machine to machine, and the order must not."""
    return 1.0 if temperature is None else float(f"{num_samples ** (1 / temperature):.6g}")


def max_documents_tokens(components: list[Component]) -> dict[str, int]:
    """Tokens of the longest document of each component, over all variants."""
    return {part.name: int(part.lengths.counts_NVC[..., TOKENS].max()) for part in components}


def check_row_tokens(components: list[Component], row_tokens: int) -> None:
    """Refuse a row length that cannot hold the longest document of some component.

    Raises:
        DataError: the longest document of each task that does not fit, and how many there are.
    """
    lines = []
    for part in components:
        longest_N = part.lengths.counts_NVC[..., TOKENS].max(axis=1)
        too_long = int(np.count_nonzero(longest_N > row_tokens))
        if too_long:
            worst = int(longest_N.argmax())
            raw_shard, key = part.dataset.identity(int(part.lengths.samples_N[worst]))
            lines.append(
                f"{part.name}: {too_long} of {len(part)} documents, the longest "
                f"{int(longest_N[worst])} tokens ({raw_shard}, key {key!r})"
            )
    if lines:
        raise DataError(
            f"a row of {row_tokens} tokens cannot hold every document, and none is ever cut. "
            + "; ".join(lines)
            + f". Raise row_tokens to {max(max_documents_tokens(components).values())} or more"
        )


def _no_samples(source_name: str, name: str, dataset: TokenisedDataset) -> str:
    tasks = sorted({one for manifest in dataset.manifests for one in manifest.tasks})
    fields = sorted({one for manifest in dataset.manifests for one in manifest.fields})
    return (
        f"source {source_name} ({dataset.folder}): none of its {len(dataset)} samples can serve "
        f"task {name}; they list the tasks {', '.join(tasks) or '(none, so any that fits)'} "
        f"and hold the fields {', '.join(fields) or '(none)'}. Remove the task from the mix"
    )
