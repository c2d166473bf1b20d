"""Which rule updates which parameter, what decays, and the bits of PyTorch's own AdamW."""

import copy

import pytest
import torch
from torch import nn

from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.optim.config import OptimConfig, is_decayed

SIZE = TransformerConfig(
    hidden=32, ffn=48, layers=1, heads=2, kv_heads=2, head_dim=16, vocab_size=50, qk_norm_groups=2
)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_are_decayed(kind: str) -> None:
    named = dict(Transformer(SIZE).named_parameters())
    groups = OptimConfig(kind=kind, weight_decay=0.3).groups(named.items())
    decay = {name: group.weight_decay for group in groups for name in group.names}
    assert decay.keys() == named.keys()
    assert {name for name in decay if decay[name] == 0.0} == {n for n in named if "norm" in n}
    assert named["model.layers.0.self_attn.q_norm.weight"].ndim == 2
    assert decay["lm_head.weight"] == decay["model.embed_tokens.weight"] == 0.3


@pytest.mark.parametrize(
    ("name", "ndim", "decayed"),
    [("a.q_proj.weight", 2, True), ("a.q_norm.weight", 2, False), ("model.norm.weight", 1, False)],
)
def test_decay_rule(name: str, ndim: int, decayed: bool) -> None:
    assert is_decayed(name, ndim) is decayed


def test_muon_takes_the_matrices_inside_the_blocks() -> None:
    cfg = OptimConfig(kind="muon", lr=2e-3, adamw_lr=1e-3)
    model = Transformer(SIZE)
    groups = cfg.groups(model.named_parameters())
    ratios = {group.rule.by: group.lr_ratio for group in groups}
    assert ratios == {"matrix": 1.0, "rows": 0.5}
    taken = {name for group in groups if group.rule.by == "matrix" for name in group.names}
    assert taken == {name for name, _ in model.named_parameters() if name.endswith("_proj.weight")}
    assert len(taken) == 7
    assert cfg.state_names("model.layers.0.mlp.up_proj.weight", (48, 32)) == ("momentum",)
    assert cfg.state_names("lm_head.weight", (50, 32)) == ("exp_avg", "exp_avg_sq")


def test_state_that_is_declared_is_what_is_kept() -> None:
    model = Transformer(SIZE)
    named = list(model.named_parameters())
    shapes = [(name, parameter.shape) for name, parameter in named]
    for cfg in (OptimConfig(), OptimConfig(kind="muon", ema_decay=0.9)):
        state = cfg.build(named).state
        assert {name: tuple(state[name]) for name in state} == {
            name: cfg.state_names(name, shape) for name, shape in shapes
        }
        kept = sum(tensor.numel() for tensors in state.values() for tensor in tensors.values())
        assert kept == cfg.state_numel(shapes)
    assert OptimConfig().state_numel(shapes) == 2 * model.num_parameters


def test_adamw_has_the_bits_of_pytorchs_own() -> None:
    ours, theirs = (nn.Linear(24, 40) for _ in range(2))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    cfg = OptimConfig(lr=1e-2, weight_decay=0.3, eps=1e-6)
    optimizer = cfg.build((f"layer.{name}", p) for name, p in ours.named_parameters())
    reference = torch.optim.AdamW(
        [
            {"params": [theirs.weight], "weight_decay": 0.3},
            {"params": [theirs.bias], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=cfg.betas,
        eps=cfg.eps,
        fused=True,
    )
    for step in range(5):
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().mean().backward()
        optimizer.step(cfg.lr)
        reference.step()
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    moments = reference.state[theirs.weight]
    assert all(torch.equal(optimizer.state["layer.weight"][key], moments[key])
               for key in ("exp_avg", "exp_avg_sq"))  # fmt: skip


def test_a_rate_of_zero_moves_nothing() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = OptimConfig(lr=0.5).build([("layer.weight", parameter)])
    parameter.grad = torch.ones(2, 2)
    optimizer.step(0.0)
    assert torch.equal(parameter, torch.ones(2, 2)) and optimizer.num_updates == 1


def test_the_average_follows_the_weights() -> None:
    """Also those that never train; its decay rises, so that the first weights fade soon."""
    trained, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.full((2,), 5.0))
    optimizer = OptimConfig(lr=0.1, weight_decay=0.0, ema_decay=0.5).build(
        [("a.norm.weight", trained), ("b.norm.weight", frozen)]
    )
    expected = None
    for count in range(1, 13):
        trained.grad = torch.randn(3, generator=torch.Generator().manual_seed(count))
        optimizer.step(0.1)
        decay = 0.0 if count == 1 else min(0.5, (1 + count) / (10 + count))
        before = torch.zeros(3) if expected is None else expected
        expected = decay * before + (1 - decay) * trained.detach()
        torch.testing.assert_close(optimizer.state["a.norm.weight"]["ema"], expected)
    assert torch.equal(optimizer.state["b.norm.weight"]["ema"], frozen.detach())


@pytest.mark.parametrize(
    "field",
    [
        {"kind": "sgd"},
        {"lr": 0.0},
        {"adamw_lr": 1.5},
        {"betas": (0.9, 1.0)},
        {"momentum": 1.0},
        {"newton_schulz_steps": 0},
        {"update_scale": 0.0},
        {"max_norm": -1.0},
        {"ema_decay": 1.0},
    ],
)
def test_settings_are_checked(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        OptimConfig(**field)
