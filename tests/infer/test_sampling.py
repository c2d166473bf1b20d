"""Guidance in both forms, top-k with ties, temperature, and draws that their key decides."""

import pytest
import torch

from mgpt.errors import ConfigError
from mgpt.infer.noise import draw_keys, gumbel_noise
from mgpt.infer.sampling import NO_GUIDANCE, Guidance, SamplingConfig, draw, guided


def _noise(rows: int, candidates: int) -> torch.Tensor:
    keys_N2 = draw_keys(0, [str(row) for row in range(rows)], "cpu")
    return gumbel_noise(keys_N2, torch.zeros(rows, dtype=torch.int64), 0, candidates)


def test_the_defaults_are_the_published_ones() -> None:
    cfg = SamplingConfig()
    assert (cfg.temperature, cfg.image_top_k, cfg.text_top_k) == (1.0, 2000, 5)
    assert (cfg.guidance.scale, cfg.guidance.form) == (4.0, "code")


def test_both_forms_of_guidance_are_one_scale_apart():
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    paper = conditional + 3.0 * (conditional - unconditional)
    as_code = Guidance(4.0, "code").code_scale
    as_paper = Guidance(3.0, "paper").code_scale
    assert as_code == as_paper
    torch.testing.assert_close(guided(conditional, unconditional, as_code), paper)
    assert torch.equal(guided(conditional, unconditional, NO_GUIDANCE.code_scale), conditional)
    assert Guidance(0.0, "paper").code_scale == NO_GUIDANCE.code_scale


def test_top_k_keeps_ties_of_the_kth():
    logits_NV = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]]).expand(400, 5)
    noise_NV = _noise(400, 5)
    assert set(draw(logits_NV, 2, 1.0, noise_NV).tolist()) == {0, 2, 3}
    assert set(draw(logits_NV, 1, 1.0, noise_NV).tolist()) == {0}
    assert set(draw(logits_NV, 9, 1.0, noise_NV).tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_distribution(temperature: float):
    logits = torch.tensor([1.0, -1.0, 0.3, 2.0])
    number = 20_000
    drawn = draw(logits.expand(number, 4), 4, temperature, _noise(number, 4))
    shares = torch.bincount(drawn, minlength=4) / number
    # Four standard errors of the share that has the largest one.
    most = 4 * 0.5 / number**0.5
    torch.testing.assert_close(shares, (logits / temperature).softmax(-1), rtol=0, atol=most)


def test_impossible_candidates_are_never_drawn():
    logits_NV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(300, 5)
    assert set(draw(logits_NV, 5, 1.0, _noise(300, 5)).tolist()) == {1, 3}


def test_every_mistake_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        SamplingConfig(temperature=0.0, image_top_k=0, modality="picture")  # type: ignore[arg-type]
    for part in ("temperature=0.0", "image_top_k=0", "modality='picture'"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match=r"guidance\.form=.book"):
        Guidance(form="book")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"guidance\.scale=nan"):
        Guidance(scale=float("nan"))
