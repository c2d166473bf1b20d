"""Guidance in both forms, top-k with ties, temperature, and draws that their key decides."""

import pytest
import torch

from mgpt.errors import ConfigError
from mgpt.infer.sampling import NO_GUIDANCE, Guidance, SamplingConfig, draw, guided, keyed_uniform


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
    logits_NV = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]]).expand(200, 5)
    uniform_N = [(i + 0.5) / 200 for i in range(200)]
    assert set(draw(logits_NV, 2, 1.0, uniform_N)) == {0, 2, 3}
    assert set(draw(logits_NV, 1, 1.0, uniform_N)) == {0}
    assert set(draw(logits_NV, 9, 1.0, uniform_N)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_distribution(temperature: float):
    logits = torch.tensor([1.0, -1.0, 0.3, 2.0])
    number = 4000
    uniform_N = [(i + 0.5) / number for i in range(number)]
    drawn = draw(logits.expand(number, 4), 4, temperature, uniform_N)
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / number
    torch.testing.assert_close(shares, (logits / temperature).softmax(-1), rtol=0, atol=1 / number)


def test_impossible_candidates_are_never_drawn():
    logits_NV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    assert draw(logits_NV, 5, 1.0, [0.0, 0.5, 1 - 2**-53]) == [1, 3, 3]


def test_a_uniform_depends_on_each_of_its_keys():
    base = keyed_uniform(0, "cat", 5)
    assert base == keyed_uniform(0, "cat", 5)
    others = [keyed_uniform(1, "cat", 5), keyed_uniform(0, "dog", 5), keyed_uniform(0, "cat", 6)]
    assert len({base, *others}) == 4
    # No pair of keys runs into each other's digits.
    assert keyed_uniform(1, "2/x", 3) != keyed_uniform(1, "x", 32)
    values = torch.tensor([keyed_uniform(0, "k", i) for i in range(4000)])
    assert values.min() >= 0.0 and values.max() < 1.0
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)
    assert values.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_every_mistake_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        SamplingConfig(temperature=0.0, image_top_k=0, modality="picture")  # type: ignore[arg-type]
    for part in ("temperature=0.0", "image_top_k=0", "modality='picture'"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match=r"guidance\.form=.book"):
        Guidance(form="book")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"guidance\.scale=nan"):
        Guidance(scale=float("nan"))
