"""Conversations to answers: prompts, text, pictures of several sizes, and pictures in."""

import numpy as np
import pytest
import torch
from PIL import Image

from mgpt.errors import ConfigError
from mgpt.images.pixels import normalise, to_uint8
from mgpt.infer.engine import Engine
from mgpt.infer.pipeline import Pipeline
from mgpt.infer.sampling import Guidance, SamplingConfig
from mgpt.models.transformer import Transformer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokens.chat import Conversation, ImageSlot, Turn, prompt_ids
from mgpt.tokens.unirep import encode_grid
from mgpt.tokens.vocab import Vocabulary


def _vqgan(num_codes: int = 64) -> Vqgan:
    torch.manual_seed(0)
    return Vqgan(
        VqganConfig(
            ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=8, embed_dim=8,
            n_embed=num_codes, num_groups=4,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(model: Transformer, vocab: Vocabulary) -> Pipeline:
    return Pipeline(Engine(model, vocab), _vqgan(), vocab)


def _ask(*question: str | ImageSlot) -> Conversation:
    return Conversation((Turn(tuple(question), ()),))


def test_pictures_are_those_of_the_codes_in_their_order(pipeline: Pipeline, vocab: Vocabulary):
    cfg = SamplingConfig(modality="image", num_images=2, guidance=Guidance(2.0))
    asks = [_ask("a cat"), _ask("a dog"), _ask("a hat")]
    grids = [pipeline.grids(16, 8), pipeline.grids(8, 24), pipeline.grids(16, 8)]
    answers = pipeline.answer(asks, [{}] * 3, cfg, list("abc"), grids)
    for answer, (height, width) in zip(answers, grids, strict=True):
        assert answer.text == "" and answer.finished
        assert [image.shape for image in answer.images] == [(8 * height, 8 * width, 3)] * 2
        written = [encode_grid(codes, vocab).tolist() for codes in answer.codes]
        assert answer.ids == [*written[0], *written[1], vocab.end_of_turn]
        for codes, image in zip(answer.codes, answer.images, strict=True):
            with torch.inference_mode():
                pixels = pipeline.tokenizer.decode(torch.from_numpy(codes.astype(np.int64))[None])
            assert np.abs(to_uint8(pixels[0].numpy()).astype(int) - image).max() <= 1


def test_text_and_images_are_told_apart(pipeline: Pipeline, vocab: Vocabulary):
    codes = np.arange(8).reshape(2, 4)
    image = encode_grid(codes, vocab).tolist()
    ids = [*vocab.encode_text("so: "), *image, *vocab.encode_text("there"), vocab.end_of_turn]
    answer = pipeline._split(ids)
    assert answer.text == "so: there" and answer.finished
    assert np.array_equal(answer.codes[0], codes)
    assert not pipeline._split(vocab.encode_text("cut of")).finished


def test_the_prompt_is_the_conversation_with_its_pictures(
    pipeline: Pipeline, vocab: Vocabulary, monkeypatch: pytest.MonkeyPatch
):
    codes = {"image": np.full((2, 2), 7, dtype=np.uint16)}
    ask = _ask("What is it? ", ImageSlot("image"))
    prompts = []

    def generate(given, *args):
        prompts.extend(given)
        return [[vocab.end_of_turn]]

    monkeypatch.setattr(pipeline.engine, "generate", generate)
    [answer] = pipeline.answer([ask], [codes], SamplingConfig(), ["k"])
    assert prompts == [prompt_ids(ask, codes, vocab)]
    assert answer.text == "" and answer.images == []


def test_a_picture_becomes_codes_of_the_bucket_it_fits(pipeline: Pipeline):
    levels_HWC = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    codes_HW = pipeline.encode_image(Image.fromarray(levels_HWC), target_px=24)
    assert codes_HW.dtype == np.uint16 and codes_HW.shape == (4, 8)
    with torch.inference_mode():
        exact = pipeline.tokenizer.encode(torch.from_numpy(normalise(levels_HWC))[None])
    assert np.array_equal(codes_HW, exact[0].numpy())


def test_sizes_that_have_no_tokens_are_refused(pipeline: Pipeline):
    assert pipeline.grid_px == 8 and pipeline.grids(24, 8) == (1, 3)
    for size in ((20, 8), (8, 0), (8, 40)):
        with pytest.raises(ConfigError, match="multiples of 8 px, 32 px at most"):
            pipeline.grids(*size)


def test_a_vqgan_of_another_codebook_is_refused(model: Transformer, vocab: Vocabulary):
    with pytest.raises(ConfigError, match="128 codes and the vocabulary 64"):
        Pipeline(Engine(model, vocab), _vqgan(num_codes=128), vocab)
