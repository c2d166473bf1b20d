"""How long an evaluation takes, from a few cases of each kind of answer on stand-in samples.

Cases are answered and scored in this process, few and then more, which tells what a batch costs
and what each case in it. A model that has learned nothing ends no text, so an answer in words is
counted as `_ANSWER_TOKENS` long.

    rehearse_evaluation(shortened, real, scale=10.0).seconds        # 160.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mgpt.data.dataset import TokenisedDataset
from mgpt.evals.cases import serving
from mgpt.evals.evaluate import EvaluateConfig
from mgpt.evals.metrics import Scorer
from mgpt.lifecycle.rehearsal import Estimate, shares, timed
from mgpt.tasks.registry import task as find_task
from mgpt.tasks.registry import task_name

_FEW, _MORE = 2, 8
_ANSWER_TOKENS = 32

Evaluation = Callable[[EvaluateConfig, Path], dict[str, dict]]
"""Measures of a configuration's tasks, their folders below a path."""


def rehearse_evaluation(
    cfg: EvaluateConfig,
    scorers: Mapping[str, Scorer],
    folder: Path,
    dataset: TokenisedDataset,
    scale: float,
    processes: int,
    evaluation: Evaluation,
) -> Estimate:
    """The time of all cases.

    Args:
        cfg: the real evaluation's tasks, numbers of cases and ways of drawing.
        scorers: of each of these tasks.
        dataset: the stand-in of the held-out samples, `scale` times fewer than there will be.
        processes: that share the cases.
        evaluation: measures some cases.
    """
    there = {task: len(serving(dataset, task, scorer.can_read)) for task, scorer in scorers.items()}
    first = next((task for task in cfg.tasks if there[task]), None)
    if first is not None:  # loads kernels, and decodes pictures that others will look at
        evaluation(_few_cases(cfg, first, samples=1), folder / "warm")
    seconds, cost = 0.0, {}
    for task in (task for task in cfg.tasks if there[task]):
        kind = _kind(cfg, task)
        if kind not in cost:
            cost[kind] = _cost(cfg, task, folder, evaluation)
        batch_s, case_s, cases_a_sample = cost[kind]
        samples = min(cfg.samples_of.get(task_name(task), cfg.samples), there[task] * scale)
        cases = samples * cases_a_sample / shares(processes)
        seconds += math.ceil(cases / cfg.batch_cases) * batch_s + cases * case_s
    return Estimate(seconds, starts=1 if processes == 1 else 2)


def _cost(
    cfg: EvaluateConfig, task: str, folder: Path, evaluation: Evaluation
) -> tuple[float, float, float]:
    """Seconds of a batch and of each case in it, and cases a sample, of one kind of answer."""
    spent: list[tuple[float, int]] = []
    for samples in (_FEW, _MORE):
        some = _few_cases(cfg, task, samples)
        found: list[int] = []

        def measure(some: EvaluateConfig = some, found: list[int] = found) -> None:
            measures = evaluation(some, folder / f"{task_name(task)}_{some.samples}")
            found.append(int(measures[task_name(task)]["cases"]))

        spent.append((timed(measure), found[0]))
    (few_s, few), (more_s, more) = spent
    if more == few:
        return 0.0, more_s / more, few / _FEW
    case_s = max(0.0, more_s - few_s) / (more - few)
    return max(0.0, more_s - more * case_s), case_s, few / _FEW


def _few_cases(cfg: EvaluateConfig, task: str, samples: int) -> EvaluateConfig:
    longest = _ANSWER_TOKENS if _kind(cfg, task) == "text" else cfg.max_new_tokens
    return replace(
        cfg,
        tasks=(task,),
        samples=samples,
        samples_of={},
        guided_tasks=tuple(name for name in cfg.guided_tasks if name == task_name(task)),
        gallery=0,
        max_new_tokens=longest,
    )


def _kind(cfg: EvaluateConfig, task: str) -> str:
    """Tasks of one kind have answers of one form: words, or a picture with or without guidance."""
    found = find_task(task)
    if found.answer == "text":
        return "text"
    if not found.shows_pictures:
        return found.name
    return "guided picture" if found.name in cfg.guided_tasks else "picture"
