"""Causal attention in bf16 and fp16 on a CPU: matrix products in place of the fused kernel.

Forward and backward of PyTorch's fused kernel take 1.5 to 1.7 times as long in bf16 (torch 2.13,
one core with AVX512-BF16, 512 and 1,024 positions). Other devices and types use the fused kernel.

    >>> if suits(q_BTHK):
    ...     out_BTHK = attend_by_products(q_BTHK, k_BTJK, v_BTJK)

Shape suffixes: B documents, T positions, H query heads, J key-value heads, K head size, M heads of
all documents, Q queries of a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["attend_by_products", "suits"]

_TYPES = (torch.bfloat16, torch.float16)
# Queries at a time: the fewer, the less is computed of what the mask hides.
_QUERY_BLOCK = 256
# Scores of one call above which they are computed twice and not kept.
_MAX_KEPT_SCORES = 1 << 25


def suits(tensor: Tensor) -> bool:
    """Whether attention over this tensor is faster by products: bf16 or fp16 on a CPU."""
    return tensor.device.type == "cpu" and tensor.dtype in _TYPES


def attend_by_products(q_BTHK: Tensor, k_BTJK: Tensor, v_BTJK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the same and earlier positions; returns [B, T, H, K]."""
    batch, length, heads, head_dim = q_BTHK.shape
    share = heads // k_BTJK.shape[2]
    if share > 1:
        k_BTJK, v_BTJK = k_BTJK.repeat_interleave(share, 2), v_BTJK.repeat_interleave(share, 2)
    q_MTK, k_MTK, v_MTK = (
        t.transpose(1, 2).reshape(-1, length, head_dim) for t in (q_BTHK, k_BTJK, v_BTJK)
    )
    out_MTK = _Products.apply(q_MTK, k_MTK, v_MTK)
    return out_MTK.view(batch, heads, length, head_dim).transpose(1, 2)


class _Products(torch.autograd.Function):
    """Causal attention of M heads, by blocks of queries; keys after a block are skipped.

    Probabilities are kept for the backward pass while they are few, and recomputed otherwise.
    """

    @staticmethod
    def forward(ctx: Any, q_MTK: Tensor, k_MTK: Tensor, v_MTK: Tensor) -> Tensor:
        out_MTK = torch.empty_like(q_MTK)
        kept = []
        for part, before in _query_blocks(q_MTK.shape[1]):
            probs_MQT = _probabilities(q_MTK[:, part], k_MTK[:, before])
            out_MTK[:, part] = probs_MQT @ v_MTK[:, before]
            kept.append(probs_MQT)
            if q_MTK.shape[0] * q_MTK.shape[1] ** 2 > _MAX_KEPT_SCORES:
                kept.clear()
        ctx.save_for_backward(q_MTK, k_MTK, v_MTK, *kept)
        return out_MTK

    @staticmethod
    def backward(ctx: Any, grad_MTK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_MTK, k_MTK, v_MTK, *kept = ctx.saved_tensors
        scale = 1.0 / math.sqrt(q_MTK.shape[-1])
        grad_q = torch.empty_like(q_MTK)
        grad_k, grad_v = (torch.zeros_like(t, dtype=torch.float32) for t in (k_MTK, v_MTK))
        for index, (part, before) in enumerate(_query_blocks(q_MTK.shape[1])):
            q, k, v, grad = q_MTK[:, part], k_MTK[:, before], v_MTK[:, before], grad_MTK[:, part]
            probs_MQT = kept[index] if kept else _probabilities(q, k)
            grad_v[:, before] += probs_MQT.transpose(1, 2) @ grad
            grad_probs = grad @ v.transpose(1, 2)
            scores = torch._softmax_backward_data(grad_probs, probs_MQT, -1, q.dtype)
            grad_q[:, part] = (scores @ k).mul_(scale)
            grad_k[:, before] += scores.transpose(1, 2) @ q
        return grad_q, grad_k.mul_(scale).to(k_MTK.dtype), grad_v.to(v_MTK.dtype)


def _query_blocks(length: int) -> list[tuple[slice, slice]]:
    """Blocks of queries with the keys that any of them sees."""
    starts = range(0, length, _QUERY_BLOCK)
    return [
        (slice(start, start + _QUERY_BLOCK), slice(0, min(start + _QUERY_BLOCK, length)))
        for start in starts
    ]


def _probabilities(q_MQK: Tensor, k_MTK: Tensor) -> Tensor:
    """Of the last Q positions among all T, each over itself and those before it."""
    queries, keys = q_MQK.shape[1], k_MTK.shape[1]
    later_QT = q_MQK.new_full((queries, keys), -torch.inf).triu_(keys - queries + 1)
    scale = 1.0 / math.sqrt(q_MQK.shape[-1])
    return torch.baddbmm(later_QT, q_MQK, k_MTK.transpose(1, 2), alpha=scale).softmax(-1)
