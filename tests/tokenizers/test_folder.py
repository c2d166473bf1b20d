"""Folders of picture tokenizers: every released layout, our own, and what is refused."""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgpt.errors import CheckpointError, ConfigError
from mgpt.tokenizers import folder as folder_module
from mgpt.tokenizers.folder import load_tokenizer, load_vqgan, save_tokenizer
from mgpt.tokenizers.protocol import PictureTokenizer

VECTORS = Path(__file__).parents[1] / "vectors" / "tokenizers"
FAMILIES = [
    *("llamagen/vq16", "llamagen/vq8", "movqgan", "ibq/emu35", "ibq/voken", "emu3"),
    *("cosmos/dv", "cosmos/di", "magvit2"),
]
CONFIGS = ("*.yaml", "config.json")


def state_of(tokenizer: PictureTokenizer) -> dict[str, Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in tokenizer.state_dict().items()}


def copy_configs(name: str, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for pattern in CONFIGS:
        for path in (VECTORS / name).glob(pattern):
            shutil.copy(path, to / path.name)
    return to


@pytest.mark.parametrize("name", FAMILIES)
def test_our_folder_gives_the_same_model(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(VECTORS / name)
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer) and again.cfg == tokenizer.cfg
    assert again.fingerprint() == tokenizer.fingerprint()
    stored = load_file(tmp_path / "model.safetensors")
    for found, wanted in zip(sorted(stored.items()), sorted(tokenizer.state_dict().items())):
        assert found[0] == wanted[0] and torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["safetensors", "flat", "state_dict"])
def test_the_same_weights_in_another_file_are_the_same_model(
    name: str, form: str, tmp_path: Path
) -> None:
    """Fingerprints do not depend on the kind of file, nor on what else a trainer kept in it."""
    tokenizer = load_tokenizer(VECTORS / name)
    state = state_of(tokenizer)
    copy_configs(name, tmp_path)
    if form == "safetensors":
        save_file(state, tmp_path / "weights.safetensors")
    elif form == "flat":
        torch.save(state, tmp_path / "weights.ckpt")
    else:
        content = {"state_dict": state | {"loss.discriminator.x": torch.ones(2)}, "epoch": 3}
        torch.save(content, tmp_path / "weights.ckpt")
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("key", ["model", "ema"])
def test_a_trainers_file_of_llamagen(key: str, tmp_path: Path) -> None:
    """Its arguments are a Namespace, which torch's restricted unpickler refuses by itself."""
    tokenizer = load_tokenizer(VECTORS / "llamagen/vq8")
    state = state_of(tokenizer)
    other = {name: tensor + 1 for name, tensor in state.items()}
    content: dict[str, Any] = {"model": other, "optimizer": {}, "steps": 7}
    content |= {key: state, "args": argparse.Namespace(lr=1e-4)}
    torch.save(content, copy_configs("llamagen/vq8", tmp_path) / "vq_ds8_c2i.pt")
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_the_tokenizer_inside_a_checkpoint_of_janus(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(VECTORS / "llamagen/vq16")
    inside = {f"gen_vision_model.{n}": t.bfloat16() for n, t in state_of(tokenizer).items()}
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for number, file in enumerate(files):
        part = dict(list(inside.items())[number::2])
        save_file(part | {f"language_model.{number}": torch.ones(3)}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"num_groups": 2}))
    rounded = load_tokenizer(tmp_path)
    assert rounded.state_dict().keys() == tokenizer.state_dict().keys()
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(tensor, tokenizer.state_dict()[name].bfloat16().float())


def test_averages_by_part(tmp_path: Path) -> None:
    """MoVQGAN's trainer averages each part by itself."""
    tokenizer = load_tokenizer(VECTORS / "movqgan")
    state = state_of(tokenizer)
    content = {name: tensor + 1 for name, tensor in state.items()}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        content[f"ema_{part}.{rest.replace('.', '')}"] = tensor
    content["ema_encoder.decay"] = torch.tensor(0.999)
    torch.save({"state_dict": content}, copy_configs("movqgan", tmp_path) / "last.ckpt")
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()
    del content["ema_encoder.conv_inweight"]
    torch.save({"state_dict": content}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"averaged.*none of encoder\.conv_in\.weight"):
        load_tokenizer(tmp_path)


def test_a_buffer_that_is_no_weight_may_be_anything(tmp_path: Path) -> None:
    """`codebook_used` counts codes of the last training steps; it is kept as it came."""
    tokenizer = load_tokenizer(VECTORS / "llamagen/vq8")
    state = state_of(tokenizer)
    assert state["quantize.codebook_used"].any()
    copy_configs("llamagen/vq8", tmp_path)
    del state["quantize.codebook_used"]
    torch.save({"model": state}, tmp_path / "vq.pt")
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_one_file_of_several(tmp_path: Path) -> None:
    copy_configs("llamagen/vq8", tmp_path)
    state = state_of(load_tokenizer(VECTORS / "llamagen/vq8"))
    for name in ("vq_ds8_c2i.pt", "c2i_B_256.pt"):
        torch.save({"model": state}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"c2i_B_256\.pt, vq_ds8_c2i\.pt.*name one of them"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path / "vq_ds8_c2i.pt").family == "llamagen"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llamagen/vq8", {"codebook_size": 99}, "codebook_size is 99 in the configuration and 512"),
        ("llamagen/vq8", {"codebook_l2_norm": False}, "codebook_l2_norm is False"),
        ("llamagen/vq8", {"num_groups": 3}, "num_groups=3 must divide every width"),
        ("llamagen/vq8", {"num_groups": "2"}, "num_groups='2' in the configuration is no count"),
        ("ibq/emu35", {"ch_mult": [1, 2]}, r"ch_mult is \[1, 2\] in the configuration"),
        ("ibq/emu35", {"attn_resolutions": [32]}, r"attention at levels \[3\].*at \[4\]"),
        ("ibq/emu35", {"l2_normalize": True}, "l2_normalize is True"),
        ("emu3", {"temporal_downsample_factor": 2}, "temporal_downsample_factor is 2"),
        ("cosmos/di", {"levels": [8, 8, 8]}, "codes of 3 channels, and the weights have 6"),
        ("cosmos/dv", {"patch_size": 2}, "patch_size=2|spatial_compression"),
        ("cosmos/dv", {"quantizer": "RESFSQ"}, "quantizer is RESFSQ"),
    ],
)
def test_a_configuration_of_another_model_is_named(
    name: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    copy_configs(name, tmp_path)
    save_file(state_of(load_tokenizer(VECTORS / name)), tmp_path / "weights.safetensors")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises((CheckpointError, ConfigError), match=said):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_loading_is_strict(name: str, tmp_path: Path) -> None:
    """A misfit would leave random weights, and the authors' code takes some without a word."""
    state = state_of(load_tokenizer(VECTORS / name))
    copy_configs(name, tmp_path)
    missing = next(n for n in state if n.startswith("decoder.mid") and n.endswith("bias"))
    del state[missing]
    save_file(state | {"decoder.extra": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=f"{re.escape(missing)} is missing.*decoder.extra"):
        load_tokenizer(tmp_path)


def test_what_is_no_tokenizer_is_told_what_was_looked_for(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(tmp_path)
    for words in ("model.embed_tokens.weight", "LlamaGen", "MoVQGAN", "Emu3", "Cosmos", "*.pt"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("inner", ["vq", "model"])
def test_a_folder_with_a_tokenizer_in_its_place(inner: str, tmp_path: Path) -> None:
    """A model folder keeps its own in vq/, a training of tokenizers leaves it in model/."""
    tokenizer = load_tokenizer(VECTORS / "emu3")
    save_tokenizer(tokenizer, tmp_path / inner)
    (tmp_path / "config.json").write_text('{"model_type": "mgpt"}')
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"model": {"x": Runs()}}, tmp_path / "vq.pt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_our_folder_names_a_family_that_is_unknown(tmp_path: Path) -> None:
    save_tokenizer(load_tokenizer(VECTORS / "emu3"), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"emu3"', '"emu9"'))
    with pytest.raises(CheckpointError, match="'emu9', this software has vqgan"):
        load_tokenizer(tmp_path)


def test_training_goes_on_from_a_vqgan_alone() -> None:
    with pytest.raises(ConfigError, match="is Emu3's vision tokenizer, and a VQGAN belongs here"):
        load_vqgan(VECTORS / "emu3")


class _Half(nn.Module):
    """A module under TorchScript with some tensors by their released names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            place: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]  # type: ignore[assignment]
            place.register_buffer(last, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_documented_conversion_of_torchscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(VECTORS / "cosmos/dv")
    state = state_of(tokenizer)
    folder = copy_configs("cosmos/dv", tmp_path)
    for half, prefixes in (("encoder", ("encoder.", "quant_")), ("decoder", ("decoder.", "post_"))):
        part = {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
        torch.jit.save(torch.jit.script(_Half(part)), folder / f"{half}.jit")
    with pytest.raises(CheckpointError, match="TorchScript files, which carry code"):
        load_tokenizer(folder)
    page = Path(folder_module.__file__).with_name("README.md").read_text()
    monkeypatch.chdir(folder)
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert load_tokenizer(folder).fingerprint() == tokenizer.fingerprint()
