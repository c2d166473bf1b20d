"""Decoding through the cache gives the hidden states of the whole sequence."""

from dataclasses import replace

import pytest
import torch

from mgpt.models.kv_cache import KvCache
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer

# Ids of begin-of-image, end-of-line and end-of-image; those of the tests are drawn below 6.
AXIAL = {"axial_rope_dims": 4, "begin_image_id": 0, "end_line_id": 1, "end_image_id": 2}
LAYOUTS = [{}, {"norm_placement": "post", "qk_norm_groups": 2}, {"kv_heads": 4}, AXIAL]


def _model(layout: dict) -> Transformer:
    model = Transformer(replace(SIZES["debug"], vocab_size=50, **layout))
    model.init_weights(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=_generator(4)))
    return model.double().eval()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_prompts_of_different_lengths_decode_as_alone(layout: dict):
    model = _model(layout)
    ids = [torch.randint(6, (n,), generator=_generator(n)) for n in (9, 11, 6)]
    prompts_B = torch.tensor([4, 6, 1])  # five tokens before the end of each
    whole = [model(one[None], torch.arange(len(one))[None])[0] for one in ids]
    cache = KvCache(model.cfg, 3, torch.float64, "cpu", capacity=11)
    padded_BT = torch.zeros(3, 6, dtype=torch.long)
    for row, one in enumerate(ids):
        padded_BT[row, : prompts_B[row]] = one[: prompts_B[row]]
    hidden_BTD = model(padded_BT, torch.arange(6).expand(3, 6), cache=cache)
    for row, length in enumerate(prompts_B.tolist()):
        torch.testing.assert_close(hidden_BTD[row, :length], whole[row][:length])
    for lengths_B in prompts_B + torch.arange(5)[:, None]:
        next_B1 = torch.stack([one[n : n + 1] for one, n in zip(ids, lengths_B, strict=True)])
        hidden_BTD = model(next_B1, lengths_B[:, None], cache=cache)
        for row, length in enumerate(lengths_B.tolist()):
            torch.testing.assert_close(hidden_BTD[row, 0], whole[row][length])


@pytest.mark.parametrize("layout", [{}, AXIAL])
@torch.no_grad()
def test_several_tokens_extend_a_sequence_at_once(layout: dict):
    model = _model(layout)
    ids_BT = torch.randint(6, (2, 11), generator=_generator(0))
    whole_BTD = model(ids_BT, torch.arange(11).expand(2, 11))
    cache = KvCache(model.cfg, 2, torch.float64, "cpu")
    model(ids_BT[:, :5], torch.arange(5).expand(2, 5), cache=cache)
    hidden_BTD = model(ids_BT[:, 5:], torch.arange(5, 11).expand(2, 6), cache=cache)
    torch.testing.assert_close(hidden_BTD, whole_BTD[:, 5:])


@pytest.mark.parametrize("layout", [{}, AXIAL])
@torch.no_grad()
def test_a_row_moved_and_a_cache_grown_keep_their_sequences(layout: dict):
    model = _model(layout)
    ids_BT = torch.randint(6, (2, 8), generator=_generator(0))
    whole_BTD = model(ids_BT, torch.arange(8).expand(2, 8))
    cache = KvCache(model.cfg, 2, torch.float64, "cpu", capacity=8)
    model(ids_BT[:, :7], torch.arange(7).expand(2, 7), cache=cache)
    cache.move(1, 0)
    cache.reserve(500)
    assert cache.capacity >= 500
    hidden_BTD = model(ids_BT[1:, 7:], torch.tensor([[7]]), cache=cache.window(0, 1))
    torch.testing.assert_close(hidden_BTD[0, 0], whole_BTD[1, 7])
