"""bf16 attention on a CPU by matrix products, against the fused kernel."""

import pytest
import torch

from mgpt.models import cpu_attention
from mgpt.models.attention import attend_causal
from mgpt.models.cpu_attention import attend_by_products


def _qkv(heads: int, kv_heads: int, shape_BT: tuple[int, int], dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(*shape_BT, count, 16, dtype=dtype, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    )


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("most_kept", [0, 1 << 25], ids=["recomputed", "kept"])
def test_products_equal_the_fused_kernel(
    kv_heads: int, most_kept: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu_attention, "_QUERY_BLOCK", 8)
    monkeypatch.setattr(cpu_attention, "_MAX_KEPT_SCORES", most_kept)
    results = []
    for attend in (attend_by_products, attend_causal):
        inputs = [t.requires_grad_() for t in _qkv(4, kv_heads, (3, 29))]
        out = attend(*inputs)
        results.append((out, *torch.autograd.grad(out, inputs, out.detach().cos())))
    for products, fused in zip(*results, strict=True):
        # The products sum the gradients of keys and values in fp32.
        torch.testing.assert_close(products, fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [10, 600])
def test_bf16_on_a_cpu_is_as_near_as_its_rounding(length: int):
    inputs = [t.requires_grad_() for t in _qkv(4, 2, (1, length), torch.float32)]
    low = [t.detach().bfloat16().requires_grad_() for t in inputs]
    exact, rounded = attend_causal(*inputs), attend_causal(*low)
    exact.square().sum().backward()
    rounded.float().square().sum().backward()
    pairs = [(exact, rounded), *((t.grad, u.grad) for t, u in zip(inputs, low, strict=True))]
    for want, got in pairs:
        assert (want - got.float()).norm() / want.norm() < 0.02
