"""The model folder: written whole, read strictly, every mistake in one message."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt.errors import CheckpointError
from mgpt.models import folder as folder_module
from mgpt.models.folder import load_model, load_model_config, model_tensors, save_model
from mgpt.models.transformer import Transformer


@pytest.fixture
def model(make_transformer: Callable[..., Transformer]) -> Transformer:
    return make_transformer(dtype=torch.float32)


def test_a_saved_model_loads_bit_for_bit(model: Transformer, tmp_path: Path):
    save_model(tmp_path, model.cfg, model.state_dict())
    written = {"SHA256SUMS", "config.json", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == written
    loaded = load_model(tmp_path)
    assert loaded.cfg == model.cfg and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert load_model(tmp_path, dtype=torch.bfloat16).embed.weight.dtype == torch.bfloat16


def test_saving_twice_gives_the_same_bytes(model: Transformer, tmp_path: Path):
    for name in ("a", "b"):
        save_model(tmp_path / name, model.cfg, model.state_dict())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_large_models_are_split_and_replace_older_files(
    model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_model(tmp_path, model.cfg, model.state_dict())
    monkeypatch.setattr(folder_module, "_MAX_FILE_BYTES", 100_000)
    save_model(tmp_path, model.cfg, model.state_dict())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert model_tensors(tmp_path).keys() == set(model.state_dict())
    monkeypatch.undo()
    save_model(tmp_path, model.cfg, model.state_dict())
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_misfits_are_named_together(model: Transformer, tmp_path: Path):
    save_model(tmp_path, model.cfg, model.state_dict())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["extra"] = torch.zeros(1)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][1:].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    message = str(error.value)
    assert "missing model.norm.weight; left over extra;" in message
    assert "lm_head.weight is [96, 64] instead of [97, 64]" in message


def test_folders_that_are_no_models_say_so(model: Transformer, tmp_path: Path):
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_model_config(tmp_path)
    save_model(tmp_path, model.cfg, model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    for change, said in (
        ({"model_type": "chameleon"}, "model_type is 'chameleon'"),
        ({"depth": 3}, r"unknown \['depth'\]"),
        ({"layers": 0}, "layers=0"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=said):
            load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="model_type is None"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config)[:-5])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model_config(tmp_path)


def test_a_file_cut_short_is_named_with_its_size(model: Transformer, tmp_path: Path):
    save_model(tmp_path, model.cfg, model.state_dict())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(5000 bytes\)"):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(tmp_path)
