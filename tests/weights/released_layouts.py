"""Small models written in the released layouts, by hand: no code of the package is used to write.

Imported, it makes folders as transformers, Lumina-mGPT and Meta publish them.

    write_transformers(folder, cfg, state, by="head", files=3)
    write_meta(folder, cfg, state, shards=4, fused=True)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig

SMALL = TransformerConfig(
    hidden=64,
    ffn=96,
    layers=2,
    heads=8,
    kv_heads=4,
    head_dim=8,
    vocab_size=96,
    norm_placement="post",
    qk_norm_groups=4,
    max_positions=128,
)
State = dict[str, Tensor]


def random_state(cfg: TransformerConfig, dtype: torch.dtype = torch.bfloat16) -> State:
    """Weights of which none is at its initial value and no two are alike."""
    model = Transformer(cfg)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    return {
        name: (t + 0.1 * torch.randn(t.shape, generator=generator)).to(dtype)
        for name, t in model.state_dict().items()
    }


def repeated_state(cfg: TransformerConfig) -> State:
    """bf16 weights of a large model at little cost: the same draws again and again."""
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in Transformer(cfg).state_dict().items()}
    drawn = torch.randn(max(shape.numel() for shape in shapes.values()) // 64).bfloat16()
    return {
        name: drawn.repeat(-(-shape.numel() // len(drawn)))[: shape.numel()].view(shape).clone()
        for name, shape in shapes.items()
    }


def small(**changes: Any) -> tuple[TransformerConfig, State]:
    """A configuration and its random weights in bf16."""
    cfg = replace(SMALL, **changes)
    return cfg, random_state(cfg)


def transformers_json(cfg: TransformerConfig, **changes: Any) -> dict[str, Any]:
    """config.json in the form of the released folders (transformers 4)."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "hidden_size": cfg.hidden,
        "intermediate_size": cfg.ffn,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "swin_norm": cfg.norm_placement == "post",
        "model_parallel_size": cfg.qk_norm_groups,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **changes,
    }


def write_transformers(
    folder: Path,
    cfg: TransformerConfig,
    state: Mapping[str, Tensor],
    by: str = "head",
    files: int = 3,
    more: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """A transformers folder; by="head" as Chameleon's, by="group" as Lumina-mGPT's."""
    folder.mkdir(parents=True)
    stored = dict(more or {})
    for name, tensor in state.items():
        heads = cfg.heads if ".q_norm." in name else cfg.kv_heads
        is_norm = ".q_norm." in name or ".k_norm." in name
        if is_norm and by == "head":
            tensor = tensor.repeat_interleave(heads // tensor.shape[0], 0)
        stored[name] = tensor.contiguous()
    names = sorted(stored)
    places = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = names[number::files]
        places |= dict.fromkeys(part, file if files > 1 else "model.safetensors")
        save_file({name: stored[name] for name in part}, folder / places[part[0]], {"format": "pt"})
    if files > 1:
        total = sum(t.numel() * t.element_size() for t in stored.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(transformers_json(cfg, **config)))
    return folder


def write_meta(
    folder: Path,
    cfg: TransformerConfig,
    state: Mapping[str, Tensor],
    shards: int = 4,
    fused: bool = True,
) -> Path:
    """Meta's folder: params.json, consolidate_params.json and the shards of each rank.

    Of tensors on the meta device it keeps the shapes, in files of next to nothing.
    """
    folder.mkdir(parents=True)
    for shard in range(shards):
        name = "consolidated.pth" if shards == 1 else f"consolidated.{shard:02d}.pth"
        kept = meta_shard(cfg, state, shard, shards, fused)
        if kept["output.weight"].is_meta:
            kept = {n: torch.zeros((), dtype=t.dtype).expand(t.shape) for n, t in kept.items()}
        torch.save(kept, folder / name)
    model = {
        "dim": cfg.hidden,
        "n_layers": cfg.layers,
        "n_heads": cfg.heads,
        "n_kv_heads": cfg.kv_heads if cfg.kv_heads != cfg.heads else None,
        "vocab_size": cfg.vocab_size,
        "norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "swin_norm": cfg.norm_placement == "post",
        "qk_normalization": cfg.qk_norm != "none",
    }
    (folder / "params.json").write_text(json.dumps({"seed": 1, "model": model}))
    (folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": shards}))
    return folder


def meta_shard(
    cfg: TransformerConfig, state: Mapping[str, Tensor], shard: int, shards: int, fused: bool
) -> State:
    """What model-parallel rank `shard` keeps, in Meta's names and rotary order."""

    def rows(name: str) -> Tensor:
        return state[name].chunk(shards, 0)[shard]

    def columns(name: str) -> Tensor:
        return state[name].chunk(shards, 1)[shard]

    def interleaved(rows_ND: Tensor) -> Tensor:
        split = rows_ND.unflatten(0, (-1, 2, cfg.head_dim // 2))
        return split.transpose(1, 2).reshape(rows_ND.shape)

    kept = {
        "tok_embeddings.weight": columns("model.embed_tokens.weight"),
        "norm.weight": state["model.norm.weight"],
        "output.weight": rows("lm_head.weight"),
        "rope.freqs": torch.ones(cfg.head_dim // 2),
    }
    for layer in range(cfg.layers):
        ours, theirs = f"model.layers.{layer}", f"layers.{layer}"
        q, k, v = (rows(f"{ours}.self_attn.{letter}_proj.weight") for letter in "qkv")
        w1, w3 = (rows(f"{ours}.mlp.{name}_proj.weight") for name in ("gate", "up"))
        parts = {"wq": interleaved(q), "wk": interleaved(k), "wv": v}
        attention, feed_forward = f"{theirs}.attention", f"{theirs}.feed_forward"
        if fused:
            kept[f"{attention}.wqkv.weight"] = torch.cat(list(parts.values()))
            kept[f"{feed_forward}.w13.weight"] = torch.cat([w1, w3])
        else:
            kept |= {f"{attention}.{name}.weight": part for name, part in parts.items()}
            kept |= {f"{feed_forward}.w1.weight": w1, f"{feed_forward}.w3.weight": w3}
        kept[f"{attention}.wo.weight"] = columns(f"{ours}.self_attn.o_proj.weight")
        kept[f"{feed_forward}.w2.weight"] = columns(f"{ours}.mlp.down_proj.weight")
        kept[f"{theirs}.attention_norm.weight"] = state[f"{ours}.input_layernorm.weight"]
        kept[f"{theirs}.ffn_norm.weight"] = state[f"{ours}.post_attention_layernorm.weight"]
        for letter in "qk" if cfg.qk_norm != "none" else "":
            for part in ("weight", "bias"):
                norm = state[f"{ours}.self_attn.{letter}_norm.{part}"][shard]
                kept[f"{attention}.{letter}_normalization.{part}"] = interleaved(norm)
    return {name: tensor.clone() for name, tensor in kept.items()}


def vq_json(cfg: VqganConfig) -> dict[str, Any]:
    """`vq_config` of a transformers folder."""
    return {
        "base_channels": cfg.ch,
        "channel_multiplier": list(cfg.ch_mult),
        "num_res_blocks": cfg.num_res_blocks,
        "latent_channels": cfg.z_channels,
        "embed_dim": cfg.embed_dim,
        "num_embeddings": cfg.n_embed,
        "attn_resolutions": list(cfg.attn_resolutions) or None,
    }


def write_meta_vqgan(folder: Path, model: Vqgan) -> Path:
    """Meta's vqgan.yaml and vqgan.ckpt."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict()}, folder / "vqgan.ckpt")
    write_vqgan_yaml(folder, model.cfg)
    return folder


def write_vqgan_yaml(folder: Path, cfg: VqganConfig, **ddconfig: object) -> None:
    """vqgan.yaml, with changes to what it says of the layers."""
    sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(cfg).items()}
    del sizes["num_groups"]
    around = {name: sizes.pop(name) for name in ("embed_dim", "n_embed")}
    params = {**around, "ddconfig": sizes | ddconfig}
    content = {"model": {"base_learning_rate": 4.5e-6, "params": params}}
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(content))
