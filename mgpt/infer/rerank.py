"""The best of several drawn answers, by how well the model itself reads them: self-reranking.

Of the pictures drawn for a text, the one is taken whose caption that text most likely is
(CogView, arXiv 2105.13290, section 3.3). A model reads better than it draws: a draw that went
wrong, such as one where the object never came, is told from a good one.

    >>> asked = Conversation((Turn(("Generate an image of: a red cube",), ()),))
    >>> read = Conversation((Turn((ImageSlot("image"),), ("a red cube",)),))
    >>> [answer] = best_answers(pipeline, 4, [asked], [{}], cfg, ["cat"], [read])
"""

from collections.abc import Mapping, Sequence

from mgpt.infer.pipeline import Answer, Codes, Pipeline
from mgpt.infer.sampling import SamplingConfig
from mgpt.tokens.chat import Conversation, tokenise

__all__ = ["READ_FIELD", "best_answers"]

READ_FIELD = "image"
"""The picture field of a reading: the first picture of an answer stands there."""


def best_answers(
    pipeline: Pipeline,
    num_candidates: int,
    conversations: Sequence[Conversation],
    codes: Sequence[Mapping[str, Codes]],
    cfg: SamplingConfig,
    keys: Sequence[str],
    readings: Sequence[Conversation],
    image_grids: Sequence[tuple[int, int] | None] | None = None,
) -> list[Answer]:
    """Of `num_candidates` answers to each conversation, the one with the likeliest reading.

    Candidate 0 is the answer that would be drawn alone. Of equals the first is taken.

    Args:
        conversations, codes, cfg, keys, image_grids: as in `Pipeline.answer`; answers hold a
            picture.
        readings: for each conversation, one with a picture in `READ_FIELD` and a last answer:
            what a good picture should be answered with.
    """
    drawn = [(index, number) for index in range(len(keys)) for number in range(num_candidates)]
    answers = pipeline.answer(
        [conversations[index] for index, _ in drawn],
        [codes[index] for index, _ in drawn],
        cfg,
        [f"{keys[index]}/{number}" if number else keys[index] for index, number in drawn],
        None if image_grids is None else [image_grids[index] for index, _ in drawn],
    )
    best = []
    for index, reading in enumerate(readings):
        candidates = answers[index * num_candidates : (index + 1) * num_candidates]
        best.append(max(candidates, key=lambda answer: _likelihood(pipeline, reading, answer)))
    return best


def _likelihood(pipeline: Pipeline, reading: Conversation, answer: Answer) -> float:
    tokens = tokenise(reading, {READ_FIELD: answer.codes[0]}, pipeline.vocab)
    return pipeline.engine.log_likelihood(tokens)
