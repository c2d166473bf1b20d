"""What blocks keep and make again, and that none of it changes a bit."""

import functools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.parallel import recompute
from mgpt.parallel.recompute import blocks_of, compile_blocks, recompute_blocks
from mgpt.plan.live_bytes import LiveBytes

PRE = TransformerConfig(
    hidden=64, ffn=160, layers=3, heads=4, kv_heads=2, head_dim=16, vocab_size=96, dropout=0.2
)
SIZES = {
    "pre": PRE,
    "post": replace(PRE, norm_placement="post"),
    "no dropout": replace(PRE, dropout=0.0),
}
PRODUCTS_OF_A_BLOCK = 7


class Products(TorchDispatchMode):
    """Counts matrix products and attention calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def model_of(size: str, what: str) -> Transformer:
    model = Transformer(SIZES[size])
    model.init_weights(0)
    recompute_blocks(model, sharding_plan(model), what)
    return model


def batch() -> tuple[Tensor, Tensor]:
    ids_BT = torch.randint(0, 96, (2, 48), generator=torch.Generator().manual_seed(0))
    return ids_BT, torch.arange(48).repeat(2, 1) % 24


def passes(model: Transformer) -> tuple[dict[str, Tensor], int, Counter[str]]:
    """Gradients, bytes alive between the passes, and calls in the backward pass."""
    ids_BT, positions_BT = batch()
    torch.manual_seed(1)
    with LiveBytes(model.parameters()) as counter:
        sums = model.training_sums(ids_BT, positions_BT, ids_BT)
        alive = counter.live
    with Products() as products:
        sums.loss_sum.backward()
    return {name: p.grad for name, p in model.named_parameters()}, alive, products.calls


@pytest.mark.parametrize("size", ["pre", "post"])
def test_less_is_kept_and_no_bit_changes(size: str) -> None:
    found = {what: passes(model_of(size, what)) for what in ("none", "selective", "full")}
    plain, _, _ = found["none"]
    for gradients, _, _ in found.values():
        for name, gradient in plain.items():
            assert torch.equal(gradients[name], gradient), name
    alive = {what: kept for what, (_, kept, _) in found.items()}
    assert alive["full"] < 0.5 * alive["selective"] and alive["selective"] < 0.75 * alive["none"]


def test_selective_makes_no_product_again() -> None:
    products = {
        what: Counter(passes(model_of("post", what))[2]) for what in ("none", "selective", "full")
    }
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert products["selective"]["aten::mm"] == products["none"]["aten::mm"]
    assert products["selective"][attention] == products["none"][attention] == 0
    again = products["full"]["aten::mm"] - products["none"]["aten::mm"]
    assert again == PRODUCTS_OF_A_BLOCK * PRE.layers
    assert products["full"][attention] > 0


def test_the_head_is_no_block() -> None:
    model = Transformer(PRE)
    assert list(blocks_of(model, sharding_plan(model))) == list(model.blocks)


@pytest.mark.parametrize("what", ["none", "selective", "full"])
def test_blocks_are_compiled_once(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of compiling but the making of machine code, which takes long, and is also what puts the
    generator back for a dropout that is made again."""
    seen: list[torch.fx.GraphModule] = []

    def as_it_is(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph)
        return graph.forward

    compile_as_it_is = functools.partial(torch.compile, backend=as_it_is)
    monkeypatch.setattr(recompute.torch, "compile", compile_as_it_is)
    torch._dynamo.reset()
    plain, compiled = model_of("no dropout", "none"), model_of("no dropout", what)
    compile_blocks(compiled, sharding_plan(compiled))
    ids_BT, positions_BT = batch()
    for model in (compiled, plain):
        model.training_sums(ids_BT, positions_BT, ids_BT).loss_sum.backward()
    assert len(seen) == 1, "blocks are alike: one graph, without a break, serves them all"
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        near = 1e-5 * float(other.grad.abs().max())
        torch.testing.assert_close(one.grad, other.grad, atol=near, rtol=0)
