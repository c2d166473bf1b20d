"""Batched decoding against a plain loop that recomputes everything for every token."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from mgpt.errors import ConfigError, DataError, VocabularyError
from mgpt.infer.branches import BranchTable
from mgpt.infer.engine import Engine
from mgpt.infer.grammar import AnswerGrammar
from mgpt.infer.noise import draw_keys, gumbel_noise
from mgpt.infer.sampling import Guidance, SamplingConfig, draw
from mgpt.models.transformer import Transformer
from mgpt.tokens.unirep import Allowed, allowed_mask, decode_grid, encode_grid, find_images
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary

GUIDED = SamplingConfig(modality="image", guidance=Guidance(3.0), image_top_k=20, max_new_tokens=90)
FREE = SamplingConfig(
    guidance=Guidance(3.0), image_top_k=20, text_top_k=30, max_new_tokens=60, seed=0
)


@torch.no_grad()
def _plain(
    model: Transformer,
    vocab: Vocabulary,
    prompt: list[int],
    cfg: SamplingConfig,
    key: str,
    grids=None,
) -> list[int]:
    """One sequence, no cache: the definition of sampling, step by step."""

    def last_logits(ids: list[int]) -> torch.Tensor:
        hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None])
        return (hidden[0, -1] @ model.head.weight.T).float()

    ids = list(prompt)
    grammar = AnswerGrammar(
        vocab, cfg, ids, min(cfg.max_new_tokens, model.cfg.max_positions - len(ids)), grids
    )
    while not grammar.finished:
        choice = grammar.next()
        logits = last_logits(ids)
        if choice.kind == "code":
            alone = last_logits(ids[-grammar.tokens_in_image :])
            logits = alone + cfg.guidance.code_scale * (logits - alone)
        possible = torch.zeros(vocab.size, dtype=torch.bool)
        possible[choice.start : choice.stop] = True
        if choice.kind in ("text", "open"):
            possible &= torch.from_numpy(allowed_mask(Allowed("text"), vocab))
            possible[vocab.begin_image] &= choice.kind == "open"
        logits[~possible] = -torch.inf
        top_k = cfg.text_top_k if choice.kind in ("text", "open") else cfg.image_top_k
        keys = draw_keys(cfg.seed, [key], "cpu")
        noise = gumbel_noise(keys, torch.tensor([len(ids)]), 0, vocab.size)
        token = int(draw(logits[None], top_k, cfg.temperature, noise))
        grammar.advance(token)
        ids.append(token)
    return ids[len(prompt) :]


def _prompts(vocab: Vocabulary, number: int) -> list[list[int]]:
    drawn = random.Random(0)
    prompts = []
    for index in range(number):
        words = [vocab.text_start + drawn.randrange(95) for _ in range(drawn.randint(1, 30))]
        image = encode_grid(np.full((4, 2), index % 64), vocab).tolist() if index % 3 == 0 else []
        prompts.append([vocab.bos, *words, *image, vocab.end_of_turn])
    return prompts


@pytest.mark.parametrize("cfg", [GUIDED, FREE], ids=["image", "free"])
def test_cached_and_batched_equals_plain(
    model: Transformer, vocab: Vocabulary, cfg: SamplingConfig
):
    prompts = _prompts(vocab, 4)
    keys = [f"sample-{index}" for index in range(4)]
    answers = Engine(model, vocab).generate(prompts, cfg, keys)
    assert answers == [
        _plain(model, vocab, prompt, cfg, key) for prompt, key in zip(prompts, keys, strict=True)
    ]
    if cfg is FREE:  # the case must hold text and images in one answer to mean anything
        kinds = [(vocab.begin_image in a, bool(vocab.is_text(a).any())) for a in answers]
        assert (True, True) in kinds


def test_batch_composition_changes_no_answer(model: Transformer, vocab: Vocabulary):
    prompts = _prompts(vocab, 9)
    cfgs = [
        (GUIDED, FREE, SamplingConfig(modality="text", max_new_tokens=9))[i % 3] for i in range(9)
    ]
    keys = [str(index) for index in range(9)]
    together = Engine(model, vocab).generate(prompts, cfgs, keys)
    few_rows = Engine(model, vocab, max_rows=5).generate(prompts, cfgs, keys)
    alone = [
        Engine(model, vocab).generate([prompt], cfg, [key])[0]
        for prompt, cfg, key in zip(prompts, cfgs, keys, strict=True)
    ]
    assert together == few_rows == alone


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_in_step_a_forced_token_takes_no_forward_of_its_own(
    model: Transformer, vocab: Vocabulary, guidance: float, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    forward = BranchTable.forward
    monkeypatch.setattr(BranchTable, "forward", lambda table: calls.append(table) or forward(table))
    cfg = SamplingConfig(modality="image", guidance=Guidance(guidance), image_top_k=20)
    prompts, grids = _prompts(vocab, 3), [(2, 1)] * 3
    answers = Engine(model, vocab).generate(prompts, cfg, list("abc"), grids)
    assert len(calls) == 4 * 2  # a forward a code
    for prompt, answer, key in zip(prompts, answers, "abc", strict=True):
        assert answer == _plain(model, vocab, prompt, cfg, key, (2, 1))


def test_the_key_and_the_seed_decide_the_draws(model: Transformer, vocab: Vocabulary):
    [prompt] = _prompts(vocab, 1)
    first, same, other = Engine(model, vocab).generate([prompt] * 3, GUIDED, ["a", "a", "b"])
    assert first == same != other


def test_images_asked_for_come_whole_and_in_their_size(model: Transformer, vocab: Vocabulary):
    cfg = SamplingConfig(modality="image", num_images=2, guidance=Guidance(1.0))
    grids = [(2, 3), None, (4, 1)]
    answers = Engine(model, vocab).generate(_prompts(vocab, 3), cfg, list("abc"), grids)
    for answer, size in zip(answers, grids, strict=True):
        assert answer[-1] == vocab.end_of_turn
        images = find_images(answer[:-1], vocab)
        assert len(images) == 2
        if size is not None:
            shapes = {decode_grid(answer[start:stop], vocab).shape for start, stop in images}
            assert shapes == {(2 * size[0], 2 * size[1])}


def test_a_prompt_inside_an_image_is_completed_with_guidance(model: Transformer, vocab: Vocabulary):
    image = encode_grid(np.arange(16).reshape(4, 4), vocab).tolist()
    prompt = [vocab.bos, vocab.text_start, vocab.end_of_turn, *image[:9]]
    [answer] = Engine(model, vocab).generate([prompt], GUIDED, ["k"])
    assert answer == _plain(model, vocab, prompt, GUIDED, "k")
    assert decode_grid(image[:9] + answer[:-1], vocab)[0].tolist() == [0, 1, 2, 3]


def test_guidance_changes_codes_and_never_sizes(model: Transformer, vocab: Vocabulary):
    prompts = _prompts(vocab, 6)
    keys = list("abcdef")
    weak = SamplingConfig(modality="image", guidance=Guidance(1.0))
    strong = SamplingConfig(modality="image", guidance=Guidance(8.0))
    without = Engine(model, vocab).generate(prompts, weak, keys)
    with_it = Engine(model, vocab).generate(prompts, strong, keys)
    assert [answer[:3] for answer in without] == [answer[:3] for answer in with_it]
    assert without != with_it


def test_tokens_run_out_at_the_models_longest_document(model: Transformer, vocab: Vocabulary):
    prompt = [vocab.bos] + [vocab.text_start] * 250
    cfg = SamplingConfig(modality="text", text_top_k=95)
    for key in "abcd":
        [answer] = Engine(model, vocab).generate([prompt], cfg, [key])
        assert len(prompt) + len(answer) <= 256


def test_bad_prompts_are_named_by_their_key(model: Transformer, vocab: Vocabulary):
    engine = Engine(model, vocab)
    with pytest.raises(DataError, match="'long' has 256 tokens"):
        engine.generate([[vocab.bos] * 256], FREE, ["long"])
    with pytest.raises(DataError, match="'empty' has 0 tokens"):
        engine.generate([[]], FREE, ["empty"])
    with pytest.raises(DataError, match=r"'broken': position 1"):
        engine.generate([[vocab.bos, vocab.end_image]], FREE, ["broken"])
    with pytest.raises(ConfigError, match="'big': an image of 8 x 8 latents has 76 tokens"):
        engine.generate([[vocab.bos] * 200], GUIDED, ["big"], [(4, 4)])
    assert engine.generate([], FREE, []) == []


def test_a_vocabulary_of_another_size_is_refused(model: Transformer, vocab: Vocabulary):
    other = scratch_vocabulary(vocab.text, num_codes=65, max_grids=4)
    with pytest.raises(
        VocabularyError, match=f"{vocab.size} token ids and the vocabulary {other.size}"
    ):
        Engine(model, other)


def test_memory_for_the_cache_bounds_the_rows(model: Transformer, vocab: Vocabulary):
    prompts, keys = _prompts(vocab, 5), list("abcde")
    # Keys and values of 2 layers x 2 heads x 16 numbers of 8 bytes, at 256 places.
    row_bytes = 2 * 2 * 2 * 16 * 8 * 256
    small = Engine(model, vocab, cache_bytes=4 * row_bytes)
    largest = 0
    forward = Transformer.forward

    def counting(self: Transformer, ids_BT: torch.Tensor, *args, **kwargs):
        nonlocal largest
        largest = max(largest, len(ids_BT))
        return forward(self, ids_BT, *args, **kwargs)

    cfg = replace(GUIDED, max_new_tokens=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "forward", counting)
        limited = small.generate(prompts, cfg, keys)
    assert largest == 4
    assert limited == Engine(model, vocab).generate(prompts, cfg, keys)
