"""The output head and its loss as one module: hidden states and labels in, sums out.

A full [tokens, vocabulary] tensor of logits in fp32 never exists: the tokens go through in chunks,
and each chunk's gradients are made while its logits are at hand, so they are computed once.
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

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["IGNORED", "HeadLoss", "LossSums"]

IGNORED = -100
# Logits alive at once: small enough for a CPU's cache, large enough to fill a GPU.
_CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}


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
        z_sum = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        if need_grad:
            grad_hidden = torch.empty_like(hidden_ND)
            # Sums over many chunks need fp32 even where the weight is bf16.
            grad_weight = torch.zeros_like(weight_VD, dtype=wide)
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.weight_dtype = weight_VD.dtype
        device_type = "cpu" if hidden_ND.device.type == "cpu" else "cuda"
        chunk = max(1, _CHUNK_LOGITS[device_type] // vocab_size)
        for start in range(0, num_tokens, chunk):
            part = slice(start, start + chunk)
            hidden_CD, labels_C1 = hidden_ND[part], labels_N[part, None]
            logits_CV = (hidden_CD @ weight_VD.T).to(wide)
            lse_C1 = logits_CV.logsumexp(-1, keepdim=True)
            nll_N[part] = (lse_C1 - logits_CV.gather(1, labels_C1)).squeeze(1)
            z_sum += lse_C1.double().square().sum()
            if not need_grad:
                continue
            # d loss / d logits = softmax * (1 + 2 z lse) - onehot
            grad_CV = logits_CV.sub_(lse_C1).exp_().mul_(1 + 2 * z_loss * lse_C1)
            grad_CV.scatter_add_(1, labels_C1, torch.full_like(lse_C1, -1.0))
            grad_CV = grad_CV.to(hidden_ND.dtype)
            grad_hidden[part] = grad_CV @ weight_VD
            if hidden_ND.dtype == wide:
                grad_weight[rows].addmm_(grad_CV[:, rows].T, hidden_CD)
            else:
                grad_weight[rows] += grad_CV[:, rows].T @ hidden_CD
        loss_sum = (nll_N.double().sum() + z_loss * z_sum).to(wide)
        ctx.mark_non_differentiable(nll_N, z_sum)
        return loss_sum, nll_N, z_sum

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_loss,
            (grad_weight * grad_loss).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )
