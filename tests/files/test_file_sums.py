"""Hashes beside a model: a bit that flips is named before a weight is used."""

import hashlib
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mgpt.errors import CheckpointError
from mgpt.files.file_sums import SUMS, check_sums, sums_list, write_sums
from mgpt.models import folder as folder_module
from mgpt.models.folder import load_model, save_model
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer


def flip(path: Path, position: int) -> None:
    """Turns the lowest bit of a byte round."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder of several files."""
    monkeypatch.setattr(folder_module, "_MAX_FILE_BYTES", 100_000)
    model = Transformer(SIZES["debug"])
    model.init_weights(0)
    save_model(tmp_path / "model", model.cfg, model.state_dict())
    return tmp_path / "model"


def test_the_list_is_what_sha256sum_reads(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()} - {SUMS}
    assert len(names) > 4 and "model.safetensors.index.json" in names
    lines = dict(reversed(line.split("  ")) for line in (saved / SUMS).read_text().splitlines())
    assert lines == {n: hashlib.sha256((saved / n).read_bytes()).hexdigest() for n in names}
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=saved, check=True)
    assert load_model(saved).cfg == SIZES["debug"]


@pytest.mark.parametrize("where", ["first weight", "last weight", "config.json", "index"])
def test_a_flipped_bit_is_named(saved: Path, where: str) -> None:
    path = sorted(saved.glob("model-*.safetensors"))[1]
    if where == "config.json":
        path = saved / where
        position = path.read_text().index("4096") + 3
    elif where == "index":
        path = saved / "model.safetensors.index.json"
        position = path.read_text().index("total_size") + 14
    else:
        size = path.stat().st_size
        position = size - 2 if where == "last weight" else size - 4000
    flip(path, position)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            values = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        assert all(bool(torch.isfinite(value).all()) for value in values), "nothing else shows it"
    with pytest.raises(CheckpointError, match=rf"not as SHA256SUMS has it: {path.name};"):
        load_model(saved)
    (saved / SUMS).unlink()
    load_model(saved)


def test_files_of_another_model_are_named(saved: Path, tmp_path: Path) -> None:
    whole = (saved / SUMS).read_text()
    (saved / SUMS).write_text("")
    with pytest.raises(CheckpointError, match=r"model-00001-of-.*\(not in the list\)"):
        load_model(saved)
    (saved / SUMS).write_text(whole[:-100])
    with pytest.raises(CheckpointError, match=r"SHA256SUMS"):
        load_model(saved)
    (saved / SUMS).write_text("what is this?\n")
    with pytest.raises(CheckpointError, match=r"'what is this\?' is no line of hashes"):
        load_model(saved)


def test_metas_list_and_no_list(tmp_path: Path) -> None:
    files = [tmp_path / "consolidated.pth", tmp_path / "params.json"]
    for path in files:
        path.write_text(path.name)
    assert sums_list(tmp_path) is None
    check_sums(files)
    digest = hashlib.md5(b"consolidated.pth").hexdigest()
    (tmp_path / "checklist.chk").write_text(f"{digest} consolidated.pth\n")
    assert sums_list(tmp_path) == "checklist.chk"
    check_sums(files)
    flip(files[0], 3)
    with pytest.raises(CheckpointError, match=r"not as checklist\.chk has it: consolidated\.pth;"):
        check_sums(files)
    write_sums(tmp_path, {"params.json": hashlib.sha256(b"params.json").hexdigest()})
    assert sums_list(tmp_path) == SUMS
    check_sums(files)
