"""IBQ: Emu3.5's vision tokenizer and SEED-Voken's; Chameleon's network, another choice of codes.

The code of a latent is the codebook row with the largest inner product, whatever the row's length.
SEED-Voken's files hold the weights twice: the averaged ones are the model.

    >>> load_tokenizer("Emu3.5-VisionTokenizer").num_codes
    131072
"""

from collections.abc import Mapping
from typing import Any

import torch

from mgpt.tokenizers.released_sizes import Shapes, check_stated, network_sizes
from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tokenizers.vqgan_config import VqganConfig

__all__ = ["Ibq"]


class Ibq(Vqgan):
    """Tokenizers by index backpropagation quantization."""

    family = "ibq"
    title = "IBQ tokenizer"
    encode_dtypes = (torch.float32,)

    @property
    def multiple_px(self) -> int:
        return self.downsample

    @classmethod
    def recognises(cls, shapes: Shapes, stated: Mapping[str, Any]) -> bool:
        """By what the configuration says; without one, by attention at the lowest level.

        Names and shapes are otherwise those of any VQGAN of Chameleon's kind.
        """
        if not {"encoder.down.0.block.0.conv1.weight", "decoder.norm_out.weight"} <= shapes.keys():
            return False
        if "quantize.embedding.weight" not in shapes or "quant_conv.weight" not in shapes:
            return False
        named = f"{stated.get('model_type', '')} {stated.get('class_path', '')}".lower()
        if "ibq" in named or "emu3p5" in named or "use_entropy_loss" in stated:
            return True
        return (
            not named.strip()
            and "target" not in stated
            and any(name.startswith("encoder.down.") and ".attn." in name for name in shapes)
        )

    @classmethod
    def read_config(cls, shapes: Shapes, stated: Mapping[str, Any]) -> VqganConfig:
        sizes = network_sizes(shapes, stated)
        check_stated(stated, {"codebook_size": sizes.n_embed, "l2_normalize": False})
        return sizes.with_quantizer("ibq")
