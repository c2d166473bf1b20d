"""Meta's own checkpoints: `params.json` beside `consolidated.pth` or `consolidated.00.pth` and on.

The files are pickles, and this is the one reader of such files beside the VQGAN's
(`vqgan_convert`): torch's restricted unpickler, after a check of their sizes, and never on a
training path. Each shard holds a part of nearly every tensor (Meta's model-parallel ranks), so a
tensor is made by joining its parts; parts are mapped from the files for as long as that takes,
which keeps memory at one tensor however large the shards are.

Attention may be fused (`wqkv`, `w13`) or not. Queries and keys come in Meta's rotary order; their
rows, and the values of their norms, are permuted to transformers'.

    >>> plan = plan_meta(Path("chameleon/models/30b"))
    >>> plan.cfg.qk_norm_groups, plan.layout
    (4, 'Meta checkpoint, 4 shards, fused')
"""

import functools
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgpt.errors import CheckpointError, MgptError
from mgpt.models.tensor_files import LazyTensor, name_list
from mgpt.models.transformer_config import TransformerConfig
from mgpt.weights.plan import ModelPlan, check_fit, checked_values
from mgpt.weights.qk_norm import permute_rotary

__all__ = ["is_meta_folder", "plan_meta"]

PARAMS, CONSOLIDATE_PARAMS = "params.json", "consolidate_params.json"
SINGLE, SHARDS = "consolidated.pth", "consolidated.*.pth"
# The released shards have 14 GB (7B, one) and 17 GB (34B, four); in float32 they would have twice
# that. The pickle inside names tensors only, and has some 100 kB.
_MAX_FILE_BYTES = 80 << 30
_MAX_PICKLE_BYTES = 64 << 20
# Read of one file before it is mapped anew.
_MAPPED_BYTES = 64 << 20
# Released params.json do not say it (arXiv 2405.09818).
_MAX_POSITIONS = 4096

# Meta's name → ours, and how the parts of the shards become one tensor.
MODEL_NAMES: dict[str, tuple[str, str]] = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", "columns"),
    "norm.weight": ("model.norm.weight", "mean"),
    "output.weight": ("lm_head.weight", "rows"),
}
LAYER_NAMES: dict[str, tuple[str, str]] = {
    "attention.wq.weight": ("self_attn.q_proj.weight", "rotary rows"),
    "attention.wk.weight": ("self_attn.k_proj.weight", "rotary rows"),
    "attention.wv.weight": ("self_attn.v_proj.weight", "rows"),
    "attention.wo.weight": ("self_attn.o_proj.weight", "columns"),
    "attention.q_normalization.weight": ("self_attn.q_norm.weight", "rotary norms"),
    "attention.q_normalization.bias": ("self_attn.q_norm.bias", "rotary norms"),
    "attention.k_normalization.weight": ("self_attn.k_norm.weight", "rotary norms"),
    "attention.k_normalization.bias": ("self_attn.k_norm.bias", "rotary norms"),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", "rows"),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", "rows"),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", "columns"),
    "attention_norm.weight": ("input_layernorm.weight", "mean"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "mean"),
}
# A fused tensor → what stands in it, from the top.
FUSED: dict[str, tuple[str, ...]] = {
    "attention.wqkv.weight": (
        "attention.wq.weight",
        "attention.wk.weight",
        "attention.wv.weight",
    ),
    "feed_forward.w13.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
# A buffer; it follows from rope_theta.
COMPUTED = "rope.freqs"
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class _Params:
    """What params.json says of the sizes; the rest is read from the tensors."""

    path: Path
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    norm_eps: float
    rope_theta: float
    swin_norm: bool
    shards: int | None
    """`model_parallel_size`, where it is given."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


def is_meta_folder(folder: Path) -> bool:
    """Whether the folder has params.json and consolidated files."""
    return (folder / PARAMS).exists() and bool(_files(folder))


def plan_meta(folder: Path) -> ModelPlan:
    """The model in Meta's folder, from params.json and the pickles' lists of tensors.

    Raises CheckpointError where a file is too large, no plain dictionary of tensors, or does not
    agree with the others and params.json.
    """
    params = _read_params(folder)
    files = _files(folder)
    if not files:
        raise CheckpointError(f"{folder} holds neither {SINGLE} nor {SHARDS}")
    if params.shards not in (None, len(files)) or params.n_kv_heads % len(files):
        raise CheckpointError(
            f"{folder} holds {len(files)} {SHARDS} files, {PARAMS} says model_parallel_size="
            f"{params.shards} and {params.n_kv_heads} kv heads; fetch all shards of the model"
        )
    stored = [_list_tensors(path) for path in files]
    num_stored = sum(map(len, stored))
    fused = any(name.endswith(tuple(FUSED)) for name in stored[0])
    shards = [_unfused(tensors, params, len(files)) for tensors in stored]
    _check_same_names(files, shards)
    notes = [
        f"{', '.join(path.name for path in files)}: pickles, which can carry code; they are read "
        "with torch's restricted unpickler (weights_only), and become safetensors"
    ]
    if COMPUTED in shards[0]:
        notes.append(f"left out, computed anew: {COMPUTED}")
    tensors, unknown = [], []
    for name in shards[0]:
        found = _our_name(name)
        if found is not None:
            ours, join = found
            parts = [shard[name] for shard in shards]
            tensors.append(_JOINS[join](ours, parts, params.head_dim))
        elif name != COMPUTED:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{folder}: names that Chameleon has not: {name_list(unknown)}")
    cfg = _sizes(params, tensors, len(files))
    check_fit(cfg, tensors, folder)
    words = f"{len(files)} shard{'s' if len(files) > 1 else ''}, {'' if fused else 'un'}fused"
    return ModelPlan(
        layout=f"Meta checkpoint, {words}",
        cfg=cfg,
        tensors=checked_values(tensors, folder),
        files=[params.path, *folder.glob(CONSOLIDATE_PARAMS), *files],
        num_source_tensors=num_stored,
        notes=notes,
    )


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    return sorted(folder.glob(SHARDS))


def _read_params(folder: Path) -> _Params:
    path = folder / PARAMS
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        content |= content.get("model") or {}
        if (folder / CONSOLIDATE_PARAMS).exists():
            content |= json.loads((folder / CONSOLIDATE_PARAMS).read_text())
        shards = content.get("model_parallel_size")
        params = _Params(
            path=path,
            dim=int(content["dim"]),
            n_layers=int(content["n_layers"]),
            n_heads=int(content["n_heads"]),
            n_kv_heads=int(content.get("n_kv_heads") or content["n_heads"]),
            norm_eps=float(content.get("norm_eps", 1e-5)),
            rope_theta=float(content.get("rope_theta", 10_000.0)),
            swin_norm=bool(content.get("swin_norm", False)),
            shards=None if shards is None else int(shards),
        )
        if min(params.dim, params.n_layers, params.n_heads, params.n_kv_heads) < 1:
            raise ValueError("sizes below 1")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not Meta's: it needs dim, n_layers and n_heads ({error!r})"
        ) from error
    return params


def _list_tensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file; their bytes are mapped when they are read, not now."""
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} has {num_bytes} bytes, more than the {_MAX_FILE_BYTES} a shard may have: this "
            "is another file"
        )
    shard = _Shard(path)
    return {
        name: LazyTensor(name, tuple(t.shape), t.dtype, functools.partial(shard.read, name))
        for name, t in shard.tensors.items()
    }


class _Shard:
    """A mapped file. Pages that were read count as this process's memory while they are mapped, so
    the file is mapped anew when many have been; the old map goes with its last tensor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tensors = _load(path)
        self._read_bytes = 0

    def read(self, name: str) -> Tensor:
        if self._read_bytes > _MAPPED_BYTES:
            self.tensors, self._read_bytes = _load(self._path), 0
        tensor = self.tensors[name]
        self._read_bytes += tensor.numel() * tensor.element_size()
        return tensor


def _load(path: Path) -> dict[str, Tensor]:
    """The file's tensors, mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise pickle.UnpicklingError("not a checkpoint of tensors")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: {reason}; fetch it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path} is no plain dictionary of tensors; fetch it again")
    return content


def _unfused(
    stored: Mapping[str, LazyTensor], params: _Params, num_shards: int
) -> dict[str, LazyTensor]:
    """The same tensors with every fused one taken apart."""
    kv_rows = params.n_kv_heads // num_shards * params.head_dim
    found: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        match = _LAYER.fullmatch(name)
        inner = FUSED.get(match[2]) if match else None
        if match is None or inner is None:
            found[name] = tensor
            continue
        rows = tensor.shape[0]
        heights = [rows // 2] * 2 if len(inner) == 2 else [rows - 2 * kv_rows, kv_rows, kv_rows]
        if sum(heights) != rows or min(heights) < 1:
            raise CheckpointError(
                f"{params.path.parent}: {name} has {rows} rows, which do not part into "
                f"{len(inner)} as {PARAMS} says ({params.n_heads} and {params.n_kv_heads} heads)"
            )
        starts = [sum(heights[:index]) for index in range(len(heights))]
        for part, start, height in zip(inner, starts, heights, strict=True):
            full = f"layers.{match[1]}.{part}"
            rows_of = functools.partial(torch.narrow, dim=0, start=start, length=height)
            found[full] = tensor.then(rows_of, name=full, shape=(height, *tensor.shape[1:]))
    return found


def _check_same_names(files: Sequence[Path], shards: Sequence[Mapping[str, LazyTensor]]) -> None:
    for path, shard in zip(files, shards, strict=True):
        differ = shards[0].keys() ^ shard.keys()
        if differ:
            raise CheckpointError(
                f"{files[0].name} and {path.name} in {path.parent} hold different names: "
                f"{name_list(differ)}; they are not shards of one model"
            )
        shapes = [
            f"{name} {list(shards[0][name].shape)} against {list(tensor.shape)}"
            for name, tensor in shard.items()
            if (tensor.shape, tensor.dtype) != (shards[0][name].shape, shards[0][name].dtype)
        ]
        if shapes:
            raise CheckpointError(
                f"{files[0].name} and {path.name} in {path.parent} hold tensors of different "
                f"shapes or types: {name_list(shapes)}; they are not shards of one model"
            )


def _our_name(name: str) -> tuple[str, str] | None:
    match = _LAYER.fullmatch(name)
    if match is None:
        return MODEL_NAMES.get(name)
    if match[2] not in LAYER_NAMES:
        return None
    ours, join = LAYER_NAMES[match[2]]
    return f"model.layers.{int(match[1])}.{ours}", join


def _sizes(params: _Params, tensors: Sequence[LazyTensor], num_shards: int) -> TransformerConfig:
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    gate, head = "model.layers.0.mlp.gate_proj.weight", "lm_head.weight"
    if gate not in shapes or head not in shapes:
        raise CheckpointError(
            f"{params.path.parent}: no output.weight, or no feed_forward.w1 or w13 in layer 0; "
            "this is no checkpoint of Chameleon's transformer"
        )
    has_norms = "model.layers.0.self_attn.q_norm.weight" in shapes
    try:
        return TransformerConfig(
            hidden=params.dim,
            ffn=shapes[gate][0],
            layers=params.n_layers,
            heads=params.n_heads,
            kv_heads=params.n_kv_heads,
            head_dim=params.head_dim,
            vocab_size=shapes[head][0],
            norm_placement="post" if params.swin_norm else "pre",
            qk_norm="group" if has_norms else "none",
            qk_norm_groups=num_shards if has_norms else 1,
            rope_theta=params.rope_theta,
            norm_eps=params.norm_eps,
            max_positions=_MAX_POSITIONS,
        )
    except MgptError as error:
        raise CheckpointError(f"{params.path}: {error}") from error


def _rows(name: str, parts: Sequence[LazyTensor], head_dim: int) -> LazyTensor:
    height = sum(part.shape[0] for part in parts)
    shape = (height, *parts[0].shape[1:])
    return _joined(name, parts, shape, lambda tensors: torch.cat(tensors, 0))


def _columns(name: str, parts: Sequence[LazyTensor], head_dim: int) -> LazyTensor:
    width = sum(part.shape[-1] for part in parts)
    shape = (*parts[0].shape[:-1], width)
    return _joined(name, parts, shape, lambda tensors: torch.cat(tensors, -1))


def _mean(name: str, parts: Sequence[LazyTensor], head_dim: int) -> LazyTensor:
    def join(tensors: list[Tensor]) -> Tensor:
        return torch.stack([t.float() for t in tensors]).mean(0).to(tensors[0].dtype)

    return _joined(name, parts, parts[0].shape, join)


def _rotary_rows(name: str, parts: Sequence[LazyTensor], head_dim: int) -> LazyTensor:
    return _rows(name, parts, head_dim).then(lambda rows: permute_rotary(rows, head_dim))


def _rotary_norms(name: str, parts: Sequence[LazyTensor], head_dim: int) -> LazyTensor:
    def join(tensors: list[Tensor]) -> Tensor:
        return permute_rotary(torch.cat(tensors), head_dim).view(len(tensors), -1)

    return _joined(name, parts, (len(parts), *parts[0].shape), join)


def _joined(
    name: str,
    parts: Sequence[LazyTensor],
    shape: tuple[int, ...],
    join: Callable[[list[Tensor]], Tensor],
) -> LazyTensor:
    return LazyTensor(name, shape, parts[0].dtype, lambda: join([part.read() for part in parts]))


_JOINS: dict[str, Callable[[str, Sequence[LazyTensor], int], LazyTensor]] = {
    "rows": _rows,
    "columns": _columns,
    "mean": _mean,
    "rotary rows": _rotary_rows,
    "rotary norms": _rotary_norms,
}
