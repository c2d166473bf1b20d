"""The decoder against a plain one written straight from transformers' Chameleon."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgpt.errors import ConfigError
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import RmsNorm, Transformer, TransformerConfig, sharding_plan

LAYOUTS = [
    {},
    {"norm_placement": "post", "qk_norm_groups": 2},
    {"qk_norm": "head"},
    {"qk_norm": "none", "kv_heads": 4},
]


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight * wide.to(x.dtype)


def _head_norm(x_THK: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    if f"{name}.weight" not in weights:
        return x_THK
    repeat = x_THK.shape[1] // weights[f"{name}.weight"].shape[0]
    weight, bias = (weights[f"{name}.{part}"].repeat_interleave(repeat, 0) for part in _PARTS)
    return F.layer_norm(x_THK, x_THK.shape[-1:], None, None, 1e-5) * weight + bias


_PARTS = ("weight", "bias")


def _rotate(x_THK: Tensor) -> Tensor:
    size = x_THK.shape[-1]
    frequencies = 1.0 / 10_000 ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(len(x_THK)).float(), frequencies)
    angles = torch.cat([angles, angles], -1)[:, None]
    cos, sin = angles.cos().to(x_THK.dtype), angles.sin().to(x_THK.dtype)
    turned = torch.cat([-x_THK[..., size // 2 :], x_THK[..., : size // 2]], -1)
    return x_THK * cos + turned * sin


def _attention(cfg: TransformerConfig, weights: Mapping[str, Tensor], at: str, x_TD: Tensor):
    q, k, v = (
        F.linear(x_TD, weights[f"{at}.{name}_proj.weight"]).unflatten(-1, (-1, cfg.head_dim))
        for name in "qkv"
    )
    q = _rotate(_head_norm(q, weights, f"{at}.q_norm"))
    k = _rotate(_head_norm(k, weights, f"{at}.k_norm"))
    k, v = (t.repeat_interleave(cfg.heads // cfg.kv_heads, 1) for t in (k, v))
    scores = torch.einsum("qhk,shk->hqs", q, k) / cfg.head_dim**0.5
    scores += torch.full(scores.shape[1:], -torch.inf, dtype=scores.dtype).triu(1)
    out = torch.einsum("hqs,shk->qhk", scores.softmax(-1), v)
    return F.linear(out.flatten(1), weights[f"{at}.o_proj.weight"])


def plain_chameleon(cfg: TransformerConfig, weights: Mapping[str, Tensor], ids_T: Tensor) -> Tensor:
    """Hidden states [T, D] of one document."""
    x = weights["model.embed_tokens.weight"][ids_T]
    for layer in range(cfg.layers):
        at = f"model.layers.{layer}"
        first = weights[f"{at}.input_layernorm.weight"]
        second = weights[f"{at}.post_attention_layernorm.weight"]

        def mlp(h: Tensor, at: str = f"{at}.mlp") -> Tensor:
            gate = F.silu(F.linear(h, weights[f"{at}.gate_proj.weight"]))
            up = F.linear(h, weights[f"{at}.up_proj.weight"])
            return F.linear(gate * up, weights[f"{at}.down_proj.weight"])

        if cfg.norm_placement == "post":
            x = x + _rms(_attention(cfg, weights, f"{at}.self_attn", x), first)
            x = x + _rms(mlp(x), second)
        else:
            x = x + _attention(cfg, weights, f"{at}.self_attn", _rms(x, first))
            x = x + mlp(_rms(x, second))
    return _rms(x, weights["model.norm.weight"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_are_those_of_plain_chameleon(
    make_transformer: Callable[..., Transformer], layout: dict
):
    model = make_transformer(**layout)
    ids_T = torch.randint(97, (13,), generator=torch.Generator().manual_seed(1))
    hidden_BTD = model(ids_T[None], torch.arange(13)[None])
    expected_TD = plain_chameleon(model.cfg, dict(model.state_dict()), ids_T)
    # Angles are computed in fp32 on both sides; all else is fp64.
    torch.testing.assert_close(hidden_BTD[0], expected_TD, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_plain_chameleon(
    make_transformer: Callable[..., Transformer], layout: dict
):
    model = make_transformer(**layout)
    ids_T = torch.randint(97, (9,), generator=torch.Generator().manual_seed(2))
    probe_TD = torch.randn(9, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (model(ids_T[None], torch.arange(9)[None])[0] * probe_TD).sum().backward()
    weights = {name: t.detach().requires_grad_() for name, t in model.state_dict().items()}
    (plain_chameleon(model.cfg, weights, ids_T) * probe_TD).sum().backward()
    for name, parameter in model.named_parameters():
        if name != "lm_head.weight":
            torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-9, atol=1e-10)


def test_bf16_rounds_where_chameleon_does(make_transformer: Callable[..., Transformer]):
    # One token: attention is then the identity on v, so only the order of casts is left to differ.
    model = make_transformer(dtype=torch.bfloat16, qk_norm_groups=2)
    ids_T = torch.tensor([5])
    with torch.no_grad():
        hidden_BTD = model(ids_T[None], torch.zeros(1, 1, dtype=torch.long))
        expected_TD = plain_chameleon(model.cfg, dict(model.state_dict()), ids_T)
    assert torch.equal(hidden_BTD[0], expected_TD)


def test_rms_norm_casts_before_its_weight():
    norm = RmsNorm(64, 1e-5).bfloat16()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(1.0, 0.3, generator=generator)
    x_BTD = torch.randn(2, 50, 64, generator=generator).bfloat16()
    assert torch.equal(norm(x_BTD), _rms(x_BTD, norm.weight))
    rounded_late = (_rms(x_BTD.float(), norm.weight.float())).bfloat16()
    assert not torch.equal(norm(x_BTD), rounded_late)


def test_state_dict_has_the_names_and_shapes_of_transformers():
    model = Transformer(SIZES["debug"])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layer = {
        "input_layernorm.weight": (64,),
        "post_attention_layernorm.weight": (64,),
        "self_attn.q_proj.weight": (64, 64),
        "self_attn.k_proj.weight": (32, 64),
        "self_attn.v_proj.weight": (32, 64),
        "self_attn.o_proj.weight": (64, 64),
        "self_attn.q_norm.weight": (1, 16),
        "self_attn.q_norm.bias": (1, 16),
        "self_attn.k_norm.weight": (1, 16),
        "self_attn.k_norm.bias": (1, 16),
        "mlp.gate_proj.weight": (192, 64),
        "mlp.up_proj.weight": (192, 64),
        "mlp.down_proj.weight": (64, 192),
    }
    expected = {f"model.layers.{i}.{name}": shape for i in (0, 1) for name, shape in layer.items()}
    expected |= {"model.embed_tokens.weight": (512, 64), "model.norm.weight": (64,)}
    expected |= {"lm_head.weight": (512, 64)}
    assert shapes == expected
    assert all(model.get_submodule(name) is not None for name in sharding_plan(model))
    assert sharding_plan(model) == ["model.layers.0", "model.layers.1", "lm_head"]


@pytest.mark.parametrize(("size", "published"), [("7b", 7_013_142_528), ("34b", 34_293_424_128)])
def test_released_sizes_have_the_published_number_of_parameters(size: str, published: int):
    with torch.device("meta"):
        model = Transformer(replace(SIZES[size], qk_norm="none"))
    assert model.num_parameters == published


def test_initial_weights_depend_on_seed_and_name_only():
    first, second = Transformer(SIZES["debug"]), Transformer(replace(SIZES["debug"], layers=3))
    first.init_weights(7)
    second.init_weights(7)
    shared = first.state_dict()
    for name, tensor in second.state_dict().items():
        if name in shared and not name.endswith(("o_proj.weight", "down_proj.weight")):
            assert torch.equal(tensor, shared[name]), name
    second.init_weights(8)
    assert not torch.equal(second.lm_head.weight, first.lm_head.weight)
    assert first.lm_head.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    down_proj = first.blocks[0].mlp.down_proj.weight  # reads 192 features; 2 layers: sqrt(4) = 2
    assert down_proj.std().item() == pytest.approx(192**-0.5 / 2, rel=0.05)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_dropout_acts_on_both_branches_in_training_only(placement: str):
    cfg = replace(SIZES["debug"], layers=1, dropout=0.5, norm_placement=placement)
    model = Transformer(cfg)
    model.init_weights(0)
    ids_BT, positions_BT = torch.arange(40)[None], torch.arange(40)[None]
    embedded = model.embed(ids_BT)
    streams: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    with torch.no_grad():
        model.eval()(ids_BT, positions_BT)
        model(ids_BT, positions_BT)
        assert torch.equal(streams[0], streams[1])
        model.train()
        torch.manual_seed(0)
        model(ids_BT, positions_BT)
    # The stream is left as it was exactly where both branches were dropped: a quarter.
    untouched = (streams[2] == embedded).float().mean().item()
    assert untouched == pytest.approx(0.25, abs=0.03)


def test_every_mistake_of_a_configuration_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        replace(SIZES["debug"], layers=0, head_dim=15, dropout=1.0, qk_norm="heads")
    for part in ("layers=0", "head_dim=15", "dropout=1.0", "qk_norm='heads'"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="heads=4 must be a multiple of kv_heads=3"):
        replace(SIZES["debug"], kv_heads=3)
    with pytest.raises(ConfigError, match="kv_heads=2 must be a multiple of qk_norm_groups=4"):
        replace(SIZES["debug"], qk_norm_groups=4)


def test_rows_of_codes_start_as_their_codebook_vectors_lie() -> None:
    """Distances of the codebook are those of embedding and head; other rows are as without it."""
    cfg = replace(SIZES["debug"], hidden=64, vocab_size=60)
    generator = torch.Generator().manual_seed(0)
    vectors_NC = 5.0 + torch.randn(20, 4, generator=generator) * torch.tensor([3.0, 1.0, 0.1, 0.1])
    plain, given = Transformer(cfg), Transformer(cfg).start_codes_from(30, vectors_NC)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        drawn, rows = (one.initial_rows(name, (60, 64), (0, 60), 7) for one in (plain, given))
        assert torch.equal(drawn[:30], rows[:30]) and torch.equal(drawn[50:], rows[50:])
        assert rows[30:50].norm(dim=1).mean() == pytest.approx(1.0, abs=0.1)
        from_codebook = rows[30:50] - (1 - 0.9**2) ** 0.5 * drawn[30:50]
        wanted = torch.pdist(vectors_NC)
        found = torch.pdist(from_codebook)
        torch.testing.assert_close(found / found.mean(), wanted / wanted.mean(), rtol=1e-4, atol=0)
        # A rank asks for its own rows alone.
        for start, stop in ((0, 31), (31, 33), (49, 60), (55, 60)):
            assert torch.equal(
                given.initial_rows(name, (60, 64), (start, stop), 7), rows[start:stop]
            )
    name = "model.layers.0.mlp.up_proj.weight"
    shape = (cfg.ffn, 64)
    one, other = (m.initial_rows(name, shape, (0, cfg.ffn), 7) for m in (plain, given))
    assert torch.equal(one, other)


def test_a_codebook_wider_than_the_model_is_projected_down() -> None:
    vectors_NC = torch.randn(20, 256, generator=torch.Generator().manual_seed(0))
    model = Transformer(replace(SIZES["debug"], vocab_size=60)).start_codes_from(0, vectors_NC)
    rows = model.initial_rows("lm_head.weight", (60, 64), (0, 20), 7)
    assert rows.isfinite().all() and rows.norm(dim=1).mean() < 1.1
