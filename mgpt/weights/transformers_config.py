"""transformers' `config.json` of Chameleon and our sizes, each from the other.

What the configuration may say and this software cannot do (biases, another activation, scaled
rotary angles) is refused with both values, never dropped.

    >>> source = read_config(Path("chameleon-7b"))
    >>> source.sizes(QkLayout("group", 1)).hidden
    4096
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgpt.errors import CheckpointError, ConfigError, MgptError
from mgpt.models.transformer_config import TransformerConfig
from mgpt.tokenizers.vqgan_config import VqganConfig
from mgpt.weights.qk_norm import QkLayout

__all__ = ["CONFIG", "SourceConfig", "is_chameleon_config", "read_config", "transformers_config"]

CONFIG = "config.json"
# Lumina-mGPT keeps the name too.
MODEL_TYPES = ("chameleon",)

# Ours → (transformers' name, its default).
SIZES: dict[str, tuple[str, Any]] = {
    "hidden": ("hidden_size", 4096),
    "ffn": ("intermediate_size", 11008),
    "layers": ("num_hidden_layers", 32),
    "heads": ("num_attention_heads", 32),
    "vocab_size": ("vocab_size", 65536),
    "max_positions": ("max_position_embeddings", 4096),
    "norm_eps": ("rms_norm_eps", 1e-5),
}
VQ_SIZES: dict[str, tuple[str, Any]] = {
    "ch": ("base_channels", 128),
    "ch_mult": ("channel_multiplier", (1, 1, 2, 2, 4)),
    "num_res_blocks": ("num_res_blocks", 2),
    "attn_resolutions": ("attn_resolutions", None),
    "z_channels": ("latent_channels", 256),
    "in_channels": ("in_channels", 3),
    "resolution": ("resolution", 512),
    "double_z": ("double_latent", False),
    "dropout": ("dropout", 0.0),
    "embed_dim": ("embed_dim", 256),
    "n_embed": ("num_embeddings", 8192),
}
# transformers' name → the only values that this software computes the same.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "rope_scaling": (None,),
}
# transformers' VQ encoder has 32 groups in every norm and attention in the middle.
VQ_GROUPS = 32
# Key of our own in an exported configuration: by head or by group, which rows cannot always tell.
LAYOUT_KEY = "qk_norm_layout"
# Another: the fingerprint of the VQGAN whose codes the weights know.
VQ_KEY = "vq_fingerprint"


@dataclass(frozen=True)
class SourceConfig:
    """A parsed and checked `config.json`."""

    path: Path
    content: Mapping[str, Any]

    @property
    def heads(self) -> int:
        return int(self._value(*SIZES["heads"]))

    @property
    def kv_heads(self) -> int:
        return int(self.content.get("num_key_value_heads") or self.heads)

    @property
    def groups_hint(self) -> int:
        return int(self.content.get("model_parallel_size") or 1)

    @property
    def stated_layout(self) -> QkLayout | None:
        """What our own export says of its qk-norm; None in any other configuration."""
        kind = self.content.get(LAYOUT_KEY)
        if kind is None:
            return None
        return QkLayout("head" if kind == "head" else "group", self.groups_hint)

    @property
    def vq_fingerprint(self) -> str | None:
        """The VQGAN that our own export names; None where it is not known."""
        return self.content.get(VQ_KEY)

    @property
    def states_vq(self) -> bool:
        """Whether this is our own export, which says which VQGAN it is, or that none is known."""
        return VQ_KEY in self.content

    @property
    def is_tied(self) -> bool:
        return bool(self.content.get("tie_word_embeddings", False))

    @property
    def vocabulary_map(self) -> dict[str, int]:
        return dict(self.content.get("vocabulary_map") or {})

    def sizes(self, layout: QkLayout) -> TransformerConfig:
        """Our sizes with this layout of qk-norm. Raises CheckpointError."""
        values = {ours: self._value(*theirs) for ours, theirs in SIZES.items()}
        hidden, heads = values["hidden"], values["heads"]
        try:
            return TransformerConfig(
                **values,
                kv_heads=self.kv_heads,
                head_dim=hidden // heads,
                norm_placement="post" if self.content.get("swin_norm") else "pre",
                qk_norm=layout.qk_norm,
                qk_norm_groups=layout.groups,
                rope_theta=self._rope_theta(),
            )
        except (MgptError, TypeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def vq_sizes(self) -> VqganConfig:
        """Sizes of the VQGAN whose encoder the folder holds. Raises CheckpointError."""
        stored = self.content.get("vq_config") or {}
        if stored.get("attn_type", "vanilla") != "vanilla":
            raise CheckpointError(
                f"{self.path}: vq_config.attn_type is {stored['attn_type']!r}; this software "
                "builds VQGANs with attention in the middle ('vanilla') only"
            )
        values = {ours: stored.get(*theirs) for ours, theirs in VQ_SIZES.items()}
        values["attn_resolutions"] = values["attn_resolutions"] or ()
        try:
            return VqganConfig(**values)
        except (MgptError, TypeError) as error:
            raise CheckpointError(f"{self.path}: vq_config: {error}") from error

    def _value(self, name: str, default: Any) -> Any:
        return self.content.get(name, default)

    def _rope_theta(self) -> float:
        # transformers 5 keeps it among rope_parameters, 4 at the top.
        rope = self.content.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError(
                f"{self.path}: rope_type is {rope['rope_type']!r}; only 'default' is known"
            )
        return float(rope.get("rope_theta", self.content.get("rope_theta", 10_000.0)))


def is_chameleon_config(folder: Path) -> bool:
    """Whether the folder has a config.json of transformers' Chameleon."""
    try:
        content = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") in MODEL_TYPES


def read_config(folder: Path) -> SourceConfig:
    """The folder's configuration.

    Raises CheckpointError where there is none, it is of another model, or it asks for what this
    software does not compute.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}"
        )
    wrong = [
        f"{name} is {content[name]!r}, must be {allowed[0]!r}"
        for name, allowed in FIXED.items()
        if name in content and content[name] not in allowed
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: {'; '.join(wrong)}; no released Chameleon or Lumina-mGPT has this"
        )
    return SourceConfig(path, content)


def transformers_config(
    cfg: TransformerConfig,
    vq_cfg: VqganConfig | None,
    dtype: torch.dtype,
    special: Mapping[str, int | None],
    vocabulary_map: Mapping[str, int],
) -> dict[str, Any]:
    """The `config.json` of an export.

    Args:
        vq_cfg: the VQGAN whose encoder is exported; None leaves transformers' default.
        dtype: of the transformer's tensors, for transformers to load them in.
        special: bos_token_id, pad_token_id, eos_token_id.
        vocabulary_map: token names and ids.

    Raises:
        ConfigError: the model has what transformers' Chameleon has not.
    """
    problems = []
    if cfg.heads * cfg.head_dim != cfg.hidden:
        problems.append(f"heads x head_dim is {cfg.heads * cfg.head_dim}, not hidden={cfg.hidden}")
    if cfg.qk_norm == "none":
        problems.append("qk_norm=none, and Chameleon always has qk-norm")
    if cfg.axial_rope_dims:
        problems.append(
            f"axial_rope_dims={cfg.axial_rope_dims}, and Chameleon rotates by position alone"
        )
    if vq_cfg is not None and vq_cfg.num_groups != VQ_GROUPS:
        problems.append(
            f"the VQGAN's norms have {vq_cfg.num_groups} groups, and transformers' have "
            f"{VQ_GROUPS}: set with_vq=false to leave it out of the transformers folder"
        )
    if problems:
        raise ConfigError(f"not a model that transformers' Chameleon can be: {'; '.join(problems)}")
    config = {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        **{theirs: getattr(cfg, ours) for ours, (theirs, _) in SIZES.items()},
        "num_key_value_heads": cfg.kv_heads,
        "swin_norm": cfg.norm_placement == "post",
        "model_parallel_size": cfg.qk_norm_groups,
        LAYOUT_KEY: cfg.qk_norm,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": str(dtype).removeprefix("torch."),
        **special,
        "vocabulary_map": dict(vocabulary_map),
    }
    if vq_cfg is not None:
        sizes = {theirs: getattr(vq_cfg, ours) for ours, (theirs, _) in VQ_SIZES.items()}
        config["vq_config"] = {
            "model_type": "chameleon_vqgan",
            **sizes,
            "channel_multiplier": list(vq_cfg.ch_mult),
            "attn_resolutions": list(vq_cfg.attn_resolutions) or None,
            "attn_type": "vanilla",
        }
    return config
