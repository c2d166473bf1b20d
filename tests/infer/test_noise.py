"""Keyed Gumbel noise: stable, independent of its neighbours, and of the right distribution."""

import itertools
import math

import pytest
import torch

from mgpt.infer.noise import draw_keys, gumbel_noise
from mgpt.infer.sampling import draw

VOCABULARY, TOKENS = 8, 4


def _noise(seed: int, key: str, position: int, start: int = 0, stop: int = 16) -> torch.Tensor:
    return gumbel_noise(draw_keys(seed, [key], "cpu"), torch.tensor([position]), start, stop)[0]


def test_noise_never_changes_between_versions():
    """Pictures are reproduced from their seed by later versions too."""
    found = _noise(seed=7, key="a red cube/3", position=1500, start=4, stop=9)
    torch.testing.assert_close(
        found,
        torch.tensor([0.57441461, -0.59363931, 1.79768395, 2.33872080, 0.78687078]),
        rtol=0,
        atol=1e-6,
    )


def test_noise_depends_on_each_of_its_coordinates():
    base = _noise(0, "cat", 5)
    assert torch.equal(base, _noise(0, "cat", 5))
    for other in (_noise(1, "cat", 5), _noise(0, "dog", 5), _noise(0, "cat", 6)):
        assert not (base == other).any()
    assert len(set(base.tolist())) == 16
    # No pair of keys runs into each other's digits.
    assert not torch.equal(_noise(1, "2/x", 3), _noise(12, "x", 3))


def test_noise_of_a_token_is_the_same_in_any_batch_and_any_range():
    keys_N2 = draw_keys(3, ["a", "b", "c"], "cpu")
    positions_N = torch.tensor([9, 2000, 0])
    noise_NV = gumbel_noise(keys_N2, positions_N, 100, 200)
    for row, (key, position) in enumerate(zip("abc", positions_N.tolist(), strict=True)):
        assert torch.equal(noise_NV[row, 50:60], _noise(3, key, position, 150, 160))


def test_compiled_noise_has_the_same_bits():
    keys_N2, positions_N = draw_keys(3, ["a", "b"], "cpu"), torch.tensor([9, 70])
    compiled = torch.compile(gumbel_noise, backend="aot_eager", fullgraph=True)
    eager = gumbel_noise(keys_N2, positions_N, 8, 1000)
    assert torch.equal(compiled(keys_N2, positions_N, 8, 1000), eager)


def test_moments_are_those_of_the_gumbel_distribution():
    keys_N2 = draw_keys(0, [str(row) for row in range(100)], "cpu")
    noise_NV = gumbel_noise(keys_N2, torch.arange(100), 0, 2000).double()
    assert noise_NV.isfinite().all()
    euler = 0.5772156649
    # Four standard errors; neighbours in either direction are uncorrelated.
    assert noise_NV.mean().item() == pytest.approx(euler, abs=4 * 1.2825 / 200_000**0.5)
    assert noise_NV.var().item() == pytest.approx(math.pi**2 / 6, abs=0.04)
    centred = noise_NV - euler
    for one, other in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((one * other).mean().item()) < 4 * 1.645 / 200_000**0.5


@pytest.mark.parametrize("seed", range(20))
def test_sequences_follow_their_distribution_by_full_enumeration(seed: int):
    """All 8^4 sequences of a random Markov chain, 50,000 draws a seed: chi-squared."""
    draws = 50_000
    generator = torch.Generator().manual_seed(seed)
    logits_PV = torch.randn(VOCABULARY + 1, VOCABULARY, generator=generator)
    keys_N2 = draw_keys(seed, [f"{index}" for index in range(draws)], "cpu")
    last_N = torch.full((draws,), VOCABULARY)
    number_N = torch.zeros(draws, dtype=torch.int64)
    for position in range(TOKENS):
        noise_NV = gumbel_noise(keys_N2, torch.full((draws,), position), 0, VOCABULARY)
        last_N = draw(logits_PV[last_N], VOCABULARY, 1.0, noise_NV)
        number_N = number_N * VOCABULARY + last_N
    probabilities_PV = logits_PV.double().softmax(-1)
    expected = []
    for sequence in itertools.product(range(VOCABULARY), repeat=TOKENS):
        steps = zip((VOCABULARY, *sequence), sequence, strict=False)
        expected.append(draws * math.prod(float(probabilities_PV[a, b]) for a, b in steps))
    expected_S = torch.tensor(expected, dtype=torch.float64)
    counted_S = torch.bincount(number_N, minlength=VOCABULARY**TOKENS).double()
    # Rare sequences count together, so that the statistic is chi-squared.
    rare = expected_S < 5
    observed = torch.cat([counted_S[~rare], counted_S[rare].sum()[None]])
    wanted = torch.cat([expected_S[~rare], expected_S[rare].sum()[None]])
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    # Wilson and Hilferty's normal approximation; 4 standard deviations over 20 seeds.
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (
        2 / (9 * freedom)
    ) ** 0.5
    assert abs(normal) < 4
