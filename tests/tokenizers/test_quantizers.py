"""The rules of quantizers alone: which code, which vector, and sizes that fit each other."""

from dataclasses import replace

import pytest
import torch

from mgpt.errors import ConfigError
from mgpt.tokenizers.quantizers import (
    CosineCodebook,
    FiniteScalars,
    NearestCodebook,
    ProductCodebook,
    Signs,
)
from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tokenizers.vqgan_config import VqganConfig

SMALL = VqganConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, num_groups=4)


def test_three_codebooks_differ_in_what_is_nearest() -> None:
    """Of one latent, the nearest row, the row of its direction and the longest along it differ."""
    rows_ND = torch.tensor([[0.9, 0.4], [0.2, 0.0], [5.0, 4.0]])
    found = []
    for kind in (NearestCodebook, CosineCodebook, ProductCodebook):
        codebook = kind(3, 2)
        codebook.embedding.weight.data = rows_ND
        found.append(int(codebook(torch.tensor([1.0, 0.1])[None, :, None, None])))
    assert found == [0, 1, 2]


def test_the_first_of_equal_rows_is_the_code() -> None:
    for kind in (NearestCodebook, CosineCodebook, ProductCodebook):
        codebook = kind(4, 2)
        codebook.embedding.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1, 0]])
        assert int(codebook(torch.tensor([1.0, 0.0])[None, :, None, None])) == 1


def test_a_large_codebook_is_compared_in_parts() -> None:
    """The codes of many positions do not depend on how many are compared at once."""
    torch.manual_seed(0)
    codebook = NearestCodebook(100_000, 4)
    torch.nn.init.normal_(codebook.embedding.weight)
    z_BDhw = torch.randn(1, 4, 40, 40)
    codes = codebook(z_BDhw).flatten()
    alone = [codebook(z_BDhw[..., i : i + 1, j : j + 1]) for i, j in ((0, 0), (16, 31), (39, 39))]
    assert [int(code) for code in alone] == codes[[0, 16 * 40 + 31, 1599]].tolist()


def test_finite_scalars_give_every_code_back() -> None:
    quantizer = FiniteScalars((8, 8, 8, 5, 5, 5))
    codes_1hw = torch.arange(64_000).view(1, 250, 256)
    rows_BDhw = quantizer.rows(codes_1hw)
    assert rows_BDhw[:, :3].unique().tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    assert rows_BDhw[:, 3:].unique().tolist() == [-1, -0.5, 0, 0.5, 1]
    # A latent whose bounded value is each level: the inverse of `bound`.
    levels = torch.tensor([8, 8, 8, 5, 5, 5])[:, None, None]
    half, offset = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
    bounded = rows_BDhw * (levels // 2)
    z_BDhw = ((bounded + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(quantizer(z_BDhw), codes_1hw)


def test_signs_count_from_the_first_channel_and_zero_is_off() -> None:
    quantizer = Signs(4)
    z_BDhw = torch.tensor([0.1, 0.0, -1.0, 2.0])[None, :, None, None]
    assert int(quantizer(z_BDhw)) == 1 + 8
    assert quantizer.rows(torch.tensor([[[9]]])).flatten().tolist() == [1, -1, -1, 1]


@pytest.mark.parametrize(
    ("quantizer", "n_embed", "found", "width"),
    [
        ("vq", 1024, 1024, 256),
        ("ibq", 1024, 1024, 256),
        ("fsq", 1024, 1000, 4),
        ("fsq", 512, 512, 3),
        ("lfq", 1024, 1024, 10),
        ("lfq", 1000, 512, 9),
    ],
)
def test_another_quantizer_of_about_as_many_codes(
    quantizer: str, n_embed: int, found: int, width: int
) -> None:
    cfg = replace(SMALL, n_embed=n_embed).with_quantizer(quantizer)
    assert (cfg.n_embed, cfg.embed_dim) == (found, width)
    model = Vqgan(cfg).eval()
    codes_1hw = model.encode(torch.rand(1, 3, 8, 8) * 2 - 1)
    assert int(codes_1hw.max()) < model.num_codes == found
    assert model.decode(codes_1hw).shape == (1, 3, 8, 8)
    assert VqganConfig(**cfg.record()) == cfg


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantizer": "rvq"}, "quantizer='rvq' is none of vq, ibq, fsq, lfq"),
        ({"quantizer": "fsq"}, "needs levels of 2 or more"),
        ({"quantizer": "fsq", "levels": (8, 5)}, "give 40 codes of 2 channels; n_embed=8192"),
        ({"levels": (8, 5)}, "belong to quantizer=fsq alone"),
        ({"quantizer": "lfq"}, "2\\^embed_dim codes: n_embed=8192 and embed_dim=256"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        VqganConfig(**settings)
