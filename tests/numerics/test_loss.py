"""The chunked loss against plain cross-entropy in fp64: value, z-loss, gradients, memory."""

import pytest
import torch
import torch.nn.functional as F

from mgpt.models import head_loss
from mgpt.models.head_loss import HeadLoss


def _case(dtype: torch.dtype = torch.float64) -> tuple[HeadLoss, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = HeadLoss(hidden=16, vocab_size=40)
    torch.nn.init.normal_(head.weight, generator=generator)
    hidden_BTD = torch.randn(3, 11, 16, generator=generator).to(dtype).requires_grad_()
    labels_BT = torch.randint(40, (3, 11), generator=generator)
    labels_BT[torch.rand(3, 11, generator=generator) < 0.4] = -100
    return head.to(dtype), hidden_BTD, labels_BT


def _plain(head: HeadLoss, hidden_BTD: torch.Tensor, labels_BT: torch.Tensor, z_loss: float):
    logits_BTV = hidden_BTD.double() @ head.weight.double().T
    trained_BT = labels_BT != -100
    nll = F.cross_entropy(logits_BTV[trained_BT], labels_BT[trained_BT], reduction="sum")
    z_sum = logits_BTV.logsumexp(-1)[trained_BT].square().sum()
    return nll + z_loss * z_sum, nll, z_sum


@pytest.fixture(params=[1 << 20, 7 * 40], ids=["one chunk", "chunks of seven"])
def chunk_logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(head_loss._CHUNK_LOGITS, "cpu", request.param)
    return request.param


def test_sums_and_gradients_equal_plain_ones(chunk_logits: int):
    head, hidden_BTD, labels_BT = _case()
    sums = head(hidden_BTD, labels_BT, z_loss=0.1)
    (0.25 * sums.loss_sum).backward()
    ours = hidden_BTD.grad.clone(), head.weight.grad.clone()
    hidden_BTD.grad = head.weight.grad = None
    loss, nll, z_sum = _plain(head, hidden_BTD, labels_BT, 0.1)
    (0.25 * loss).backward()
    torch.testing.assert_close(sums.loss_sum, loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(sums.nll_sum, nll, rtol=1e-13, atol=0)
    torch.testing.assert_close(sums.z_sum, z_sum, rtol=1e-13, atol=0)
    torch.testing.assert_close(ours[0], hidden_BTD.grad, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(ours[1], head.weight.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # fp32: sums of 40 products. bf16: logits and their gradients are rounded, then the products.
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
def test_lower_precision_stays_near_fp64(chunk_logits: int, dtype: torch.dtype, tolerance: float):
    head, hidden_BTD, labels_BT = _case(dtype)
    sums = head(hidden_BTD, labels_BT, z_loss=1e-3)
    sums.loss_sum.backward()
    ours = hidden_BTD.grad.double(), head.weight.grad.double()
    assert sums.loss_sum.dtype == sums.token_nll.dtype == torch.float32
    hidden_BTD.grad = head.weight.grad = None
    loss, _, _ = _plain(head, hidden_BTD, labels_BT, 1e-3)
    loss.backward()
    assert sums.loss_sum.item() == pytest.approx(loss.item(), rel=tolerance)
    for mine, grad in zip(ours, (hidden_BTD.grad, head.weight.grad), strict=True):
        assert (mine - grad).norm() / grad.double().norm() < tolerance


def test_a_bf16_gradient_is_rounded_a_few_times_at_most(monkeypatch: pytest.MonkeyPatch):
    """Of 512 chunks were it not for the limit; without it the error of the weight's is 0.016."""
    monkeypatch.setitem(head_loss._CHUNK_LOGITS, "cpu", 512)
    generator = torch.Generator().manual_seed(0)
    head = HeadLoss(hidden=64, vocab_size=512).bfloat16()
    torch.nn.init.normal_(head.weight, std=0.125, generator=generator)
    hidden_ND = torch.randn(512, 64, generator=generator).bfloat16().requires_grad_()
    labels_N = torch.randint(512, (512,), generator=generator)
    (head(hidden_ND, labels_N, z_loss=1e-3).loss_sum / 512).backward()
    ours = hidden_ND.grad.double(), head.weight.grad.double()
    hidden_ND.grad = head.weight.grad = None
    exact = HeadLoss(hidden=64, vocab_size=512).double()
    exact.weight.data.copy_(head.weight)
    exact_ND = hidden_ND.detach().double().requires_grad_()
    (_plain(exact, exact_ND, labels_N, 1e-3)[0] / 512).backward()
    # A rounding to bf16 is 2^-9 at most, 1.7e-3 at the root of its mean square.
    for mine, grad, near in zip(ours, (exact_ND.grad, exact.weight.grad), (3e-3, 5e-3)):
        assert (mine - grad).norm() / grad.norm() < near


def test_token_losses_stand_where_the_labels_do():
    head, hidden_BTD, labels_BT = _case()
    sums = head(hidden_BTD, labels_BT)
    logits_BVT = (hidden_BTD @ head.weight.T).transpose(1, 2)
    expected_BT = F.cross_entropy(logits_BVT, labels_BT, reduction="none")
    torch.testing.assert_close(sums.token_nll, expected_BT.detach())
    assert not sums.token_nll.requires_grad
    assert sums.num_trained.item() == (labels_BT != -100).sum().item()


def test_without_gradients_the_sums_are_the_same_and_nothing_is_kept():
    head, hidden_BTD, labels_BT = _case()
    with torch.no_grad():
        silent = head(hidden_BTD, labels_BT, z_loss=0.1)
    loud = head(hidden_BTD, labels_BT, z_loss=0.1)
    assert silent.loss_sum.grad_fn is None
    assert torch.equal(silent.loss_sum, loud.loss_sum.detach())


def test_logits_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(head_loss._CHUNK_LOGITS, "cpu", 8 * 4096)
    head = HeadLoss(hidden=4, vocab_size=4096)
    torch.nn.init.normal_(head.weight)
    hidden_ND = torch.randn(64, 4, requires_grad=True)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Largest():
        head(hidden_ND, torch.arange(64), z_loss=1e-5).loss_sum.backward()
    assert largest == 8 * 4096


def test_logits_of_a_range_are_a_part_of_all():
    head, hidden_BTD, _ = _case(torch.float32)
    logits = head.logits(hidden_BTD[0])
    assert torch.allclose(head.logits(hidden_BTD[0], 5, 9), logits[:, 5:9])
    assert logits.shape == (11, 40) and logits.dtype == torch.float32
