"""Rotary position embedding: by position in the document and, optionally, by line and column.

A plain rotary embedding turns every pair of a head's dimensions by the token's position in its
document. With `axial_rope_dims` part of each head turns by the line and the column of a code in its
picture instead, so that the same place in another picture of the document and the code above are
always at the same distance, whatever text stands between. Text has line and column 0. Both are read
from the ids, so that rows, caches and backends carry nothing extra.

    >>> cfg = replace(cfg, axial_rope_dims=16, begin_image_id=4, end_line_id=5, end_image_id=3)
    >>> rotary = rotary_angles(cfg, ids_BT, positions_BT, torch.float32)
    >>> q_BTHK = rotate(q_BTHK, rotary)

Sources: RoPE (arXiv 2104.09864); axes of their own for pictures as in M-RoPE (arXiv 2409.12191).

Shape suffixes: B rows, T positions in a row, H heads, K head size, P pairs of dimensions.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mgpt.models.transformer_config import TransformerConfig

__all__ = ["angles_at", "picture_places", "rotary_angles", "rotate"]


def rotary_angles(
    cfg: TransformerConfig, ids_BT: Tensor, positions_BT: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, T, 1, K / 2] of the angle of each pair of dimensions, cast to `dtype`.

    In the half-split layout of transformers' Chameleon, where dimension i turns with dimension
    i + K/2. The angle is position x theta^(-i/P) for the P pairs that turn by position. Pairs of an
    axis start at half a turn a line, since neighbours differ most: line x pi x theta^(-i/P).
    Computed in float32.
    """
    axes = picture_places(cfg, ids_BT, positions_BT) if cfg.axial_rope_dims else ()
    return angles_at(cfg, positions_BT, axes, dtype)


def angles_at(
    cfg: TransformerConfig, positions_BT: Tensor, axes: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`rotary_angles` of known places: `axes` are line and column [B, T], empty without them."""
    axis_pairs = cfg.axial_rope_dims // 2
    pairs = cfg.head_dim // 2 - 2 * axis_pairs
    angles = positions_BT.float()[..., None, None] * _frequencies(cfg, pairs, positions_BT.device)
    if axis_pairs:
        frequencies_P = math.pi * _frequencies(cfg, axis_pairs, positions_BT.device)
        turned = [axis_BT.float()[..., None, None] * frequencies_P for axis_BT in axes]
        angles = torch.cat([angles, *turned], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _frequencies(cfg: TransformerConfig, pairs: int, device: torch.device) -> Tensor:
    exponent_P = torch.arange(0, 2 * pairs, 2, device=device).float() / (2 * pairs)
    return 1.0 / cfg.rope_theta**exponent_P


def picture_places(
    cfg: TransformerConfig, ids_BT: Tensor, positions_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Line and column [B, T] of each token in its picture, from 1; both 0 outside of pictures.

    The end-of-line token is the last column of its line. Begin-of-image, the two size tokens and
    end-of-image stand outside. Depends on earlier tokens of the same document alone.

    Args:
        positions_BT: position in the document; 0 starts a document.
    """
    begin_id, line_id, end_id = cfg.begin_image_id, cfg.end_line_id, cfg.end_image_id
    assert begin_id is not None and line_id is not None and end_id is not None, (
        "the configuration lacks the ids of its vocabulary"
    )
    index_BT = torch.arange(ids_BT.shape[-1], device=ids_BT.device).expand_as(ids_BT)
    ends_line_BT = ids_BT == line_id
    document_BT = _latest(positions_BT == 0, index_BT)
    begin_BT = _latest(ids_BT == begin_id, index_BT)
    end_BT = _latest(ids_BT == end_id, index_BT)
    first_code_BT = begin_BT + 3  # after begin-of-image and two size tokens
    inside_BT = (begin_BT >= document_BT) & (begin_BT > end_BT) & (index_BT >= first_code_BT)
    lines_before_BT = ends_line_BT.cumsum(-1) - ends_line_BT.long()
    line_BT = lines_before_BT - lines_before_BT.gather(-1, begin_BT.clamp(min=0)) + 1
    # The line starts after the end-of-line token before this one, or after the size tokens.
    line_end_BT = _latest(ends_line_BT, index_BT).roll(1, -1)
    line_end_BT[..., 0] = -1
    column_BT = index_BT - torch.maximum(line_end_BT, first_code_BT - 1)
    return line_BT * inside_BT, column_BT * inside_BT


def _latest(marked_BT: Tensor, index_BT: Tensor) -> Tensor:
    """Index of the last marked token up to each one; -1 before the first."""
    return torch.where(marked_BT, index_BT, -1).cummax(-1).values


class _Rotate(torch.autograd.Function):
    """A rotation keeps no activations: its backward is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BTHK, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad_BTHK, cos, -sin), None, None


def _turn(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_BTHK.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # it fuses this, and does not take results in parts
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    out = torch.empty_like(x_BTHK, memory_format=torch.contiguous_format)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out


def rotate(x_BTHK: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """`x_BTHK` turned by its positions' angles; `rotary` comes from `rotary_angles`."""
    return _Rotate.apply(x_BTHK, *rotary)
