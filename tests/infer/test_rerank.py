"""The best of several draws: likelihoods are the model's own, and the likeliest reading wins."""

import numpy as np
import pytest
import torch

from mgpt.errors import DataError
from mgpt.infer.engine import Engine
from mgpt.infer.pipeline import Pipeline
from mgpt.infer.rerank import READ_FIELD, best_answers
from mgpt.infer.sampling import Guidance, SamplingConfig
from mgpt.models.transformer import Transformer
from mgpt.tasks.registry import caption_reading
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokens.chat import Conversation, ImageSlot, Tokens, Turn, tokenise
from mgpt.tokens.vocab import Vocabulary

CFG = SamplingConfig(modality="image", guidance=Guidance(1.5), image_top_k=20)


@pytest.fixture(scope="module")
def pipeline(model: Transformer, vocab: Vocabulary) -> Pipeline:
    torch.manual_seed(0)
    cfg = VqganConfig(
        ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=8, embed_dim=8, n_embed=64,
        num_groups=4,
    )  # fmt: skip
    return Pipeline(Engine(model, vocab), Vqgan(cfg).eval(), vocab)


def _given(pipeline: Pipeline, words: list[str]) -> dict:
    return {
        "conversations": [Conversation((Turn((text,), ()),)) for text in words],
        "codes": [{} for _ in words],
        "cfg": CFG,
        "keys": words,
        "image_grids": [pipeline.grids(8, 8)] * len(words),
    }


def test_a_likelihood_is_that_of_each_trained_token_after_all_before(
    model: Transformer, vocab: Vocabulary
):
    item = Conversation((Turn(("what? ", ImageSlot("image")), ("a hat",)),))
    tokens = tokenise(item, {"image": np.full((2, 2), 5)}, vocab)
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    expected = 0.0
    for place in np.flatnonzero(tokens.trained):
        with torch.inference_mode():
            hidden = model(ids[None, :place], torch.arange(place)[None])[0, -1:]
            expected += model.head.logits(hidden).log_softmax(-1)[0, ids[place]].item()
    assert Engine(model, vocab).log_likelihood(tokens) == pytest.approx(expected, rel=1e-5)


def test_a_sequence_longer_than_the_model_takes_is_refused(model: Transformer, vocab: Vocabulary):
    tokens = Tokens(np.ones(257, np.int32), np.ones(257, bool), 0)
    with pytest.raises(DataError, match="257 tokens; the model takes 256"):
        Engine(model, vocab).log_likelihood(tokens)


def test_the_candidate_that_is_read_best_is_the_answer(pipeline: Pipeline):
    words = ["a cat", "two dogs", "no hat"]
    given, readings = _given(pipeline, words), [caption_reading(text) for text in words]
    [*best] = best_answers(pipeline, 5, **given, readings=readings)
    moved = 0
    for index, text in enumerate(words):
        keys = [text, *(f"{text}/{number}" for number in range(1, 5))]
        drawn = pipeline.answer(
            [given["conversations"][index]] * 5, [{}] * 5, CFG, keys, [given["image_grids"][0]] * 5
        )
        read = [
            pipeline.engine.log_likelihood(
                tokenise(readings[index], {READ_FIELD: answer.codes[0]}, pipeline.vocab)
            )
            for answer in drawn
        ]
        assert best[index].ids == drawn[int(np.argmax(read))].ids
        moved += int(np.argmax(read)) > 0
    assert moved, "with five candidates the first is not always the best"


def test_one_candidate_is_the_answer_without_reranking(pipeline: Pipeline):
    given = _given(pipeline, ["a cat", "two dogs"])
    alone = pipeline.answer(**given)
    best = best_answers(pipeline, 1, **given, readings=[caption_reading("x")] * 2)
    assert [answer.ids for answer in best] == [answer.ids for answer in alone]
