"""The layouts of qk-norm: one (weight, bias) a shard, a group of heads, or a head.

Meta stores [head_dim] in each of its shards, Lumina [groups, head_dim], transformers [heads,
head_dim] for queries and [kv_heads, head_dim] for keys, each group's row repeated. They are told
apart by shape. Rows by head become groups again only where all rows of a group are equal, in every
layer; whether they do is read from the tensors, which are small.

    >>> find_layout(norms, heads=64, kv_heads=8, hint=4, where="chameleon-34b")
    QkLayout(qk_norm='group', groups=4)

Shape suffixes: R stored rows, H heads, K head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mgpt.errors import CheckpointError
from mgpt.models.tensor_files import LazyTensor

__all__ = ["QkLayout", "by_group", "by_head", "find_layout", "is_qk_norm", "permute_rotary"]

_KINDS = (".q_norm.weight", ".q_norm.bias", ".k_norm.weight", ".k_norm.bias")


@dataclass(frozen=True)
class QkLayout:
    """How a model keeps its qk-norm, under the names of `TransformerConfig`."""

    qk_norm: Literal["group", "head", "none"]
    groups: int = 1


def is_qk_norm(name: str) -> bool:
    """Whether a tensor of this name, ours or transformers', belongs to qk-norm."""
    return name.endswith(_KINDS)


def find_layout(
    norms: Mapping[str, LazyTensor],
    heads: int,
    kv_heads: int,
    hint: int,
    where: object,
    stated: QkLayout | None = None,
) -> QkLayout:
    """The layout of all qk-norm tensors of a model.

    Args:
        norms: every tensor whose name `is_qk_norm`.
        hint: groups that the configuration names; taken where the rows agree, since rows that are
            all equal fit any number.
        stated: what our own export says it was made from; taken where the rows agree.

    Raises:
        CheckpointError: a number of rows that is neither the heads' nor a group's.
    """
    if not norms:
        return QkLayout("none")
    q_rows = {_num_rows(t) for name, t in norms.items() if ".q_norm." in name}
    k_rows = {_num_rows(t) for name, t in norms.items() if ".k_norm." in name}
    if q_rows == {heads} and k_rows == {kv_heads}:
        return _collapsed(norms, heads, kv_heads, hint, stated)
    if q_rows == k_rows and len(q_rows) == 1:
        groups = q_rows.pop()
        if kv_heads % groups == 0:
            return QkLayout("group", groups)
    raise CheckpointError(
        f"{where}: qk-norm has {sorted(q_rows)} rows for queries and {sorted(k_rows)} for keys; it "
        f"must be by head ({heads} and {kv_heads}), or one number of groups that divides {kv_heads}"
    )


def by_group(norm: LazyTensor, layout: QkLayout) -> LazyTensor:
    """A stored norm in the layout: one row of each group of equal ones."""
    rows, head_dim = _num_rows(norm), norm.shape[-1]
    wanted = rows if layout.qk_norm == "head" else layout.groups

    def first_rows(stored: Tensor) -> Tensor:
        return stored.reshape(rows, head_dim)[:: rows // wanted]

    return norm.then(first_rows, shape=(wanted, head_dim))


def by_head(norm: LazyTensor, heads: int) -> LazyTensor:
    """A norm of the model as transformers has it: each group's row once a head."""
    groups, head_dim = norm.shape
    return norm.then(
        lambda rows: rows.repeat_interleave(heads // groups, 0), shape=(heads, head_dim)
    )


def permute_rotary(rows: Tensor, head_dim: int) -> Tensor:
    """Rows (or the values of a norm) of each head from Meta's rotary order to the half-split one.

    Meta turns dimensions 2i and 2i + 1 of a head together, transformers and we i and i + K/2.
    Takes [H * K, D] of a projection, or [R * K] of norms. Source: `view(n, K/2, 2, D)
    .transpose(1, 2)` and `view(K/2, 2).t()` in transformers' own conversion of Chameleon.
    """
    split = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)


def _num_rows(norm: LazyTensor) -> int:
    return norm.shape[0] if len(norm.shape) > 1 else 1


def _collapsed(
    norms: Mapping[str, LazyTensor],
    heads: int,
    kv_heads: int,
    hint: int,
    stated: QkLayout | None,
) -> QkLayout:
    """The hinted number of groups, or else the smallest, whose rows are equal; by head if none."""
    fits = [groups for groups in range(1, kv_heads + 1) if kv_heads % groups == 0]
    for norm in norms.values():
        rows_HK = norm.read()
        fits = [groups for groups in fits if _equal_within(rows_HK, groups)]
    if stated is not None and (stated.qk_norm == "head" or stated.groups in fits):
        return stated
    fits = [groups for groups in fits if groups < heads]
    if not fits:
        return QkLayout("head")
    return QkLayout("group", hint if hint in fits else fits[0])


def _equal_within(rows_HK: Tensor, groups: int) -> bool:
    grouped = rows_HK.unflatten(0, (groups, -1))
    return torch.equal(grouped, grouped[:, :1].expand_as(grouped))
