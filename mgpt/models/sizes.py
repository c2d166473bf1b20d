"""The model sizes by name; `vocab_size` is replaced by the vocabulary's when a model is built.

    >>> from dataclasses import replace
    >>> cfg = replace(SIZES["quickstart"], vocab_size=vocabulary.size)

`7b` and `34b` are Chameleon's (FACTS: arXiv 2405.09818 and its released checkpoints).
"""

from mgpt.models.transformer_config import TransformerConfig

__all__ = ["SIZES"]

SIZES: dict[str, TransformerConfig] = {
    "debug": TransformerConfig(
        hidden=64, ffn=192, layers=2, heads=4, kv_heads=2, head_dim=16, vocab_size=512
    ),
    # Documents have a few hundred tokens, over which most frequencies of the released theta of
    # 10,000 hardly rotate; 100 makes neighbouring positions easier to tell apart.
    "quickstart": TransformerConfig(
        hidden=128,
        ffn=384,
        layers=4,
        heads=2,
        kv_heads=2,
        head_dim=64,
        rope_theta=100.0,
        axial_rope_dims=16,
        vocab_size=2048,
    ),
    "1b": TransformerConfig(hidden=2048, ffn=5504, layers=16, heads=16, kv_heads=16, head_dim=128),
    "7b": TransformerConfig(hidden=4096, ffn=11008, layers=32, heads=32, kv_heads=32, head_dim=128),
    "34b": TransformerConfig(
        hidden=8192,
        ffn=22016,
        layers=48,
        heads=64,
        kv_heads=8,
        head_dim=128,
        norm_placement="post",
        qk_norm_groups=4,
    ),
}
