"""Packing: every source gives raw shards that read back, the same bytes for any worker count."""

import importlib
import json
from pathlib import Path

import pytest

from data_pipeline.pack import PackConfig, pack
from data_pipeline.raw.shards import RawShardReader, Rejected
from data_pipeline.scenes.corpus import CorpusConfig
from data_pipeline.sources.pack_config import SOURCES
from data_pipeline.sources.photos import CAPTIONS
from mgpt.errors import ConfigError, DataError
from mgpt.images.pixels import open_image

ROOT = Path(__file__).parents[2]


def read(folder: Path) -> list:
    items = []
    for path in sorted(folder.glob("*.tar")):
        with RawShardReader.open(path) as reader:
            items += list(reader)
        assert reader.damaged is None
    return items


def scenes(output: Path, workers: int = 1, num_scenes: int = 7) -> PackConfig:
    corpus = CorpusConfig(num_scenes=num_scenes, split="heldout", area_px=32)
    return PackConfig(
        source="scenes", output=str(output), samples_per_shard=3, workers=workers, scenes=corpus
    )


def test_scenes(tmp_path, tracker, tree):
    summary = pack(scenes(tmp_path / "one"), tracker)
    assert (summary["shards"], summary["samples"], summary["rejected"]) == (3, 7, {})
    pack(scenes(tmp_path / "two", workers=2), tracker)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    items = read(tmp_path / "one")
    assert len({item.key for item in items}) == 7
    for item in items:
        for name, encoded in item.pictures.items():
            assert open_image(encoded.data).mode == "RGB", name
    stats = json.loads((tmp_path / "one" / "00002.json").read_bytes())
    assert stats["samples"] == 1
    assert stats["bytes"] == (tmp_path / "one" / "00002.tar").stat().st_size


def test_a_rerun_changes_nothing_and_other_settings_are_refused(tmp_path, tracker):
    pack(scenes(tmp_path), tracker)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    pack(scenes(tmp_path), tracker)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"scenes\.num_scenes=7 there, 8 here"):
        pack(scenes(tmp_path, num_scenes=8), tracker)


def test_photos_decode(tmp_path, tracker):
    pack(PackConfig(source="photos", output=str(tmp_path), samples_per_shard=8), tracker)
    items = read(tmp_path)
    assert [f"{i.key}.{i.pictures['image'].extension}" for i in items] == sorted(CAPTIONS)
    sizes = {i.key: open_image(i.pictures["image"].data).size for i in items}
    assert sizes["retina"] == (1411, 1411) and sizes["coffee"] == (600, 400)
    assert all(i.meta["caption"] for i in items)


def test_folder(tmp_path, tracker, picture):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("tom.v1.png", "sub/tom.png", "room.png", "room_depth.png"):
        (folder / name).write_bytes(picture())
    lines = [
        {"file": "tom.v1.png", "caption": "a cat, {x}"},
        {"file_name": "sub/tom.png", "caption": "another", "score": 0.5},
        {"file": "room.png", "depth": "room_depth.png", "tasks": ["depth"]},
        {"file": "room.png", "caption": "the same file again"},
        {"file": "gone.png", "caption": "missing"},
        {"file": "../tom.png"},
        {"file": "notes.pkl"},
        {"text": "only words"},
    ]
    text = "\n".join(map(json.dumps, lines)).encode() + b"\nnot json\n\n[1]\n\xff\n"
    (folder / "captions.jsonl").write_bytes(text)
    cfg = PackConfig(source="folder", input=str(folder), output=str(tmp_path / "out"))
    summary = pack(cfg, tracker)
    items = {item.key: item for item in read(tmp_path / "out")}
    assert list(items) == ["tom.v1", "sub/tom", "room", "000000003"]
    assert items["tom.v1"].meta == {"caption": "a cat, {x}", "file": "tom.v1.png"}
    assert items["sub/tom"].meta["score"] == 0.5
    assert set(items["room"].pictures) == {"image", "depth"}
    assert summary["rejected"] == {
        "bad_json": 2,
        "missing_picture": 2,
        "text_not_utf8": 1,
        "unknown_extension": 1,
        "unsafe_name": 1,
    }


def test_folder_parts_join_to_the_whole(tmp_path, tracker, picture):
    (tmp_path / "a.png").write_bytes(picture())
    lines = [json.dumps({"file": "a.png", "n": n}) for n in range(5)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    for step in (2, 5):
        cfg = PackConfig(
            source="folder",
            input=str(tmp_path),
            output=str(tmp_path / f"out{step}"),
            samples_per_shard=step,
        )
        pack(cfg, tracker)
        assert [item.meta["n"] for item in read(tmp_path / f"out{step}")] == list(range(5))


def test_img2dataset_comes_out_clean(tmp_path, tracker, write_tar, picture):
    tar = {"1.png": picture(), "1.txt": b"one", "2.json": b"{", "2.png": picture()}
    path = write_tar(tmp_path / "in" / "00007.tar", {**tar, "3.png": bytes(20_000)})
    path.write_bytes(path.read_bytes()[:-20_000])
    cfg = PackConfig(source="img2dataset", input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    summary = pack(cfg, tracker)
    assert summary["samples"] == 1
    assert summary["rejected"] == {"bad_json": 1, "cut_short": 1, "damaged_shard": 1}
    (item,) = read(tmp_path / "out")
    assert not isinstance(item, Rejected) and item.meta == {"caption": "one"}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_that_can_be_named_is_there(name):
    assert callable(importlib.import_module(SOURCES[name]).parts)
    assert f"`source={name}`" in (ROOT / "data_pipeline" / "README.md").read_text()


def test_what_is_missing_is_named(tmp_path, tracker):
    with pytest.raises(ValueError, match="scenes, photos"):
        PackConfig(source="moon", output=str(tmp_path))
    with pytest.raises(ConfigError, match="input="):
        pack(PackConfig(source="folder", output=str(tmp_path / "a")), tracker)
    with pytest.raises(DataError, match=r"captions\.jsonl"):
        pack(PackConfig(source="folder", input=str(tmp_path), output=str(tmp_path / "b")), tracker)
    with pytest.raises(DataError, match="no raw shards"):
        pack(
            PackConfig(source="img2dataset", input=str(tmp_path), output=str(tmp_path / "c")),
            tracker,
        )
