"""The sizes of a transformer, checked; apart from the model so that its parts can know them too.

>>> cfg = TransformerConfig(hidden=64, ffn=192, layers=2, heads=4, kv_heads=2, head_dim=16)
>>> cfg.vocab_size
65536
"""

from dataclasses import dataclass
from typing import Literal

from mgpt.errors import ConfigError

__all__ = ["TransformerConfig"]

_QK_NORMS = ("group", "head", "none")


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer; `mgpt.models.sizes` names the common ones."""

    hidden: int
    """Width of the residual stream."""
    ffn: int
    """Width inside the SwiGLU."""
    layers: int
    heads: int
    """Query heads."""
    kv_heads: int
    """Key-value heads, each shared by heads / kv_heads query heads."""
    head_dim: int
    vocab_size: int = 65_536
    norm_placement: Literal["pre", "post"] = "pre"
    """Before each branch, or after it and before the residual add (`swin_norm`)."""
    qk_norm: Literal["group", "head", "none"] = "group"
    """One (weight, bias) a group of heads, one a head, or no qk-norm."""
    qk_norm_groups: int = 1
    """Groups of heads when `qk_norm` is "group": Meta's model-parallel size."""
    rope_theta: float = 10_000.0
    axial_rope_dims: int = 0
    """Dimensions of each head that rotate by the line of a code in its picture, and as many by its
    column; the others rotate by position. 0: all by position, as in the released models."""
    norm_eps: float = 1e-5
    dropout: float = 0.0
    """Share of attention and MLP outputs zeroed before the residual add, while training."""
    max_positions: int = 4096
    """Longest document in tokens."""
    begin_image_id: int | None = None
    """Ids of the vocabulary by which `axial_rope_dims` finds pictures; None without it."""
    end_line_id: int | None = None
    end_image_id: int | None = None

    def __post_init__(self) -> None:
        counts = ("hidden", "ffn", "layers", "heads", "kv_heads", "head_dim", "vocab_size")
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in (*counts, "qk_norm_groups", "max_positions")
            if getattr(self, name) < 1
        ]
        if self.head_dim % 2:
            problems.append(f"head_dim={self.head_dim} must be even for the rotary embedding")
        if self.axial_rope_dims % 2 or not 0 <= 2 * self.axial_rope_dims < self.head_dim:
            problems.append(
                f"axial_rope_dims={self.axial_rope_dims} must be even and below half of"
                f" head_dim={self.head_dim}"
            )
        if not problems and self.heads % self.kv_heads:
            problems.append(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.qk_norm == "group" and not problems:
            problems += [
                f"{name}={getattr(self, name)} must be a multiple of"
                f" qk_norm_groups={self.qk_norm_groups}"
                for name in ("heads", "kv_heads")
                if getattr(self, name) % self.qk_norm_groups
            ]
        for name, known in (("norm_placement", ("pre", "post")), ("qk_norm", _QK_NORMS)):
            if getattr(self, name) not in known:
                problems.append(f"{name}={getattr(self, name)!r} must be one of {known}")
        if not 0.0 <= self.dropout < 1.0:
            problems.append(f"dropout={self.dropout} must be at least 0 and below 1")
        if problems:
            raise ConfigError("transformer: " + "; ".join(problems))
