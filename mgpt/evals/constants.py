"""The best constant answer: what a model is measured against that never looks at a picture.

Cases of one group share a constant: the same question about a picture, the same picture sizes. Of
texts it is the commonest true answer of the group, or, if the scorer measures a distance, the true
answer that is nearest to all; a question asked less than MIN_GROUP times joins the other rare ones,
since the commonest of very few would be the truth itself. Of pictures it is the mean, the median,
or one of the true pictures of the *other* cases, whichever has the best average main metric. All
this is chosen on the held-out truths themselves, in the constant's favour. For edits the unchanged
input is put beside it, because copying is the laziest answer there.

    replies = best_constant_replies(cases, scorer)    # one Reply a case, in the order of the cases
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from mgpt.evals.cases import Case, Reply
from mgpt.evals.metrics import Scorer

NUM_CANDIDATES = 8
"""How many of the true pictures of a group are tried as its constant answer."""
NUM_TEXTS = 32
"""How many true texts of a group are tried if the scorer measures a distance."""
MIN_GROUP = 8
"""Fewest cases that a question needs for a constant text of its own."""


def best_constant_replies(cases: list[Case], scorer: Scorer) -> list[Reply]:
    """For each case the constant reply of its group with the best average main metric."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        groups[_group(case, scorer)].append(index)
    if not cases[0].answer_fields:
        for name in [name for name, members in groups.items() if name and len(members) < MIN_GROUP]:
            groups[""].extend(groups.pop(name))
    replies: dict[int, Reply] = {}
    for members in groups.values():
        group = [cases[index] for index in members]
        candidates = _candidates(group, scorer)
        best = max(candidates, key=lambda each: _average_score(group, each, scorer))
        replies.update(zip(members, best, strict=True))
    return [replies[index] for index in range(len(cases))]


def _group(case: Case, scorer: Scorer) -> str:
    """What the cases that share a constant answer have in common.

    Without a picture a text question says all there is to know: all such cases are one group.
    """
    if not case.answer_fields:
        return case.question if case.question_images else ""
    sizes = " ".join(str(case.codes[field].shape) for field in case.answer_fields)
    return f"{scorer.told(case)} {sizes}"


def _candidates(group: list[Case], scorer: Scorer) -> Iterable[list[Reply]]:
    """Ways to answer the whole group without looking, a reply a case each."""
    truths = [case.truth for case in group]
    if not truths[0].images:
        yield [Reply(_commonest(truths))] * len(truths)
        if not scorer.metrics[0].higher_is_better:
            for text in sorted({truth.text for truth in truths})[:NUM_TEXTS]:
                yield [Reply(text)] * len(truths)
    elif len(truths) == 1:
        yield [_blank(truths[0])]
    else:
        for average in (_means_of_others, _medians_of_others):
            slots = [
                average(np.stack(pictures))
                for pictures in zip(*(truth.images for truth in truths), strict=True)
            ]
            yield [Reply("", images) for images in zip(*slots, strict=True)]
        for rank in range(min(NUM_CANDIDATES, len(truths) - 1)):
            yield [_others(truths, index)[rank] for index in range(len(truths))]
        if group[0].task == "edit":
            yield [Reply("", case.question_images) for case in group]


def _others(truths: list[Reply], index: int) -> list[Reply]:
    return truths[:index] + truths[index + 1 :]


def _commonest(truths: list[Reply]) -> str:
    counts = Counter(truth.text for truth in truths)
    return max(sorted(counts), key=counts.__getitem__)


def _means_of_others(pictures_N: np.ndarray) -> list[np.ndarray]:
    """For each of N >= 2 pictures, `np.mean` over the others, as uint8."""
    total, others = pictures_N.sum(0, dtype=np.float64), len(pictures_N) - 1
    return [((total - picture) / others).astype(np.uint8) for picture in pictures_N]


def _medians_of_others(pictures_N: np.ndarray) -> list[np.ndarray]:
    """For each of N >= 2 pictures, `np.median` over the others, as uint8.

    Without one value, what was sorted behind it moves up by a place.
    """
    sorted_N, others = np.sort(pictures_N, axis=0), len(pictures_N) - 1
    low, high = (others - 1) // 2, others // 2
    medians = []
    for picture in pictures_N:
        below, above = (
            np.where(picture > sorted_N[place], sorted_N[place], sorted_N[place + 1])
            for place in (low, high)
        )
        medians.append(((below.astype(np.float64) + above) / 2).astype(np.uint8))
    return medians


def _blank(truth: Reply) -> Reply:
    """Of a case that is alone in its group, nothing is known but the sizes."""
    return Reply("", tuple(np.full_like(image, 128) for image in truth.images))


def _average_score(group: list[Case], replies: list[Reply], scorer: Scorer) -> float:
    """Mean of the first metric that applies to the group, signed so that more is better."""
    scores = [scorer.score(case, reply) for case, reply in zip(group, replies, strict=True)]
    for metric in scorer.metrics:
        given = [each[metric.name] for each in scores if metric.name in each]
        if given:
            return float(np.mean(given)) * (1 if metric.higher_is_better else -1)
    return 0.0
