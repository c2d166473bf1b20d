"""Causal attention that never crosses a document's border, and the norm of queries and keys.

A packed row holds several documents; `positions == 0` starts each. `Documents` reads these borders
once a batch and serves every layer. It knows nothing of ids, images or training: only positions.

On a CPU the tokens of the batch are laid out document after document, sorted by length, before the
first layer; everything but attention works token by token, so no layer copies anything to regroup
them, and all documents of one length are one batched call. On a GPU the rows stay as they are and
FlexAttention gets a block mask. Both give each document the logits it has alone.

    >>> positions_BT = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    >>> documents = Documents.from_positions(positions_BT)
    >>> documents.runs  # two documents of two tokens, two of three
    ((2, 2), (2, 3))
    >>> documents.gather(positions_BT)
    tensor([[0, 1, 0, 1, 0, 1, 2, 0, 1, 2]])

Shape suffixes: B rows, T positions in a row, N tokens of a batch, H query heads, J key-value heads,
K head size, D hidden.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.models.cpu_attention import attend_by_products, suits

__all__ = ["Documents", "HeadNorm", "attend_causal"]

# Positions in a block of FlexAttention's mask.
_MASK_BLOCK = 128


class HeadNorm(nn.Module):
    """LayerNorm over the head size, one (weight, bias) a group of heads (FACTS: qk-norm).

    Normalises, multiplies, adds, each rounded to the activations' type, as Chameleon does. The
    heads are split into `groups` equal consecutive parts, Meta's model-parallel shards; `groups`
    equal to the number of heads is the layout of transformers 5.
    """

    def __init__(self, groups: int, head_dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(groups, head_dim))
        self.bias = nn.Parameter(torch.zeros(groups, head_dim))

    def forward(self, x_BTHK: Tensor) -> Tensor:
        """Returns a tensor of the shape and type of `x_BTHK`."""
        groups, head_dim = self.weight.shape
        if groups == 1 and x_BTHK.dtype == torch.float32:
            # One pass instead of three; in fp32 it differs by the rounding of one fused operation.
            return F.layer_norm(x_BTHK, (head_dim,), self.weight[0], self.bias[0], self.eps)
        normed = F.layer_norm(x_BTHK, (head_dim,), eps=self.eps)
        if groups == 1:
            return normed * self.weight[0] + self.bias[0]
        grouped = normed.unflatten(-2, (groups, -1))
        return (grouped * self.weight[:, None] + self.bias[:, None]).flatten(-3, -2)


def attend_causal(q_BTHK: Tensor, k_BTJK: Tensor, v_BTJK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the same and earlier positions; returns [B, T, H, K]."""
    heads = q_BTHK.shape[2]
    if suits(q_BTHK):
        return attend_by_products(q_BTHK, k_BTJK, v_BTJK)
    out_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BTJK.transpose(1, 2),
        v_BTJK.transpose(1, 2),
        is_causal=True,
        enable_gqa=heads != k_BTJK.shape[2],
    )
    return out_BHTK.transpose(1, 2)


@dataclass(frozen=True)
class Documents:
    """The documents of one batch, for all layers; made by `from_positions`.

    Attributes:
        order_N: flat indices b * T + t of the tokens in computing order; None where rows stay.
        runs: (documents, length) of consecutive documents of equal length in that order.
        block_mask: FlexAttention's mask where rows stay.
    """

    order_N: Tensor | None
    runs: tuple[tuple[int, int], ...] = ()
    block_mask: Any = None

    @classmethod
    def from_positions(cls, positions_BT: Tensor, needed_BT: Tensor | None = None) -> Documents:
        """Reads the borders from positions [B, T]; every row starts a document.

        `needed_BT` (bool) lets a CPU leave out documents without a needed token, such as padding;
        one document always stays, so that an empty batch still reaches every parameter.
        """
        if positions_BT.device.type == "cuda":
            return cls(order_N=None, block_mask=_block_mask(positions_BT))
        starts_C = (positions_BT.flatten() == 0).nonzero().flatten()
        ends_C = torch.cat([starts_C[1:], starts_C.new_tensor([positions_BT.numel()])])
        assert bool((positions_BT[:, 0] == 0).all()), "every row starts with position 0"
        if needed_BT is not None:
            before = F.pad(needed_BT.flatten().cumsum(0), (1, 0))
            keep_C = before[ends_C] > before[starts_C]
            keep_C[0] |= ~keep_C.any()
            starts_C, ends_C = starts_C[keep_C], ends_C[keep_C]
        lengths_C, by_length = (ends_C - starts_C).sort(stable=True)
        first_C = lengths_C.cumsum(0) - lengths_C
        shift_N = (starts_C[by_length] - first_C).repeat_interleave(lengths_C)
        order_N = shift_N + torch.arange(len(shift_N), device=shift_N.device)
        sizes, counts = lengths_C.unique_consecutive(return_counts=True)
        return cls(order_N, tuple(zip(counts.tolist(), sizes.tolist(), strict=True)))

    def gather(self, t_BT: Tensor) -> Tensor:
        """Ids, positions or labels in computing order: [1, N], or unchanged where rows stay."""
        return t_BT if self.order_N is None else t_BT.flatten()[self.order_N][None]

    def scatter(self, x: Tensor, shape_BT: tuple[int, int]) -> Tensor:
        """Undoes `gather` for a result [1, N, ...]: [B, T, ...], 0 where nothing was computed."""
        if self.order_N is None:
            return x
        rows, length = shape_BT
        restored = x.new_zeros(rows * length, *x.shape[2:]).index_copy(0, self.order_N, x[0])
        return restored.unflatten(0, (rows, length))

    def attend(self, q_BTHK: Tensor, k_BTJK: Tensor, v_BTJK: Tensor) -> Tensor:
        """Causal attention inside each document, for tensors in computing order."""
        if self.order_N is None:
            return _attend_masked(q_BTHK, k_BTJK, v_BTJK, self.block_mask)
        sizes = [count * length for count, length in self.runs]
        parts = zip(self.runs, *(t[0].split(sizes) for t in (q_BTHK, k_BTJK, v_BTJK)), strict=True)
        outs = [
            attend_causal(*(t.unflatten(0, run) for t in (q, k, v))).flatten(0, 1)
            for run, q, k, v in parts
        ]
        return torch.cat(outs)[None]


def _block_mask(positions_BT: Tensor) -> Any:
    """FlexAttention's mask, from the documents at both ends of each block of positions.

    Asking the mask of every pair of positions, as the library does by itself, would take a
    [T, T] tensor each batch.
    """
    from torch.nn.attention.flex_attention import BlockMask

    document_BT = (positions_BT == 0).cumsum(1)
    length = positions_BT.shape[1]
    num_blocks = -(-length // _MASK_BLOCK)
    starts_S = torch.arange(num_blocks, device=positions_BT.device) * _MASK_BLOCK
    first_BS = document_BT[:, starts_S]
    last_BS = document_BT[:, (starts_S + _MASK_BLOCK - 1).clamp(max=length - 1)]
    # [B, 1, blocks of queries, blocks of keys]: documents only grow along a row.
    earlier = starts_S[:, None] > starts_S
    meets = (earlier | (starts_S[:, None] == starts_S)) & (
        last_BS[:, None, None, :] >= first_BS[:, None, :, None]
    )
    whole = earlier & (starts_S[:, None] + _MASK_BLOCK <= length)
    is_full = whole & (first_BS[:, None, None, :] == last_BS[:, None, :, None])

    def same_document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document_BT[b, q] == document_BT[b, k])

    return BlockMask.from_kv_blocks(
        *_ordered(meets & ~is_full),
        *_ordered(is_full),
        BLOCK_SIZE=_MASK_BLOCK,
        mask_mod=same_document,
        seq_lengths=(length, length),
    )


def _ordered(chosen_B1SS: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first."""
    counts = chosen_B1SS.sum(-1, dtype=torch.int32)
    order = chosen_B1SS.int().argsort(dim=-1, descending=True, stable=True)
    return counts, order.int()


@functools.cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _attend_masked(q_BTHK: Tensor, k_BTJK: Tensor, v_BTJK: Tensor, block_mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # Inside a compiled block it is compiled with it; on a CPU it is for tests alone.
    alone = q_BTHK.is_cuda and not torch.compiler.is_compiling()
    out_BHTK = (_compiled_flex_attention() if alone else flex_attention)(
        q_BTHK.transpose(1, 2),
        k_BTJK.transpose(1, 2),
        v_BTJK.transpose(1, 2),
        block_mask=block_mask,
        enable_gqa=q_BTHK.shape[2] != k_BTJK.shape[2],
    )
    return out_BHTK.transpose(1, 2)
