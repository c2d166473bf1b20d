"""AdamW: what is decayed, and that it starts at rest."""

import pytest
import torch

from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.train.optim import OptimConfig, is_decayed

SIZE = TransformerConfig(
    hidden=32, ffn=48, layers=1, heads=2, kv_heads=2, head_dim=16, vocab_size=50, qk_norm_groups=2
)


def test_only_matrices_are_decayed() -> None:
    named = dict(Transformer(SIZE).named_parameters())
    optimizer = OptimConfig(weight_decay=0.3).build(named.items())
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decay.keys() == {id(parameter) for parameter in named.values()}
    undecayed = {name for name, parameter in named.items() if decay[id(parameter)] == 0.0}
    assert undecayed == {name for name in named if "norm" in name}
    assert named["model.layers.0.self_attn.q_norm.weight"].ndim == 2
    assert (
        decay[id(named["lm_head.weight"])] == decay[id(named["model.embed_tokens.weight"])] == 0.3
    )


@pytest.mark.parametrize(
    ("name", "ndim", "decayed"),
    [("a.q_proj.weight", 2, True), ("a.q_norm.weight", 2, False), ("model.norm.weight", 1, False)],
)
def test_rule(name: str, ndim: int, decayed: bool) -> None:
    assert is_decayed(name, ndim) is decayed


def test_nothing_moves_before_a_rate_is_set() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = OptimConfig(lr=0.5).build([("layer.weight", parameter)])
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2, 2))


@pytest.mark.parametrize("field", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"max_norm": -1.0}])
def test_settings_are_checked(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        OptimConfig(**field)
