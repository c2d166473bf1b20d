"""Reading the released VQGAN folder: what is dropped, what is refused."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "weights"))
from released_layouts import write_meta_vqgan, write_vqgan_yaml

from mgpt.errors import CheckpointError, ConfigError
from mgpt.tokenizers import vqgan_convert
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig

CONFIG = VqganConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, embed_dim=4, n_embed=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_meta_vqgan(tmp_path, Vqgan(CONFIG))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "vqgan.ckpt", weights_only=True)["state_dict"]


def test_the_loss_networks_of_a_training_file_are_dropped(folder: Path) -> None:
    plain = load_tokenizer(folder).fingerprint()
    state = state_of(folder) | {"loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    assert load_tokenizer(folder).fingerprint() == plain


def test_any_other_surplus_name_is_refused(folder: Path) -> None:
    torch.save({"state_dict": state_of(folder) | {"ema.x": torch.zeros(1)}}, folder / "vqgan.ckpt")
    with pytest.raises(CheckpointError, match=r"ema\.x is left over"):
        load_tokenizer(folder)


def test_a_missing_name_is_refused(folder: Path) -> None:
    state = state_of(folder)
    del state["quantize.embedding.weight"]
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    with pytest.raises(CheckpointError, match=r"quantize\.embedding\.weight is missing"):
        load_tokenizer(folder)


def test_a_cut_checkpoint_is_refused(folder: Path) -> None:
    whole = (folder / "vqgan.ckpt").read_bytes()
    (folder / "vqgan.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_tokenizer(folder)


class _RunsACommand:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_code_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    torch.save({"state_dict": {"x": _RunsACommand()}}, folder / "vqgan.ckpt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_tokenizer(folder)
    assert not (folder / "pwned").exists()


def test_a_checkpoint_without_state_dict_is_refused(folder: Path) -> None:
    torch.save({"weights": {}}, folder / "vqgan.ckpt")
    with pytest.raises(CheckpointError, match="state_dict"):
        load_tokenizer(folder)


def test_an_oversized_checkpoint_is_refused_unread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vqgan_convert, "_MAX_CHECKPOINT_BYTES", 1000)
    with pytest.raises(CheckpointError, match="more than the 1000"):
        load_tokenizer(folder)


def test_half_a_released_folder_is_none(folder: Path) -> None:
    (folder / "vqgan.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"vqgan\.yaml and vqgan\.ckpt"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_linear_attn": True}, "unknown settings use_linear_attn"),
        ({"ch": "32"}, "ch='32'"),
        ({"ch_mult": [1, "2"]}, "ch_mult"),
        ({"double_z": True}, "double_z"),
    ],
)
def test_settings_that_are_not_understood_are_named(folder: Path, change: dict, words: str) -> None:
    write_vqgan_yaml(folder, CONFIG, **change)
    with pytest.raises(ConfigError, match=words):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["", "model: [", "model: {params: {embed_dim: 4}}"])
def test_a_yaml_of_something_else_is_refused(folder: Path, content: str) -> None:
    (folder / "vqgan.yaml").write_text(content)
    with pytest.raises(ConfigError, match="not a VQGAN configuration"):
        load_tokenizer(folder)
