"""Sizes of a released network, read off its tensors and compared with its configuration.

A release may come without a configuration, so the tensors decide wherever they can; a stated value
that they contradict is an error. What tensors do not show (the groups of a norm) is taken from the
configuration, else from the authors' code.

    >>> network_sizes(shapes, stated).ch_mult
    (1, 1, 2, 2, 4)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mgpt.errors import CheckpointError
from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = ["Shapes", "check_stated", "count", "network_sizes", "num_groups"]

Shapes = Mapping[str, tuple[int, ...]]
GROUPS = 32  # of every norm in released models, fixed in their code
_RESOLUTION = 256  # nominal; the levels with attention are named by their sides at this one


@dataclass(frozen=True)
class _Names:
    """Where a network keeps what sizes are read from."""

    level: str = "encoder.down"
    block: str = "block"


CHAMELEON = _Names()
LLAMAGEN = _Names("encoder.conv_blocks", "res")


def network_sizes(
    shapes: Shapes, stated: Mapping[str, Any], names: _Names = CHAMELEON, groups: int = GROUPS
) -> VqganConfig:
    """Sizes of a network of residual levels, its codebook's from `embed_dim` and `n_embed`.

    Raises CheckpointError where tensors are missing, or contradict the configuration.
    """
    try:
        ch = shapes["encoder.conv_in.weight"][0]
        levels = count(shapes, names.level)
        widths = [
            shapes[f"{names.level}.{i}.{names.block}.0.conv1.weight"][0] for i in range(levels)
        ]
        with_attention = [i for i in range(levels) if count(shapes, f"{names.level}.{i}.attn")]
        codebook = shapes.get("quantize.embedding.weight", (1, 1))
        sizes = VqganConfig(
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            num_res_blocks=count(shapes, f"{names.level}.0.{names.block}"),
            attn_resolutions=tuple(_RESOLUTION // 2**i for i in with_attention),
            resolution=_RESOLUTION,
            z_channels=shapes["encoder.conv_out.weight"][0],
            in_channels=shapes["encoder.conv_in.weight"][1],
            out_ch=shapes["decoder.conv_out.weight"][0],
            n_embed=codebook[0],
            embed_dim=codebook[1],
            num_groups=num_groups(stated, groups),
        )
    except KeyError as error:
        raise CheckpointError(f"the weights have no tensor {error.args[0]}") from error
    stated_sides = stated.get("attn_resolutions")
    if isinstance(stated_sides, list) and isinstance(stated.get("resolution"), int):
        sides = [stated["resolution"] // 2**i for i in range(levels)]
        at = [i for i, side in enumerate(sides) if side in stated_sides]
        if at != with_attention:
            raise CheckpointError(
                f"the configuration puts attention at levels {at}, the weights have it at "
                f"{with_attention}; they are of two models"
            )
    own = {name: getattr(sizes, name) for name in ("ch", "num_res_blocks", "z_channels")}
    own |= {"ch_mult": list(sizes.ch_mult)}
    if "quantize.embedding.weight" in shapes:
        own |= {"n_embed": sizes.n_embed, "embed_dim": sizes.embed_dim}
    check_stated(stated, own)
    return sizes


def check_stated(stated: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises CheckpointError that names every stated value which the weights contradict."""
    differ = [
        f"{name} is {stated[name]} in the configuration and {value} in the weights"
        for name, value in own.items()
        if name in stated and stated[name] != value
    ]
    if differ:
        raise CheckpointError(f"{'; '.join(differ)}: the files are of two models")


def num_groups(stated: Mapping[str, Any], default: int = GROUPS) -> int:
    """Groups of every GroupNorm."""
    value = stated.get("num_groups", default)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"num_groups={value!r} in the configuration is no count")
    return value


def count(names: Iterable[str], prefix: str) -> int:
    """How many modules a list has: the numbers after `prefix.` in names of tensors."""
    start = f"{prefix}."
    return len({n[len(start) :].split(".")[0] for n in names if n.startswith(start)})
