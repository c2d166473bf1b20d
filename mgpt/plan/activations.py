"""What one micro-batch keeps and needs on a device, read off the model's own forward and backward.

Two blocks and the head run on the meta device, with the recomputation asked for, while the bytes
alive are counted; blocks are alike, so the rest is multiplication. What attention keeps is that of
a fused kernel (FlexAttention, FlashAttention): queries, keys, values, output, one number a head
and token. Dropout's masks are added: a byte an element on a GPU. `torch.compile` fuses some of
what is kept away, which is not counted on.

    >>> round(trace(SIZES["7b"], 1, 4096, torch.bfloat16).kept_bytes / 1e9, 1)
    24.6
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mgpt.models.table import DecoderConfig, DecoderModel, decoder_of
from mgpt.parallel.meta import on_meta
from mgpt.parallel.recompute import recompute_blocks
from mgpt.plan.live_bytes import LiveBytes

__all__ = ["Activations", "meta_model", "trace"]


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one rank, beside weights."""

    kept_bytes: int
    """Alive after the blocks, waiting for the backward pass."""
    loss_bytes: int
    """Beside what is kept, at the most, in the head: logits of a chunk, the head's gradient."""
    backward_bytes: int
    """Beside what is kept, at the most, in the backward pass of a block: temporary values, the
    gradients of its weights, and its activations where they are recomputed."""


def meta_model(cfg: DecoderConfig) -> DecoderModel:
    """The model without memory: names and shapes."""
    return on_meta(lambda: decoder_of(cfg).model(cfg))


@functools.cache
def trace(
    cfg: DecoderConfig,
    rows: int,
    row_tokens: int,
    dtype: torch.dtype,
    recompute: str = "none",
    head_only: bool = False,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Activations:
    """What a micro-batch of `rows` x `row_tokens` takes, every token of it trained.

    Args:
        head_only: only the head trains, and nothing is kept for the blocks.
        device: whose attention and dropout.
    """
    decoder = decoder_of(cfg)
    model = meta_model(decoder.traced(cfg)).to(dtype)
    recompute_blocks(model, decoder.sharding_plan(model), recompute)
    # Sharding takes gradients away, and counts them: those of a block when it is done.
    of_blocks = {id(parameter) for parameter in model.blocks.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in of_blocks:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with torch.device("meta"):
        ids_BT = torch.empty(rows, row_tokens, dtype=torch.int64)
    peaks: list[int] = []
    with LiveBytes([*model.parameters(), ids_BT]) as counter:
        kept: list[int] = []
        for block in model.blocks:
            block.register_forward_pre_hook(_drop_gradients_after_backward)
            block.register_forward_hook(lambda *_: kept.append(counter.live))
        with torch.set_grad_enabled(not head_only):
            x_BTD = model(ids_BT, ids_BT, _FusedAttention(device == "cpu"))
        last = counter.live
        counter.restart_peak()
        if not head_only:
            x_BTD.register_hook(lambda _: _end_of_head(counter, peaks))
        loss = model.head.trained_sums(x_BTD.flatten(0, -2), ids_BT.flatten(), 1e-5)[0]
        del x_BTD  # in training too nothing but the graph holds it
        loss.backward()
        peaks.append(counter.peak)
    masks = 0 if head_only else 2 * rows * row_tokens * cfg.hidden * _mask_bytes(cfg, dtype, device)
    a_block = 0 if head_only else kept[1] - kept[0]
    recomputed = recompute != "none"
    # What the stand-in of attention gives is no output of an attention kernel to torch.
    attention = _attention_bytes(cfg, rows * row_tokens, dtype) if recompute == "selective" else 0
    backward = peaks[1] - last if len(peaks) > 1 else 0
    kept_apart = cfg.layers * (attention + (0 if recomputed else masks))
    return Activations(
        kept_bytes=last + (cfg.layers - 2) * a_block + (0 if head_only else kept_apart),
        loss_bytes=peaks[0] - last,
        backward_bytes=max(0, backward - attention) + (masks if recomputed else 0),
    )


def _attention_bytes(cfg: DecoderConfig, tokens: int, dtype: torch.dtype) -> int:
    """What an attention kernel gives: its output, and one float32 a head and token."""
    return tokens * cfg.heads * (cfg.head_dim * dtype.itemsize + 4)


def _drop_gradients_after_backward(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """As `zero_grad` once the gradient of a block's input is there, and it is done."""
    if inputs[0].requires_grad:
        inputs[0].register_hook(lambda _: block.zero_grad())


def _end_of_head(counter: LiveBytes, peaks: list[int]) -> None:
    """Called with the gradient of the hidden states: the head is done, the blocks follow."""
    peaks.append(counter.peak)
    counter.restart_peak()


def _mask_bytes(cfg: DecoderConfig, dtype: torch.dtype, device: str) -> int:
    """Of an element of a dropout mask: a truth value on a GPU, a factor on a CPU."""
    if cfg.dropout == 0.0:
        return 0
    return 1 if device == "cuda" else dtype.itemsize


class _FusedAttention:
    """Stands for `Documents`: shapes and kept tensors of a fused kernel, no result.

    Args:
        joined: the outputs of runs of documents are copied into one, as on a CPU.
    """

    def __init__(self, joined: bool) -> None:
        self._joined = joined

    def gather(self, values_BT: Tensor) -> Tensor:
        return values_BT

    def scatter(self, values: Tensor, shape_BT: tuple[int, int]) -> Tensor:
        return values

    def attend(self, q_BTHK: Tensor, k_BTJK: Tensor, v_BTJK: Tensor) -> Tensor:
        out_BTHK = _Kernel.apply(q_BTHK, k_BTJK, v_BTJK)
        return torch.cat([out_BTHK]) if self._joined else out_BTHK


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BTHK: Tensor, k_BTJK: Tensor, v_BTJK: Tensor) -> Tensor:
        out_BTHK = torch.empty_like(q_BTHK)
        lse_BTH = q_BTHK.new_empty(q_BTHK.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q_BTHK, k_BTJK, v_BTJK, out_BTHK, lse_BTH)
        return out_BTHK

    @staticmethod
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BTHK, k_BTJK, v_BTJK, _, _ = ctx.saved_tensors
        return torch.empty_like(q_BTHK), torch.empty_like(k_BTJK), torch.empty_like(v_BTJK)
