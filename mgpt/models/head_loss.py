"""The output head and its loss as one module: hidden states and labels in, sums out.

A full [tokens, vocabulary] tensor of logits in fp32 never exists: the tokens go through in chunks,
and each chunk's gradients are made while its logits are at hand, so they are computed once.
Nothing wider than the weight is kept of its gradient: each chunk's part is added in fp32 and
rounded once to the weight's type, and there are few chunks.
Ignored positions cost nothing. The module owns `weight`, and nothing else reads it: under ZeRO-3
it is whole only inside `forward`. It knows nothing of what the labels mean, nor of how sums of
several batches or ranks are joined.

    >>> head = HeadLoss(hidden=256, vocab_size=2048)
    >>> nn.init.normal_(head.weight, std=0.02)
    >>> sums = head(hidden_BTD, labels_BT, z_loss=1e-5)  # labels -100: not trained
    >>> (sums.loss_sum / global_trained_tokens).backward()

The loss of a trained token is nll + z_loss * logsumexp(logits)^2 (z-loss of PaLM, arXiv 2204.02311;
Chameleon's coefficient is 1e-5). Sums run over trained tokens; dividing is the caller's part.

Shape suffixes: B rows, T positions, N trained tokens, C tokens of a chunk, D hidden, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["IGNORED", "HeadLoss", "LossSums"]

IGNORED = -100
# Logits alive at once, in the type of the hidden states: many tokens for each look at the weights.
_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 26}
# Roundings of a bf16 gradient: K chunks leave sqrt((K + 1) / 2) times the error of one, so that
# more tokens than these hold make larger chunks.
_MOST_CHUNKS = 8
# In fp32 or wider at once: what fits a cache.
_BLOCK_NUMEL = {"cpu": 1 << 20, "cuda": 1 << 23}


class LossSums(NamedTuple):
    """Sums over the trained tokens of one batch; only `loss_sum` carries a gradient.

    Attributes:
        loss_sum: scalar fp32, nll_sum + z_loss * z_sum.
        nll_sum: scalar fp64, sum of negative log-likelihoods in nats.
        z_sum: scalar fp64, sum of squared logsumexps.
        token_nll: fp32 in the shape of the labels, 0 where ignored.
        num_trained: scalar int64, labels that are not ignored.
    """

    loss_sum: Tensor
    nll_sum: Tensor
    z_sum: Tensor
    token_nll: Tensor
    num_trained: Tensor


class HeadLoss(nn.Module):
    """`weight` [V, D], without bias, and the loss over its logits.

    `trained_rows` (start, stop) leaves the gradient of every other row at exactly 0.
    """

    def __init__(self, hidden: int, vocab_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden))
        self.trained_rows: tuple[int, int] | None = None

    def forward(self, hidden_BTD: Tensor, labels_BT: Tensor, z_loss: float = 0.0) -> LossSums:
        """Loss sums of `labels_BT` [B, T] (int64, -100 ignored) given `hidden_BTD` [B, T, D].

        Any leading shape will do, as long as both have the same. The head never sees more than the
        trained positions.
        """
        flat = labels_BT.flatten()
        trained_N = (flat != IGNORED).nonzero().flatten()
        hidden_ND = hidden_BTD.flatten(0, -2)
        if len(trained_N) < len(flat):
            hidden_ND = hidden_ND[trained_N]
        loss_sum, nll_N, z_sum = self.trained_sums(hidden_ND, flat[trained_N], z_loss)
        token_nll = torch.zeros(flat.shape, dtype=nll_N.dtype, device=flat.device)
        token_nll[trained_N] = nll_N
        return LossSums(
            loss_sum,
            nll_N.double().sum(),
            z_sum,
            token_nll.view(labels_BT.shape),
            torch.tensor(len(trained_N), device=flat.device),
        )

    def trained_sums(
        self, hidden_ND: Tensor, labels_N: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`loss_sum`, nll by token and `z_sum` of positions that are all trained; see `LossSums`.

        Its work depends on shapes alone, so that its memory can be known from the meta device.
        """
        return _ChunkedLoss.apply(
            hidden_ND, self.weight, labels_N, z_loss, torch.is_grad_enabled(), self.trained_rows
        )

    def logits(self, hidden_ND: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits [N, stop - start] in fp32 of a few positions, for sampling among those ids."""
        return (hidden_ND @ self.weight[start:stop].T).float()


class _ChunkedLoss(torch.autograd.Function):
    """Loss and, in the same pass, its gradients; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        z_loss: float,
        need_grad: bool,
        trained_rows: tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_tokens, vocab_size = len(hidden_ND), len(weight_VD)
        rows = slice(*(trained_rows or (0, vocab_size)))
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        nll_N = torch.empty(num_tokens, dtype=wide, device=hidden_ND.device)
        lse_N = torch.empty_like(nll_N)
        if need_grad:
            grad_hidden = torch.empty_like(hidden_ND)
            grad_weight = torch.zeros_like(weight_VD)
            ctx.save_for_backward(grad_hidden, grad_weight)
        chunk = max(
            1, _CHUNK_LOGITS[_device_type(hidden_ND)] // vocab_size, -(-num_tokens // _MOST_CHUNKS)
        )
        # One buffer for all chunks: on a CPU fresh pages cost as much as the sums in them.
        buffer_CV = hidden_ND.new_empty(min(chunk, num_tokens), vocab_size)
        for start in range(0, num_tokens, chunk):
            part = slice(start, start + chunk)
            hidden_CD = hidden_ND[part]
            logits_CV = torch.mm(hidden_CD, weight_VD.T, out=buffer_CV[: len(hidden_CD)])
            losses = _fused_losses() if hidden_ND.is_cuda else _losses
            losses(logits_CV, labels_N[part], nll_N[part], lse_N[part], z_loss, need_grad)
            if need_grad:
                torch.mm(logits_CV, weight_VD, out=grad_hidden[part])
                grad_weight[rows].addmm_(logits_CV[:, rows].T, hidden_CD)
        z_sum = lse_N.double().square().sum()
        loss_sum = (nll_N.double().sum() + z_loss * z_sum).to(wide)
        ctx.mark_non_differentiable(nll_N, z_sum)
        return loss_sum, nll_N, z_sum

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place: autograd refuses to go through a graph twice after that.
        for grad in (grad_hidden, grad_weight):
            _scale(grad, grad_loss)
        return grad_hidden, grad_weight, None, None, None, None


def _scale(grad_ND: Tensor, scale: Tensor) -> None:
    """Multiplies in fp32 and rounds once."""
    # A number without dimensions would be rounded to bf16 before it multiplies on a GPU.
    scale_11 = scale.view(1, 1)
    # On a CPU the wide values are a copy: of a block that fits a cache, not of all.
    rows = max(1, _BLOCK_NUMEL[_device_type(grad_ND)] // grad_ND.shape[1])
    for part_BD in grad_ND.split(rows):
        part_BD.mul_(scale_11)


def _losses(
    logits_CV: Tensor,
    labels_C: Tensor,
    nll_C: Tensor,
    lse_C: Tensor,
    z_loss: float,
    need_grad: bool,
) -> None:
    """Fills the losses and logsumexps of a chunk, a block of tokens that fits a cache at a time.

    With `need_grad` the logits give way to their gradient, softmax * (1 + 2 z lse) - onehot.
    """
    block = max(1, _BLOCK_NUMEL[_device_type(logits_CV)] // logits_CV.shape[1])
    parts = zip(*(t.split(block) for t in (logits_CV, labels_C, nll_C, lse_C)), strict=True)
    for logits_BV, labels_B, nll_B, lse_B in parts:
        _block_losses(logits_BV, labels_B, nll_B, lse_B, z_loss, need_grad)


def _block_losses(
    logits_BV: Tensor,
    labels_B: Tensor,
    nll_B: Tensor,
    lse_B: Tensor,
    z_loss: float,
    need_grad: bool,
) -> None:
    labels_B1 = labels_B[:, None]
    wide_BV = logits_BV.to(nll_B.dtype)
    probs_BV = wide_BV.softmax(-1)
    # The largest probability is at least 1 / V, so its logarithm is exact to rounding.
    lse_B1 = wide_BV.amax(-1, keepdim=True) - probs_BV.amax(-1, keepdim=True).log()
    lse_B.copy_(lse_B1.squeeze(1))
    nll_B.copy_((lse_B1 - wide_BV.gather(1, labels_B1)).squeeze(1))
    if need_grad:
        grad_BV = probs_BV.mul_(1 + 2 * z_loss * lse_B1)
        grad_BV.scatter_add_(1, labels_B1, torch.full_like(lse_B1, -1.0))
        logits_BV.copy_(grad_BV)


@functools.cache
def _fused_losses() -> Any:
    """The same compiled: on a GPU the wide values then stay in registers."""
    return torch.compile(_block_losses)


def _device_type(t: Tensor) -> str:
    return "cpu" if t.device.type == "cpu" else "cuda"
