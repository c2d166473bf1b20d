"""The best constant answer: what a model is measured against that never looks at its input.

For each group of cases (`Case.group`) some constant replies are made from the held-out truths
themselves, which favours the constant: the commonest true texts; the mean and median of the true
pictures and some of the true pictures as they are. The one with the best average main figure is the
constant answer of the group. For edits the unchanged input is put beside it, because copying is the
laziest answer there.

    replies = best_constant_replies(cases)       # one Reply a case, in the order of the cases
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from mgpt.evals.cases import Case, Reply
from mgpt.evals.measures import FIGURES, score

NUM_CANDIDATES = 8
"""How many of the true answers of a group are tried as its constant answer."""


def best_constant_replies(cases: list[Case]) -> list[Reply]:
    """For each case the constant reply of its group with the best average main figure."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        groups[case.group].append(index)
    replies: dict[int, Reply] = {}
    for members in groups.values():
        group = [cases[index] for index in members]
        best = max(_candidates(group), key=lambda each: _average_score(group, each))
        replies.update(zip(members, best, strict=True))
    return [replies[index] for index in range(len(cases))]


def _candidates(group: list[Case]) -> Iterable[list[Reply]]:
    truths = [case.truth for case in group]
    if not truths[0].images:
        for text, _ in Counter(truth.text for truth in truths).most_common(NUM_CANDIDATES):
            yield [Reply(text)] * len(group)
        return
    stacks = [np.stack(slot) for slot in zip(*(truth.images for truth in truths), strict=True)]
    for average in (np.mean, np.median):
        constant = Reply("", tuple(average(stack, axis=0).astype(np.uint8) for stack in stacks))
        yield [constant] * len(group)
    for truth in truths[:NUM_CANDIDATES]:
        yield [truth] * len(group)
    if group[0].task == "edit" and all(case.question_images for case in group):
        yield [Reply("", (case.question_images[-1],)) for case in group]


def _average_score(group: list[Case], replies: list[Reply]) -> float:
    """Mean of the first figure that applies to the group, signed so that more is better."""
    figures = [score(case, reply) for case, reply in zip(group, replies, strict=True)]
    for figure in FIGURES[group[0].task]:
        given = [each[figure.name] for each in figures if figure.name in each]
        if given:
            return float(np.mean(given)) * (1 if figure.higher_is_better else -1)
    return 0.0
