"""Borders read from positions, both ways of attending inside them, and the norm of the heads."""

import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from mgpt.models.attention import (
    Documents,
    HeadNorm,
    _block_mask,
)
from mgpt.models.rotary import rotary_angles, rotate
from mgpt.models.sizes import SIZES

POSITIONS_BT = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]])


def _qkv(heads: int, kv_heads: int, shape_BT: tuple[int, int], dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(*shape_BT, count, 16, dtype=dtype, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    )


def test_documents_are_grouped_by_length_and_put_back():
    documents = Documents.from_positions(POSITIONS_BT)
    assert documents.runs == ((1, 1), (2, 2), (1, 3), (1, 4))
    assert documents.gather(POSITIONS_BT).tolist() == [[0, 0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 3]]
    marks_BT = torch.arange(12).view(2, 6)
    assert torch.equal(documents.scatter(documents.gather(marks_BT), (2, 6)), marks_BT)


def test_documents_without_a_needed_token_are_left_out():
    needed_BT = torch.zeros(2, 6, dtype=torch.bool)
    needed_BT[0, 4] = needed_BT[1, 0] = True
    documents = Documents.from_positions(POSITIONS_BT, needed_BT)
    assert documents.runs == ((1, 2), (1, 4))
    ones = torch.ones(1, 6, 3)
    assert documents.scatter(ones, (2, 6))[..., 0].tolist() == [
        [0, 0, 0, 1, 1, 0],
        [1] * 4 + [0] * 2,
    ]
    nothing = Documents.from_positions(POSITIONS_BT, torch.zeros(2, 6, dtype=torch.bool))
    assert nothing.runs == ((1, 3),)


def test_a_row_that_does_not_start_a_document_is_refused():
    with pytest.raises(AssertionError, match="position 0"):
        Documents.from_positions(torch.tensor([[0, 1], [2, 3]]))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_grouped_and_masked_attention_agree(kv_heads: int):
    # The masked form is what a GPU runs; here FlexAttention runs it uncompiled.
    q, k, v = _qkv(4, kv_heads, (2, 6), torch.float32)
    masked = Documents(order_N=None, block_mask=_block_mask(POSITIONS_BT))
    grouped = Documents.from_positions(POSITIONS_BT)
    gathered = (t.flatten(0, 1)[grouped.order_N][None] for t in (q, k, v))
    expected = grouped.scatter(grouped.attend(*gathered), (2, 6))
    torch.testing.assert_close(masked.attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


def _positions(rows: int, length: int) -> torch.Tensor:
    drawn = random.Random(length)
    rows_of_positions = []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < length:
            row += range(min(drawn.randint(1, 400), length - len(row)))
        rows_of_positions.append(row)
    return torch.tensor(rows_of_positions)


@pytest.mark.parametrize("length", [300, 512, 1000])
def test_the_block_mask_is_the_one_that_the_library_finds_by_asking_every_pair(length: int):
    positions_BT = _positions(3, length)
    document_BT = (positions_BT == 0).cumsum(1)

    def same_document(b, h, q, k):
        return (q >= k) & (document_BT[b, q] == document_BT[b, k])

    expected = create_block_mask(same_document, 3, None, length, length, "cpu")
    mask = _block_mask(positions_BT)
    assert torch.equal(mask.to_dense(), expected.to_dense())
    for part in ("kv", "full_kv", "q", "full_q"):
        counts = getattr(expected, f"{part}_num_blocks")
        assert torch.equal(getattr(mask, f"{part}_num_blocks"), counts)
        named = torch.arange(counts.shape[-1]) < counts[..., None]
        ours, theirs = (getattr(one, f"{part}_indices") for one in (mask, expected))
        assert torch.equal(ours * named, theirs * named)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_new_batch_compiles_nothing_anew_and_breaks_no_graph():
    torch._dynamo.reset()
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph.forward

    def layer(x_BTHK, rotary, documents):
        return documents.attend(*(rotate(x_BTHK, rotary) for _ in range(3)))

    compiled = torch.compile(layer, backend=count, fullgraph=True)
    for drawn in range(3):
        positions_BT = _positions(2, 256).roll(drawn, 0)
        x_BTHK = torch.randn(2, 256, 2, 16)
        rotary = rotary_angles(SIZES["debug"], positions_BT, positions_BT, torch.float32)
        documents = Documents(order_N=None, block_mask=_block_mask(positions_BT))
        with torch.no_grad():
            out = compiled(x_BTHK, rotary, documents)
            torch.testing.assert_close(out, layer(x_BTHK, rotary, documents))
    assert graphs == 1


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_head_norm_gives_each_group_its_own_weight_and_bias(groups: int):
    norm = HeadNorm(groups, 8, 1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, groups + 1)[:, None].expand(groups, 8))
        norm.bias.copy_(10 * torch.arange(groups)[:, None].expand(groups, 8))
    out_BTHK = norm(torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0)))
    group_H = torch.arange(4) // (4 // groups)
    torch.testing.assert_close(out_BTHK.mean(-1), (10.0 * group_H).expand(2, 3, 4))
    spread = out_BTHK.std(-1, unbiased=False)
    torch.testing.assert_close(spread, (1.0 + group_H).expand(2, 3, 4), rtol=1e-3, atol=0)
