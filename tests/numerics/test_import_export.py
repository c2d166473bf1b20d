"""Imported and exported weights compute what they did where they came from.

transformers' own model is the reference for its folders. Meta's checkpoints are held against a
plain forward pass over its shards as they are stored: one rank after another, pairs of neighbouring
dimensions turned together, partial sums of the ranks added.
"""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "weights"))
from released_layouts import SMALL, random_state, small, vq_json, write_meta, write_transformers
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.utils import logging as transformers_logging

from mgpt.models.folder import load_model, save_model
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.stages.released import plan_import
from mgpt.stages.transformers_export import plan_export
from mgpt.tokenizers.folder import save_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.weights.meta import plan_meta

VQ = VqganConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=32, embed_dim=32, n_embed=16)
TOKENS = 24
# Sums of 64 products in fp32, in another order; logits are of size 1.
TOLERANCE = 1e-5


def logits_of(model: Transformer, ids_BT: Tensor) -> Tensor:
    positions_BT = torch.arange(ids_BT.shape[1])[None].expand_as(ids_BT)
    with torch.no_grad():
        return model.head.logits(model(ids_BT, positions_BT))


def reference_logits(model: ChameleonForConditionalGeneration, ids_BT: Tensor) -> Tensor:
    """Without the mask over image tokens that transformers' own forward puts on."""
    with torch.no_grad():
        return model.lm_head(model.model(ids_BT).last_hidden_state)


def ids(vocab_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, vocab_size, (2, TOKENS), generator=generator)


def load_quietly(folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple:
    """from_pretrained, which must neither warn nor report a name."""
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = ChameleonForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True
        )
    said = capfd.readouterr()
    assert said.err == said.out == ""
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("files", ["10GB", "60KB"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_saved_by_transformers(
    tmp_path: Path, swin_norm: bool, files: str, tied: bool
) -> None:
    torch.manual_seed(0)
    theirs = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            swin_norm=swin_norm,
            tie_word_embeddings=tied,
            vq_config=vq_json(VQ),
            vocabulary_map={"<image>": 3},
        )
    ).eval()
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == tied
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "hf", max_shard_size=files)
    planned = plan_import(tmp_path / "hf")
    assert planned.plan is not None and planned.plan.vq is not None
    planned.write(tmp_path / "ours")
    ours = load_model(tmp_path / "ours")
    assert ours.cfg.qk_norm == "head" and ours.cfg.norm_placement == (
        "post" if swin_norm else "pre"
    )
    got, want = logits_of(ours, ids(97)), reference_logits(theirs, ids(97))
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_an_export_loads_in_transformers_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], groups: int, placement: str
) -> None:
    cfg, _ = small(qk_norm_groups=groups, norm_placement=placement)
    save_model(tmp_path / "ours", cfg, random_state(cfg, torch.float32))
    torch.manual_seed(0)
    vq = Vqgan(VQ).eval()
    save_tokenizer(vq, tmp_path / "vq")
    plan_export(tmp_path / "ours", str(tmp_path / "vq")).write(tmp_path / "out")
    theirs = load_quietly(tmp_path / "out", capfd)
    got = logits_of(load_model(tmp_path / "ours"), ids(cfg.vocab_size))
    want = reference_logits(theirs, ids(cfg.vocab_size))
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        codes = theirs.model.vqmodel.encode(pixels, return_dict=True).image_tokens
    assert torch.equal(codes.view(1, 16, 16), vq.encode(pixels))


def test_transformers_keeps_bf16(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cfg, state = small()
    save_model(tmp_path / "ours", cfg, state)
    save_tokenizer(Vqgan(VQ), tmp_path / "vq")
    plan_export(tmp_path / "ours", str(tmp_path / "vq")).write(tmp_path / "out")
    theirs = load_quietly(tmp_path / "out", capfd)
    assert theirs.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(theirs.lm_head.weight, state["lm_head.weight"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("shards", "placement"), [(1, "pre"), (4, "post")])
def test_metas_checkpoint_computes_what_its_ranks_do(
    tmp_path: Path, shards: int, placement: str, fused: bool
) -> None:
    cfg, _ = small(qk_norm_groups=shards, norm_placement=placement, max_positions=4096)
    state = random_state(cfg, torch.float32)
    folder = write_meta(tmp_path / "meta", cfg, state, shards, fused)
    planned = plan_import(folder)
    planned.write(tmp_path / "ours")
    got = logits_of(load_model(tmp_path / "ours"), ids(cfg.vocab_size))
    ranks = [
        torch.load(path, weights_only=True) for path in sorted(folder.glob("consolidated*.pth"))
    ]
    want = torch.stack([_ranks_logits(cfg, ranks, row_T) for row_T in ids(cfg.vocab_size)])
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
    assert plan_meta(folder).cfg == cfg


def test_chameleon_lumina_and_meta_are_one_model(tmp_path: Path) -> None:
    cfg, state = small(max_positions=4096)
    folders = [
        write_transformers(tmp_path / "chameleon", cfg, state, by="head"),
        write_transformers(tmp_path / "lumina", cfg, state, by="group", files=1),
        write_meta(tmp_path / "meta", cfg, state),
    ]
    for folder in folders:
        plan_import(folder).write(tmp_path / "out" / folder.name)
    texts = [(tmp_path / "out" / f.name / "model.safetensors").read_bytes() for f in folders]
    assert texts[0] == texts[1] == texts[2]


def _ranks_logits(cfg: TransformerConfig, ranks: list[dict[str, Tensor]], ids_T: Tensor) -> Tensor:
    """Meta's forward pass: norms of its fp32 weights, ranks one after another."""

    def norm(x_TD: Tensor, name: str) -> Tensor:
        return F.rms_norm(x_TD, (cfg.hidden,), ranks[0][name], cfg.norm_eps)

    x_TD = torch.cat([rank["tok_embeddings.weight"][ids_T] for rank in ranks], -1)
    for layer in range(cfg.layers):
        start = f"layers.{layer}"
        for branch, its_norm in ((_attention, "attention_norm"), (_feed_forward, "ffn_norm")):
            name = f"{start}.{its_norm}.weight"
            inner = x_TD if cfg.norm_placement == "post" else norm(x_TD, name)
            out = sum(branch(cfg, len(ranks), rank, start, inner) for rank in ranks)
            x_TD = x_TD + (norm(out, name) if cfg.norm_placement == "post" else out)
    x_TD = norm(x_TD, "norm.weight")
    return torch.cat([x_TD @ rank["output.weight"].T for rank in ranks], -1)


def _attention(
    cfg: TransformerConfig, num_ranks: int, rank: dict[str, Tensor], start: str, x_TD: Tensor
) -> Tensor:
    heads, kv_heads = cfg.heads // num_ranks, cfg.kv_heads // num_ranks
    name = f"{start}.attention"
    weight = rank.get(f"{name}.wqkv.weight")
    if weight is None:
        weight = torch.cat([rank[f"{name}.{part}.weight"] for part in ("wq", "wk", "wv")])
    sizes = [n * cfg.head_dim for n in (heads, kv_heads, kv_heads)]
    q, k, v = (t.unflatten(-1, (-1, cfg.head_dim)) for t in (x_TD @ weight.T).split(sizes, -1))
    q, k = (
        _turned(
            F.layer_norm(
                t,
                (cfg.head_dim,),
                rank[f"{name}.{letter}_normalization.weight"],
                rank[f"{name}.{letter}_normalization.bias"],
            ),
            cfg.rope_theta,
        )
        for t, letter in ((q, "q"), (k, "k"))
    )
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    out = F.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (q, k, v)), is_causal=True
    )
    return out[0].transpose(0, 1).flatten(1) @ rank[f"{name}.wo.weight"].T


def _turned(x_THK: Tensor, theta: float) -> Tensor:
    """Neighbouring dimensions as complex numbers, turned by position."""
    half = x_THK.shape[-1] // 2
    speed = theta ** -(torch.arange(half).float() / half)
    angle = torch.arange(len(x_THK)).float()[:, None, None] * speed
    turned = torch.view_as_complex(x_THK.unflatten(-1, (half, 2)).contiguous())
    return torch.view_as_real(turned * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def _feed_forward(
    cfg: TransformerConfig, num_ranks: int, rank: dict[str, Tensor], start: str, x_TD: Tensor
) -> Tensor:
    name = f"{start}.feed_forward"
    weight = rank.get(f"{name}.w13.weight")
    if weight is None:
        weight = torch.cat([rank[f"{name}.w1.weight"], rank[f"{name}.w3.weight"]])
    gate, up = (x_TD @ weight.T).chunk(2, -1)
    return (F.silu(gate) * up) @ rank[f"{name}.w2.weight"].T


def test_the_layouts_are_not_alike() -> None:
    """Each of them has to do something: grouped keys, several groups, a turned order."""
    assert SMALL.heads > SMALL.kv_heads > 1 and SMALL.qk_norm_groups > 1 and SMALL.head_dim > 2
