"""Chameleon's decoder: token ids and positions in, hidden states or loss sums out.

RMSNorm, rotary attention with qk-norm, SwiGLU, no biases, untied embeddings. `norm_placement` is
"pre" (7B) or "post" (34B: the norm after each branch, before the residual add). Parameters carry
the names of transformers' Chameleon, so a released state dict loads as it is.

It is single-device code: it knows nothing of ranks, sharding, optimisers, text or pictures.
`sharding_plan` says as data which modules a backend should shard and recompute together.

    >>> model = Transformer(SIZES["quickstart"])
    >>> model.init_weights(seed=0)
    >>> sums = model.training_sums(ids_BT, positions_BT, labels_BT, z_loss=1e-5)
    >>> (sums.loss_sum / num_trained).backward()
    >>> hidden_BTD = model(ids_BT, positions_BT)
    >>> logits_BV = model.head.logits(hidden_BTD[:, -1])

Shape suffixes: B rows, T positions in a row, D hidden, H query heads, J key-value heads,
K head size, F feed-forward, V vocabulary. Inside the blocks B and T may be 1 and all tokens of the
batch, grouped by document (`attention.Documents`).
"""

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.models.attention import Documents, HeadNorm, attend_causal
from mgpt.models.head_loss import IGNORED, HeadLoss, LossSums
from mgpt.models.kv_cache import KvCache
from mgpt.models.rotary import rotary_angles, rotate
from mgpt.models.transformer_config import TransformerConfig

__all__ = ["Transformer", "TransformerConfig", "sharding_plan"]

Rotary = tuple[Tensor, Tensor]

# Elements of a matrix that one generator draws when weights are made.
_DRAWN_AT_ONCE = 1 << 20
# Share of a code's first row that its codebook vector decides; the rest is drawn.
_CODEBOOK_SHARE = 0.9


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), cast back to the type of x before the weight multiplies it."""

    def __init__(self, hidden: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return _RmsNorm.apply(x_BTD, self.weight, self.eps)


class _RmsNorm(torch.autograd.Function):
    """Keeps its input and one number a token; plain autograd would keep three fp32 copies."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        x = x_BTD.to(wide)
        scale_BT1 = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x_BTD, weight_D, scale_BT1)
        return weight_D * (x * scale_BT1).to(x_BTD.dtype)

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BTD, weight_D, scale_BT1 = ctx.saved_tensors
        normed = x_BTD.to(scale_BT1.dtype) * scale_BT1
        grad = grad_BTD.to(scale_BT1.dtype)
        grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight_D.dtype)
        grad_normed = grad * weight_D.to(scale_BT1.dtype)
        along_BT1 = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = grad_normed.sub_(normed.mul_(along_BT1)).mul_(scale_BT1)
        return grad_x.to(x_BTD.dtype), grad_weight, None


class Attention(nn.Module):
    """Multi-head attention with qk-norm and rotary embedding, over documents or over a cache."""

    def __init__(self, cfg: TransformerConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = cfg.head_dim
        self.q_proj = nn.Linear(cfg.hidden, cfg.heads * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.hidden, cfg.kv_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.hidden, cfg.kv_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.heads * cfg.head_dim, cfg.hidden, bias=False)
        self.q_norm = _qk_norm(cfg, cfg.heads)
        self.k_norm = _qk_norm(cfg, cfg.kv_heads)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, documents: Documents | None, cache: KvCache | None
    ) -> Tensor:
        split = (*x_BTD.shape[:-1], -1, self.head_dim)
        q_BTHK = rotate(self.q_norm(self.q_proj(x_BTD).view(split)), rotary)
        k_BTJK = rotate(self.k_norm(self.k_proj(x_BTD).view(split)), rotary)
        v_BTJK = self.v_proj(x_BTD).view(split)
        if cache is not None:
            out_BTHK = cache.attend(self.layer, q_BTHK, k_BTJK, v_BTJK)
        elif documents is not None:
            out_BTHK = documents.attend(q_BTHK, k_BTJK, v_BTJK)
        else:
            out_BTHK = attend_causal(q_BTHK, k_BTJK, v_BTJK)
        return self.o_proj(out_BTHK.flatten(-2))


def _qk_norm(cfg: TransformerConfig, heads: int) -> nn.Module:
    if cfg.qk_norm == "none":
        return nn.Identity()
    groups = heads if cfg.qk_norm == "head" else cfg.qk_norm_groups
    # transformers' qk-norm has this epsilon whatever its `rms_norm_eps` says.
    return HeadNorm(groups, cfg.head_dim, eps=1e-5)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, cfg: TransformerConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden, cfg.ffn, bias=False)
        self.up_proj = nn.Linear(cfg.hidden, cfg.ffn, bias=False)
        self.down_proj = nn.Linear(cfg.ffn, cfg.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """One layer; `norm_placement` decides which side of a branch its norm stands."""

    def __init__(self, cfg: TransformerConfig, layer: int):
        super().__init__()
        self.post = cfg.norm_placement == "post"
        self.dropout = cfg.dropout
        self.self_attn = Attention(cfg, layer)
        self.mlp = Mlp(cfg)
        self.input_layernorm = RmsNorm(cfg.hidden, cfg.norm_eps)
        self.post_attention_layernorm = RmsNorm(cfg.hidden, cfg.norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        documents: Documents | None = None,
        cache: KvCache | None = None,
    ) -> Tensor:
        if self.post:
            branch = self.input_layernorm(self.self_attn(x_BTD, rotary, documents, cache))
            x_BTD = x_BTD + self._drop(branch)
            return x_BTD + self._drop(self.post_attention_layernorm(self.mlp(x_BTD)))
        branch = self.self_attn(self.input_layernorm(x_BTD), rotary, documents, cache)
        x_BTD = x_BTD + self._drop(branch)
        return x_BTD + self._drop(self.mlp(self.post_attention_layernorm(x_BTD)))

    def _drop(self, branch_BTD: Tensor) -> Tensor:
        if self.dropout == 0.0:
            return branch_BTD
        return F.dropout(branch_BTD, self.dropout, self.training)


class Decoder(nn.Module):
    """Embedding, blocks and final norm: what transformers calls `model`."""

    def __init__(self, cfg: TransformerConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden)
        self.layers = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.layers))
        self.norm = RmsNorm(cfg.hidden, cfg.norm_eps)


class Transformer(nn.Module):
    """The whole model: `model.*` and `lm_head.weight` in its state dict.

    Parameters start uninitialised in value (torch's defaults): call `init_weights` or load.
    """

    def __init__(self, cfg: TransformerConfig):
        super().__init__()
        self.cfg = cfg
        self.model = Decoder(cfg)
        self.lm_head = HeadLoss(cfg.hidden, cfg.vocab_size)
        self._codebook: tuple[int, Tensor] | None = None

    def start_codes_from(self, first_row: int, vectors_NC: Tensor) -> "Transformer":
        """Makes the rows of image codes start as projections of their codebook vectors.

        Codes that decode to similar patches are then similar tokens from the first step on.

        Args:
            first_row: row of code 0 in the embedding and the head.
            vectors_NC: of every code; `PictureTokenizer.code_vectors`.
        """
        assert first_row + len(vectors_NC) <= self.cfg.vocab_size
        self._codebook = (first_row, vectors_NC.float().cpu())
        return self

    def train_head_rows(self, start: int, stop: int) -> "Transformer":
        """Leaves gradients to rows start..stop-1 of `lm_head.weight` alone; returns the model.

        The layers then run without a backward pass, and every other gradient is None or 0.
        """
        assert 0 <= start < stop <= self.cfg.vocab_size
        self.lm_head.trained_rows = (start, stop)
        return self

    @property
    def trained_rows(self) -> tuple[str, int, int] | None:
        """The one parameter that trains, by name, and its rows; None where all of them train."""
        rows = self.lm_head.trained_rows
        return None if rows is None else ("lm_head.weight", *rows)

    @property
    def embed(self) -> nn.Embedding:
        return self.model.embed_tokens

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.layers

    @property
    def norm(self) -> RmsNorm:
        return self.model.norm

    @property
    def head(self) -> HeadLoss:
        return self.lm_head

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        documents: Documents | None = None,
        cache: KvCache | None = None,
        labels_BT: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> Tensor | LossSums:
        """Hidden states [B, T, D] after the final norm, or loss sums where labels are given.

        Args:
            ids_BT: int64 token ids.
            positions_BT: int64 positions in their document; 0 starts a document.
            documents: the borders of this batch, when the caller has read them already.
            cache: decoding instead of whole documents: row b extends sequence b of the cache.
            labels_BT: int64 targets, -100 ignored. The head runs inside this one call, so that a
                backend that gathers weights on entry needs to wrap nothing else.
            z_loss: coefficient of the z-loss in `LossSums.loss_sum`.
        """
        if cache is not None:
            assert documents is None and labels_BT is None, "a cache holds whole sequences"
            cache.begin(ids_BT, positions_BT)
            return self._hidden(ids_BT, positions_BT, None, cache)
        if documents is None:
            needed_BT = None if labels_BT is None else labels_BT != IGNORED
            documents = Documents.from_positions(positions_BT, needed_BT)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained_rows is None):
            hidden = self._hidden(
                documents.gather(ids_BT), documents.gather(positions_BT), documents, None
            )
        shape_BT = (ids_BT.shape[0], ids_BT.shape[1])
        if labels_BT is None:
            return documents.scatter(hidden, shape_BT)
        sums = self.lm_head(hidden, documents.gather(labels_BT), z_loss)
        return sums._replace(token_nll=documents.scatter(sums.token_nll, shape_BT))

    def training_sums(
        self, ids_BT: Tensor, positions_BT: Tensor, labels_BT: Tensor, z_loss: float = 0.0
    ) -> LossSums:
        """Forward and head in one call of the module; see `forward` and `LossSums`."""
        return self(ids_BT, positions_BT, labels_BT=labels_BT, z_loss=z_loss)

    def _hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        documents: Documents | None,
        cache: KvCache | None,
    ) -> Tensor:
        x_BTD = self.model.embed_tokens(ids_BT)
        if cache is None:
            rotary = rotary_angles(self.cfg, ids_BT, positions_BT, x_BTD.dtype)
        else:
            rotary = cache.rotary_angles(self.cfg, x_BTD.dtype)
        for block in self.model.layers:
            x_BTD = block(x_BTD, rotary, documents, cache)
        return self.model.norm(x_BTD)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fills every parameter with its first value; see `initial_rows`."""
        for name, parameter in self.named_parameters():
            shape = tuple(parameter.shape)
            parameter.copy_(self.initial_rows(name, shape, (0, shape[0]), seed))

    def initial_rows(
        self, name: str, shape: tuple[int, ...], rows: tuple[int, int], seed: int
    ) -> Tensor:
        """Rows start to stop - 1 of a parameter's first value: float32, on the CPU.

        Matrices are normal with deviation 1 / sqrt(fan in), 0.016 at 7B's width, so that
        activations have one size at every width. The two that write into the residual stream are
        scaled by 1 / sqrt(2 layers) as in GPT-2. Norms start as the identity.

        Every million elements have a generator of their own, keyed by (seed, name, which million),
        so that ranks that hold some rows each draw hardly more than these. After
        `start_codes_from`, rows of image codes are mostly projections of their codebook vectors.

        Args:
            shape: of the whole parameter, which a sharding library may have emptied.
        """
        start, stop = rows
        if len(shape) == 1 or "_norm." in name:
            return torch.full((stop - start, *shape[1:]), float(not name.endswith("bias")))
        std = 1.0 / math.sqrt(shape[-1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * self.cfg.layers)
        chunk = max(1, _DRAWN_AT_ONCE // shape[1])
        drawn = torch.empty(stop - start, *shape[1:])
        for first in range(start - start % chunk, stop, chunk):
            last = min(first + chunk, shape[0])
            part = torch.empty(last - first, *shape[1:])
            part.normal_(0.0, std, generator=_generator(seed, name, first // chunk))
            own = slice(max(first, start), min(last, stop))
            drawn[own.start - start : own.stop - start] = part[own.start - first : own.stop - first]
        if self._codebook is not None and name in ("model.embed_tokens.weight", "lm_head.weight"):
            first_code, vectors_NC = self._codebook
            projected_ND = _project(vectors_NC, shape[1], _generator(seed, f"{name}:codebook", 0))
            own = slice(max(first_code, start), min(first_code + len(vectors_NC), stop))
            if own.start < own.stop:
                rows_ND = drawn[own.start - start : own.stop - start]
                rows_ND *= math.sqrt(1.0 - _CODEBOOK_SHARE**2)
                codes_ND = projected_ND[own.start - first_code : own.stop - first_code]
                rows_ND += _CODEBOOK_SHARE * codes_ND
        return drawn


def _project(vectors_NC: Tensor, hidden: int, generator: torch.Generator) -> Tensor:
    """Vectors [N, hidden] of mean length 1 whose distances are those of the codebook's vectors.

    A random orthonormal basis, so that no dimension of the model is a channel of the codebook; if
    the codebook is the wider of the two, distances are kept approximately.
    """
    width = vectors_NC.shape[1]
    centred_NC = vectors_NC - vectors_NC.mean(0)
    centred_NC = centred_NC / centred_NC.norm(dim=1).mean()
    tall = torch.randn(max(width, hidden), min(width, hidden), generator=generator)
    basis = torch.linalg.qr(tall).Q
    return centred_NC @ (basis.T if width <= hidden else basis)


def _generator(seed: int, name: str, chunk: int) -> torch.Generator:
    key = f"{seed}:{name}" if chunk == 0 else f"{seed}:{name}:{chunk}"
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sharding_plan(model: Transformer) -> list[str]:
    """Names of the modules that form a shard group each, in forward order; the rest is the root's.

    The blocks are also what activation checkpointing recomputes.
    """
    return [f"model.layers.{layer}" for layer in range(model.cfg.layers)] + ["lm_head"]
