"""The VQGAN: released vectors code for code, folder round trips, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from mgpt.errors import CheckpointError, ConfigError, MachineError
from mgpt.tokenizers.folder import load_tokenizer, save_tokenizer
from mgpt.tokenizers.quantizers import nearest_codes
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig

VECTORS = Path(__file__).parents[1] / "vectors" / "vqgan"
TINY = VqganConfig(
    ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=8, embed_dim=4, n_embed=16, num_groups=4
)


def tiny_model(cfg: VqganConfig = TINY, seed: int = 0) -> Vqgan:
    torch.manual_seed(seed)
    model = Vqgan(cfg).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.1)
    return model


def pixels_of(path: Path) -> torch.Tensor:
    """FACTS of the format: blend on white truncated, x/255·2-1 in float64, then fp32."""
    levels = np.asarray(Image.open(path)).astype(np.float64)
    if levels.shape[-1] == 4:
        alpha = levels[..., 3:] / 255.0
        levels = np.floor(levels[..., :3] * alpha + 255.0 * (1.0 - alpha))
    return torch.from_numpy((levels / 255.0 * 2.0 - 1.0).astype(np.float32)).movedim(-1, 0)[None]


@pytest.fixture(scope="module")
def released() -> Vqgan:
    return load_tokenizer(VECTORS)


@pytest.mark.parametrize("name", ["image0", "image1", "image2"])
def test_released_vectors_code_for_code(released: Vqgan, name: str) -> None:
    expected = json.loads((VECTORS / "expected.json").read_text())[f"{name}.png"]
    pixels = pixels_of(VECTORS / f"{name}.png")
    codes = released.encode(pixels)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[0], torch.tensor(expected["codes"]))
    latents = released.latents(pixels)
    assert latents.mean().item() == pytest.approx(expected["latent_mean"], abs=1e-5)
    assert latents.std().item() == pytest.approx(expected["latent_std"], abs=1e-5)


@pytest.mark.parametrize("name", ["image0", "image1", "image2"])
def test_released_vectors_decoded_within_one_level(released: Vqgan, name: str) -> None:
    expected = json.loads((VECTORS / "expected.json").read_text())[f"{name}.png"]
    pixels = released.decode(torch.tensor(expected["codes"])[None])
    levels = ((pixels.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)[0].movedim(0, -1).numpy()
    truth = np.asarray(Image.open(VECTORS / f"{name}.decoded.png"))
    assert np.abs(levels.astype(int) - truth.astype(int)).max() <= 1


def test_released_defaults_are_the_released_sizes() -> None:
    with torch.device("meta"):
        names = {name: tuple(t.shape) for name, t in Vqgan(VqganConfig()).state_dict().items()}
    assert VqganConfig().downsample == 16
    assert names["quantize.embedding.weight"] == (8192, 256)
    assert names["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert names["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert names["decoder.up.4.upsample.conv.weight"] == (512, 512, 3, 3)
    assert not any(".attn.0" in name for name in names)


def test_attention_stands_at_the_resolutions_named() -> None:
    with torch.device("meta"):
        names = Vqgan(replace(TINY, resolution=64, attn_resolutions=(32,))).state_dict()
    assert "encoder.down.1.attn.0.q.weight" in names
    assert "decoder.up.1.attn.1.q.weight" in names
    assert "encoder.down.0.attn.0.q.weight" not in names


def test_a_local_model_codes_a_patch_by_its_neighbourhood_alone() -> None:
    """Latents three or more from a change keep their bits; the released kind changes them all."""
    local = tiny_model(replace(TINY, ch_mult=(1, 1, 2, 2), local=True))
    released_kind = tiny_model(replace(TINY, ch_mult=(1, 1, 2, 2)))
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    after = before.clone()
    after[..., 32:40, 32:40] = 1.0
    away = torch.ones(8, 8, dtype=torch.bool)
    away[2:6, 2:6] = False
    for model, expected in ((local, True), (released_kind, False)):
        z_before, z_after = (model.latents(pixels)[0][:, away] for pixels in (before, after))
        assert torch.equal(z_before, z_after) is expected


def test_a_local_model_round_trips_and_refuses_attention(tmp_path: Path) -> None:
    model = tiny_model(replace(TINY, local=True))
    save_tokenizer(model, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.cfg.local and again.fingerprint() == model.fingerprint()
    with pytest.raises(ConfigError, match="a local model has no attention"):
        replace(TINY, local=True, attn_resolutions=(512,))


def test_the_setting_local_leaves_older_fingerprints_alone() -> None:
    """Models stored before the setting existed have a record without it."""
    assert "local" not in TINY.record()
    assert replace(TINY, local=True).record()["local"] is True
    assert load_tokenizer("photos_f16").fingerprint() == "fbca257ca7ccbe3a"


def test_codes_do_not_change_under_autocast_or_low_matmul_precision() -> None:
    model = tiny_model()
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = model.encode(pixels)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.encode(pixels), codes)
            assert model.decode(codes).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_nearest_codes_are_the_argmin_of_true_distances() -> None:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(9000, 6, generator=generator)  # more than one chunk
    codebook = torch.randn(37, 6, generator=generator)
    expected = torch.cdist(latents.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_codes(latents, codebook), expected)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    model = tiny_model()
    pixels = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    together = model.encode(pixels)
    assert together.shape == (3, 4, 6)
    assert torch.equal(together[1:2], model.encode(pixels[1:2]))


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_encode_asserts_its_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        tiny_model().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_groups": 32}, "num_groups=32 must divide"),
        ({"double_z": True}, "double_z"),
        ({"ch_mult": ()}, "ch_mult"),
        ({"n_embed": 0, "ch": 0}, "ch=0.*n_embed=0"),
    ],
)
def test_config_names_every_mistake(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(TINY, **change)


def test_save_and_load_keep_codes_and_fingerprint(tmp_path: Path) -> None:
    model = tiny_model()
    save_tokenizer(model, tmp_path / "vq")
    again = load_tokenizer(tmp_path / "vq")
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    assert again.cfg == model.cfg
    assert not again.training
    assert torch.equal(again.encode(pixels), model.encode(pixels))
    assert again.fingerprint() == model.fingerprint()
    assert sorted(path.name for path in (tmp_path / "vq").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_half_precision_storage_is_a_model_of_rounded_weights(tmp_path: Path) -> None:
    model = tiny_model()
    save_tokenizer(model, tmp_path, dtype=torch.float16)
    again = load_tokenizer(tmp_path)
    assert {t.dtype for t in again.state_dict().values()} == {torch.float32}
    assert again.fingerprint() != model.fingerprint()
    assert again.fingerprint() == model.half().float().fingerprint()


def test_fingerprint_covers_weights_and_configuration() -> None:
    base = tiny_model().fingerprint()
    assert base == tiny_model().fingerprint()
    assert base != tiny_model(seed=1).fingerprint()
    assert base != tiny_model(replace(TINY, num_groups=8)).fingerprint()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_tokenizer(tiny_model(seed=0), tmp_path / "a")
    save_tokenizer(tiny_model(seed=1), tmp_path / "b")
    (tmp_path / "a/model.safetensors").replace(tmp_path / "b/model.safetensors")
    with pytest.raises(CheckpointError, match="not of one model"):
        load_tokenizer(tmp_path / "b")


def test_missing_left_over_and_misshapen_weights_come_in_one_message(tmp_path: Path) -> None:
    save_tokenizer(tiny_model(), tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["quant_conv.bias"]
    weights["surplus"] = torch.zeros(1)
    weights["decoder.conv_out.bias"] = torch.zeros(7)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(tmp_path)
    for words in ("quant_conv.bias is missing", "surplus is left over", "shape [7], expected [3]"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("{", CheckpointError, "not a VQGAN configuration"),
        ('{"format": "other", "config": {}, "fingerprint": ""}', CheckpointError, "other"),
        (
            '{"format": "mgpt-vqgan-1", "config": {"chanels": 3}, "fingerprint": ""}',
            ConfigError,
            "unknown settings chanels",
        ),
    ],
)
def test_bad_configurations_are_named(
    tmp_path: Path, content: str, kind: type[Exception], words: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(kind, match=words):
        load_tokenizer(tmp_path)


def test_cut_weights_are_refused(tmp_path: Path) -> None:
    save_tokenizer(tiny_model(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_folder_that_is_none_names_the_shipped_models(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="scenes_f8"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no VQGAN"):
        load_tokenizer(tmp_path)


def test_saving_over_a_folder_that_cannot_hold_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(MachineError, match="cannot be written"):
        save_tokenizer(tiny_model(), tmp_path)
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize(
    ("name", "downsample", "n_embed"), [("scenes_f8", 8, 512), ("photos_f16", 16, 1024)]
)
def test_shipped_models_load_by_name(name: str, downsample: int, n_embed: int) -> None:
    model = load_tokenizer(name)
    assert (model.cfg.downsample, model.cfg.n_embed) == (downsample, n_embed)
    light = torch.full((1, 3, 64, 64), 0.85)  # the ground of the scenes
    assert (model.decode(model.encode(light)) - light).abs().mean() < 0.1


def test_a_shipped_name_is_not_shadowed_by_a_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "scenes_f8").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer("scenes_f8").cfg.downsample == 8
    with pytest.raises(CheckpointError, match="holds no VQGAN"):
        load_tokenizer("./scenes_f8")


def test_shipped_models_are_small() -> None:
    folder = Path(load_tokenizer.__code__.co_filename).parent / "pretrained"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 6_000_000


def test_vectors_of_all_codes_are_the_codebook() -> None:
    model = load_tokenizer("scenes_f8")
    vectors_NC = model.code_vectors()
    assert vectors_NC.shape == (model.num_codes, 32)
    assert torch.equal(vectors_NC, model.state_dict()["quantize.embedding.weight"])
