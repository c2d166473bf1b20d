"""What a scorer is: which metrics it reports, and how it gets them from a case and a reply.

A scorer looks at text and pixels alone, never at the model's own opinion. It reports named metrics;
one that does not apply to a case is absent. `scorers` holds those that work on anyone's held-out
samples; a stage may pass others, such as those of the built-in scenes.

    scorer = Scorer((Metric("exact_match", RIGHT, True),), same_text)
    scorer.score(case, Reply("red"))                # {"exact_match": 1.0}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgpt.evals.cases import Case, Reply
from mgpt.tasks.registry import TASKS

MEASURES = "measures.json"
"""A task's metrics, written last into its folder."""
RIGHT = "share of answers"
_SHOWN_FIRST = ("text_to_image", "caption", "vqa")
ALL_TASKS = (*_SHOWN_FIRST, *(name for name in TASKS if name not in _SHOWN_FIRST))
"""The sixteen in the order in which tables show them."""
_OLD_KEY = "figures"  # what `metrics` was called in files of earlier versions


@dataclass(frozen=True)
class Metric:
    """One column of the table of measures. `goal` is in the metric's own unit."""

    name: str
    unit: str
    higher_is_better: bool
    goal: float | None = None


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Scorer:
    """How replies to the cases of a task are measured.

    The first metric that applies is the main one: it decides which constant answer is the best.
    """

    metrics: tuple[Metric, ...]
    measure: Callable[[Case, Reply], dict[str, float]]
    """Metrics of one reply that holds as many pictures as the truth, each of its size."""
    caveat: str = ""
    """What a reader must know before believing the metrics; shown beside them."""
    can_read: Callable[[Mapping[str, Any]], bool] = lambda meta: True
    """Whether the truth of a sample, given its JSON, can be measured at all."""
    told: Callable[[Case], str] = lambda case: ""
    """What a question without a picture tells about its answer: cases that differ in it do not
    share a constant answer."""
    check: Callable[[], None] = _nothing
    """Raises ConfigError or MachineError if something that it needs is missing."""

    def score(self, case: Case, reply: Reply) -> dict[str, float]:
        """The metrics of one reply. A missing picture counts as a black one of the right size."""
        images = list(reply.images[: len(case.truth.images)])
        images += [np.zeros_like(truth) for truth in case.truth.images[len(images) :]]
        images = [
            image if image.shape == truth.shape else np.zeros_like(truth)
            for image, truth in zip(images, case.truth.images, strict=True)
        ]
        return self.measure(case, Reply(reply.text, tuple(images)))


def read_measures(file: Path) -> dict[str, Any]:
    """A task's measures.json, of earlier versions too."""
    return _renamed(json.loads(file.read_text()))


def read_gallery(folder: Path) -> list[dict[str, Any]]:
    """The entries of a task's gallery.json, of earlier versions too."""
    return [_renamed(entry) for entry in json.loads((folder / "gallery.json").read_text())]


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    return {"metrics" if name == _OLD_KEY else name: value for name, value in found.items()}
