"""The planner's activations against those of the model itself on a CPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mgpt.models import cpu_attention, head_loss
from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.parallel.recompute import recompute_blocks
from mgpt.plan.activations import trace
from mgpt.plan.live_bytes import LiveBytes

TOKENS, DOCUMENT = 1024, 256
PRE = TransformerConfig(
    hidden=128, ffn=352, layers=3, heads=4, kv_heads=2, head_dim=32, vocab_size=1024
)
POST = replace(PRE, norm_placement="post", qk_norm_groups=2)
DROPOUT = replace(PRE, dropout=0.1)
CASES = [
    (PRE, torch.float32, "none"),
    (POST, torch.float32, "full"),
    (DROPOUT, torch.float32, "none"),
    (PRE, torch.bfloat16, "full"),
    (PRE, torch.float32, "selective"),
    (POST, torch.bfloat16, "selective"),
    (POST, torch.bfloat16, "none"),
]
NEAR = 0.05  # what a plan promises


@pytest.fixture(autouse=True)
def one_way_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel in bfloat16 too, and chunks of the loss as large as on the meta device."""
    monkeypatch.setattr(cpu_attention, "_TYPES", ())
    monkeypatch.setattr(head_loss, "_CHUNK_LOGITS", {"cpu": 1 << 16, "cuda": 1 << 16})
    trace.cache_clear()


def model_of(cfg: TransformerConfig, dtype: torch.dtype, recompute: str) -> Transformer:
    model = Transformer(cfg)
    model.init_weights(0)
    model.to(dtype)
    recompute_blocks(model, sharding_plan(model), recompute)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    return model


def batch() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 1024, (1, TOKENS)), torch.arange(TOKENS)[None] % DOCUMENT


@pytest.mark.parametrize("cfg", [PRE, POST, DROPOUT])
def test_what_autograd_saves_is_what_is_kept(cfg: TransformerConfig) -> None:
    """Counted by another way than the planner's: autograd's own hooks."""
    model = model_of(cfg, torch.float32, "none")
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(*batch())
    measured = sum(storage.nbytes() for storage in saved.values())
    planned = trace(cfg, 1, TOKENS, torch.float32, device="cpu").kept_bytes
    assert planned == pytest.approx(measured, rel=NEAR)


@pytest.mark.parametrize(("cfg", "dtype", "recompute"), CASES)
def test_the_peak_of_a_pass_is_the_planned_one(
    cfg: TransformerConfig, dtype: torch.dtype, recompute: str
) -> None:
    model = model_of(cfg, dtype, recompute)
    ids_BT, positions_BT = batch()
    with LiveBytes([*model.parameters(), ids_BT, positions_BT]) as counter:
        model.training_sums(ids_BT, positions_BT, ids_BT, 1e-5).loss_sum.backward()
    planned = trace(cfg, 1, TOKENS, dtype, recompute, device="cpu")
    total = planned.kept_bytes + max(planned.loss_bytes, planned.backward_bytes)
    assert total == pytest.approx(counter.peak, rel=NEAR)


def test_layers_beyond_the_second_are_like_it() -> None:
    kept = [trace(replace(PRE, layers=n), 1, TOKENS, torch.float32).kept_bytes for n in (2, 3, 9)]
    assert kept[2] - kept[1] == 6 * (kept[1] - kept[0]) > 0


def test_a_head_alone_keeps_nothing_of_the_blocks() -> None:
    head = trace(PRE, 1, TOKENS, torch.float32, head_only=True)
    assert head.backward_bytes == 0
    assert head.kept_bytes < trace(PRE, 1, TOKENS, torch.float32).kept_bytes / 20
