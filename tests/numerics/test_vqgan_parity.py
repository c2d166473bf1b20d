"""The VQGAN's encoder against transformers' `ChameleonVQVAE` with the same weights.

transformers has no decoder. What the released code decodes is in `tests/vectors/vqgan`, held
against in `tests/models/test_vqgan.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ChameleonVQVAE
from transformers.models.chameleon import ChameleonVQVAEConfig

from mgpt.images.pixels import normalise, open_image, whiten
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig

VECTORS = Path(__file__).parents[1] / "vectors" / "vqgan"
# Latents are of size 1. In fp64 only the order of sums is left: 2e-13 at most, measured. In fp32
# the model of the vectors, which was never trained, multiplies roundings up to 2e-4.
FP64_TOLERANCE, FP32_TOLERANCE = 1e-11, 1e-3

CONFIGS = {
    "one level": VqganConfig(ch=32, ch_mult=(1,), z_channels=5, embed_dim=3, n_embed=33),
    "4x, wide levels": VqganConfig(ch=32, ch_mult=(1, 2, 3), z_channels=8, embed_dim=4, n_embed=64),
    "attention in two levels": VqganConfig(
        ch=32,
        ch_mult=(1, 1, 2),
        num_res_blocks=3,
        resolution=64,
        attn_resolutions=(32, 16),
        z_channels=12,
        embed_dim=12,
        n_embed=50,
    ),
    "16x, narrow": VqganConfig(ch=32, num_res_blocks=1, z_channels=16, embed_dim=8, n_embed=512),
}


def reference(model: Vqgan) -> ChameleonVQVAE:
    cfg = model.cfg
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=cfg.embed_dim,
            num_embeddings=cfg.n_embed,
            latent_channels=cfg.z_channels,
            resolution=cfg.resolution,
            base_channels=cfg.ch,
            channel_multiplier=list(cfg.ch_mult),
            num_res_blocks=cfg.num_res_blocks,
            attn_resolutions=list(cfg.attn_resolutions) or None,
        )
    )
    weights = {n: t for n, t in model.state_dict().items() if not n.startswith("decoder.")}
    theirs.load_state_dict(weights, strict=True)
    return theirs.eval()


def random_model(cfg: VqganConfig) -> Vqgan:
    """Convolutions keep the size of what they read; every norm and bias is away from its start."""
    generator = torch.Generator().manual_seed(0)
    model = Vqgan(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if "norm" in name:
                parameter.mul_(0.3).add_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.mul_(0.1)
            elif name != "quantize.embedding.weight":
                parameter.div_(parameter[0].numel() ** 0.5)
    return model


@torch.no_grad()
def assert_equal(model: Vqgan, pixels_B3HW: Tensor) -> Tensor:
    """Latents equal but for rounding, codes equal; returns the codes."""
    theirs = reference(model)
    encoded = theirs.encode(pixels_B3HW)
    codes_Bhw = model.encode(pixels_B3HW)
    assert torch.equal(codes_Bhw, encoded.image_tokens.view_as(codes_Bhw))
    for dtype, tolerance in ((torch.float32, FP32_TOLERANCE), (torch.float64, FP64_TOLERANCE)):
        model, theirs, pixels_B3HW = model.to(dtype), theirs.to(dtype), pixels_B3HW.to(dtype)
        latents_BDhw = theirs.quant_conv(theirs.encode(pixels_B3HW).last_hidden_state)
        ours_BDhw = model.latents(pixels_B3HW)
        torch.testing.assert_close(ours_BDhw, latents_BDhw, rtol=0, atol=tolerance)
    return codes_Bhw


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_and_latents_of_random_models(name: str) -> None:
    model = random_model(CONFIGS[name])
    generator = torch.Generator().manual_seed(1)
    height, width = 3 * model.cfg.downsample, 4 * model.cfg.downsample
    pixels_B3HW = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    codes_Bhw = assert_equal(model, pixels_B3HW)
    assert codes_Bhw.shape == (2, 3, 4)
    assert len(codes_Bhw.unique()) > 6, "too few codes for a comparison"


@pytest.mark.parametrize("name", ["image0", "image1", "image2"])
def test_codes_and_latents_of_the_released_layout(name: str) -> None:
    levels_HW3 = np.asarray(whiten(open_image(VECTORS / f"{name}.png")))
    assert_equal(load_tokenizer(VECTORS), torch.from_numpy(normalise(levels_HW3))[None])


def test_released_size() -> None:
    """Names and shapes of the defaults, without allocating any."""
    with torch.device("meta"):
        reference(Vqgan(VqganConfig()))
