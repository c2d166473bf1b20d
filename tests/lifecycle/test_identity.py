"""What an input is, whatever else lies beside it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.raw.inputs import raw_identities
from data_pipeline.raw.shards import RawSample, RawShardWriter
from mgpt.data.dataset import open_dataset
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.lifecycle.identity import dataset_identity, weights_identity


def write_tokens(folder: Path, name: str, seed: int = 0) -> None:
    codes = np.full((2, 2), seed, np.uint16)
    with ShardWriter(folder, name) as writer:
        writer.add(TokenisedSample("a", {"caption": "a"}, {"image": codes}))
        raw = {"name": name, "sha256": "0" * 64}
        sizes = {"resolution_px": 32, "latent_px": 8, "num_codes": 64}
        prints = {"vq_fingerprint": "0" * 16, "settings_fingerprint": "0" * 16}
        writer.close({"raw": raw, "rejected": [], **sizes, **prints})


def write_raw(path: Path, text: str) -> None:
    with RawShardWriter(path) as writer:
        writer.add(RawSample("a", {}, {"text": text}))
        writer.close()


def test_a_dataset_is_its_shards(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens" / "32", "00000")
    write_tokens(tmp_path / "tokens" / "64", "00000", seed=1)
    whole = dataset_identity(tmp_path / "tokens")
    small = dataset_identity(tmp_path / "tokens", 32)
    assert small == f"shards:{open_dataset(tmp_path / 'tokens' / '32').fingerprint}" != whole
    shutil.copytree(tmp_path / "tokens" / "32", tmp_path / "fast disk")
    lengths = tmp_path / "fast disk" / "lengths"
    lengths.mkdir()
    (lengths / "0123.npy").write_bytes(b"counted by another run")
    (tmp_path / "fast disk" / "settings.json").write_text("{}")
    (tmp_path / "fast disk" / "NOTES.txt").write_text("notes")
    assert dataset_identity(tmp_path / "fast disk") == small
    assert dataset_identity(tmp_path / "tokens") == whole
    write_tokens(tmp_path / "tokens" / "32", "00001")
    assert dataset_identity(tmp_path / "tokens", 32) != small
    assert dataset_identity(tmp_path / "gone") == f"name:{tmp_path / 'gone'}"


def test_a_damaged_manifest_is_left_to_whoever_reads_the_shards(tmp_path: Path) -> None:
    write_tokens(tmp_path, "00000")
    (tmp_path / "00000.json").write_text("{}")
    assert dataset_identity(tmp_path) == f"damaged:{tmp_path}"


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{}.tar"])
def test_raw_shards_are_their_tars(tmp_path: Path, pattern: str) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    write_raw(folder / "00000.tar", "one")
    source = f"{folder}{pattern.format('00000')}"
    (before,) = raw_identities(source).values()
    assert before.startswith("raw:")
    for name in (".DS_Store", "NOTES.txt", "00000_stats.json"):
        (folder / name).write_text("{}")
    assert raw_identities([source]) == {source: before}
    write_raw(folder / "00000.tar", "two")
    assert raw_identities(source) != {source: before}
    if pattern != "/{}.tar":
        write_raw(folder / "00000.tar", "one")
        write_raw(folder / "00001.tar", "more")
        assert raw_identities(source) != {source: before}


def test_weights_are_what_they_hold(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "mgpt"}')
    (model / "SHA256SUMS").write_text("0123  model.safetensors\n")
    held = weights_identity(model)
    assert held == weights_identity(tmp_path) and held.startswith("weights:")
    (model / "README.md").write_text("notes of a person")
    (tmp_path / "metrics.jsonl").write_text("")
    assert weights_identity(tmp_path) == held
    (model / "SHA256SUMS").write_text("4567  model.safetensors\n")
    assert weights_identity(tmp_path) != held


def test_a_checkpoint_is_its_state(tmp_path: Path) -> None:
    step = tmp_path / "step_00000001"
    step.mkdir()
    files = {"state/a.safetensors": {"sha256": "0"}, "config.yaml": {"sha256": "1"}}
    (step / "COMPLETE").write_text(json.dumps({"attempt": 1, "files": files}))
    held = weights_identity(step)
    files["config.yaml"]["sha256"] = "of another start"
    (step / "COMPLETE").write_text(json.dumps({"attempt": 2, "files": files}))
    assert weights_identity(step) == held == weights_identity(tmp_path)
    files["state/a.safetensors"]["sha256"] = "2"
    (step / "COMPLETE").write_text(json.dumps({"attempt": 2, "files": files}))
    assert weights_identity(step) != held
