"""An input that grows is more work, and what changed in it is named: nothing is refused without
need, nothing is done twice, and nothing is called complete that is not."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline import pack as pack_job
from data_pipeline.pack import Config, main
from data_pipeline.raw.shards import RawSample, RawShardReader
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import inputs as tokenize_inputs
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.unit_stamps import UNITS_FILE
from mgpt.errors import ConfigError, DataError
from mgpt.tracking.tracker import TrackingConfig


def keys(folder: Path) -> dict[str, list[str]]:
    """The samples of every shard, by its name."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with RawShardReader.open(path) as reader:
            found[path.stem] = [item.key for item in reader if isinstance(item, RawSample)]
    return found


@pytest.fixture
def run(tmp_path) -> Callable[..., Path]:
    """`run("folder", input, **settings)`: the command as users call it; the output's folder."""

    def start(source: str, given: Path, **settings) -> Path:
        out = tmp_path / "out"
        off = TrackingConfig(mode="disabled")
        main(Config(source=source, input=str(given), output=str(out), tracking=off, **settings))
        return out

    return start


@pytest.fixture
def folder(tmp_path, picture) -> Path:
    (tmp_path / "in").mkdir()
    for number, name in enumerate("bdf"):
        (tmp_path / "in" / f"{name}.png").write_bytes(picture(seed=number))
    return tmp_path / "in"


def test_new_pictures_become_further_shards(run, folder, picture, capsys):
    out = run("folder", folder, samples_per_shard=2)
    before = {path: path.read_bytes() for path in out.glob("*.tar")}
    assert keys(out) == {"00000": ["b", "d"], "00001": ["f"]}
    run("folder", folder, samples_per_shard=2)
    assert "is complete" in capsys.readouterr().out
    (folder / ".DS_Store").write_text("x")
    run("folder", folder, samples_per_shard=2)
    assert "is complete" in capsys.readouterr().out
    (folder / "a.png").write_bytes(picture(seed=9))
    run("folder", folder, samples_per_shard=2)
    assert keys(out) == {"00000": ["b", "d"], "00001": ["f"], "00002": ["a"]}
    assert all(path.read_bytes() == data for path, data in before.items())
    run("folder", folder, samples_per_shard=2)
    assert "is complete" in capsys.readouterr().out.splitlines()[-1]


def test_a_stopped_pack_keeps_its_shards_while_pictures_arrive(
    run, folder, picture, tmp_path, monkeypatch
):
    work = pack_job.PackWorker.work

    def dies(self, unit, claim, advance):
        if unit == "00001":
            raise KeyboardInterrupt
        work(self, unit, claim, advance)

    monkeypatch.setattr(pack_job.PackWorker, "work", dies)
    with pytest.raises(KeyboardInterrupt):
        run("folder", folder, samples_per_shard=2)
    monkeypatch.setattr(pack_job.PackWorker, "work", work)
    (folder / "a.png").write_bytes(picture(seed=9))
    out = run("folder", folder, samples_per_shard=2)
    assert keys(out) == {"00000": ["b", "d"], "00001": ["f"], "00002": ["a"]}


def test_what_was_packed_and_changed_is_named_with_both_values(run, folder, picture):
    out = run("folder", folder)
    size = (folder / "d.png").stat().st_size
    (folder / "d.png").write_bytes(picture(40, 40))
    with pytest.raises(DataError, match=rf"d\.png: {size} bytes when .*00000, \d+ bytes now"):
        run("folder", folder)
    for name in ("00000.tar", "00000.json"):  # what the message says
        (out / name).unlink()
    run("folder", folder)
    assert keys(out) == {"00000": ["b", "d", "f"]}


def test_a_copy_is_no_change_and_other_bytes_of_one_size_are(run, folder, capsys):
    run("folder", folder)
    os.utime(folder / "b.png", (1, 1))
    run("folder", folder)
    data = bytearray((folder / "b.png").read_bytes())
    data[-1] ^= 1
    (folder / "b.png").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"b\.png: sha256 [0-9a-f]{16} when .* now; restore it"):
        run("folder", folder)


def test_a_caption_that_comes_later_is_named(run, folder):
    (folder / "b.txt").write_text("one")
    run("folder", folder)
    (folder / "d.txt").write_text("two")
    with pytest.raises(DataError, match=r"d\.txt not there when its picture was packed"):
        run("folder", folder)


def test_pictures_that_arrive_later_are_packed_then(run, tmp_path, picture, capsys):
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    records = [{"image": f"{n}.png", "conversations": turns} for n in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(records))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "0.png").write_bytes(picture())
    given = ("conversations", tmp_path / "train.json")
    out = run(*given, pictures=str(pictures))
    assert keys(out) == {"00000": ["000000000"]}
    for n in (1, 2):
        (pictures / f"{n}.png").write_bytes(picture(seed=n))
        run(*given, pictures=str(pictures))
        assert "1 rejected records whose pictures are there now" in capsys.readouterr().out
    assert keys(out) == {"00000": ["000000000"], "00001": ["000000001"], "00002": ["000000002"]}
    assert json.loads((out / "DONE").read_bytes())["figures"]["rejected"] == {}
    run(*given, pictures=str(pictures))
    assert "is complete" in capsys.readouterr().out
    (pictures / "2.png").write_bytes(picture(seed=7, width=50))
    with pytest.raises(DataError, match=r"2\.png: .* packed into shard 00002"):
        run(*given, pictures=str(pictures))


def test_records_files_may_join_and_not_change(run, tmp_path):
    line = json.dumps({"messages": [{"role": "user", "content": "q"},
                                    {"role": "assistant", "content": "a"}]})  # fmt: skip
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jsonl").write_text(f"{line}\n" * 3)
    out = run("chat", tmp_path / "in", samples_per_shard=2)
    first = {path: path.read_bytes() for path in out.glob("*.tar")}
    (tmp_path / "in" / "a.jsonl").write_text(f"{line}\n")
    run("chat", tmp_path / "in", samples_per_shard=2)
    assert {name: len(found) for name, found in keys(out).items()} == {
        "00000": 2,
        "00001": 1,
        "00002": 1,
    }
    assert all(path.read_bytes() == data for path, data in first.items())
    (tmp_path / "in" / "b.jsonl").write_text(f"{line}\n" * 4)
    with pytest.raises(DataError, match=r"b\.jsonl: \d+ bytes when it was planned, \d+ bytes now"):
        run("chat", tmp_path / "in", samples_per_shard=2)


def test_a_source_that_was_edited_is_another_configuration(run, tmp_path):
    code = (
        "from data_pipeline.raw.shards import RawSample\n"
        "from data_pipeline.sources.records import record_parts\n"
        "def parts(cfg): return record_parts(cfg, read)\n"
        "def read(record): return [RawSample(record.key, {}, {'text': 'one'})]\n"
    )
    (tmp_path / "edited_source.py").write_text(code)
    (tmp_path / "a.jsonl").write_text("{}\n")
    run(str(tmp_path / "edited_source.py"), tmp_path / "a.jsonl")
    (tmp_path / "edited_source.py").write_text(code.replace("'one'", "'two'"))
    with pytest.raises(ConfigError, match=r"edited_source\.py held file:\w+, now holds file:\w+"):
        run(str(tmp_path / "edited_source.py"), tmp_path / "a.jsonl")


def test_captions_beside_the_annotations_belong_to_them(run, tmp_path, picture):
    (tmp_path / "tom.png").write_bytes(picture())
    joints = [4, 4, 2] * 17
    annotations = {
        "images": [{"id": 1, "file_name": "tom.png", "width": 32, "height": 32}],
        "annotations": [{"image_id": 1, "num_keypoints": 17, "keypoints": joints}],
    }
    (tmp_path / "person_keypoints_a.json").write_text(json.dumps(annotations))
    run("coco_keypoints", tmp_path / "person_keypoints_a.json")
    captions = {"annotations": [{"image_id": 1, "caption": "waves"}]}
    (tmp_path / "captions_a.json").write_text(json.dumps(captions))
    with pytest.raises(DataError, match=r"captions_a\.json: not there when it was planned"):
        run("coco_keypoints", tmp_path / "person_keypoints_a.json")


def test_another_input_is_not_more_of_the_first(run, folder, tmp_path, picture):
    run("folder", folder)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "rex.png").write_bytes(picture())
    with pytest.raises(ConfigError, match=r"packed from b\.png.*dogs has none"):
        run("folder", tmp_path / "dogs")


def test_an_output_of_an_older_version_is_resumed_as_it_was(run, folder, picture, tmp_path):
    """Which has no plan, and took pictures of fewer kinds."""
    (folder / "c.ppm").write_bytes(picture(form="PPM"))
    out = run("folder", folder, samples_per_shard=2)
    assert list(keys(out).values()) == [["b", "c"], ["d", "f"]]
    for path in (*out.glob("inputs/*"), *out.glob("00*")):
        path.unlink()
    (out / "inputs").rmdir()
    (folder / "c.ppm").rename(folder / "c.txt")
    run("folder", folder, samples_per_shard=2)
    (folder / "c.txt").rename(folder / "c.ppm")
    assert list(keys(out).values()) == [["b", "d"], ["f"]]
    for path in (*out.glob("inputs/*"), *out.glob("00001.*")):
        path.unlink()
    run("folder", folder, samples_per_shard=2)
    assert list(keys(out).values()) == [["b", "d"], ["f", "c"]]


# ------------------------------------------------------------------ tokenize


@pytest.fixture
def tokens(tmp_path, vq, tracker, write_tar, picture) -> TokenizeConfig:
    """A finished job over two tars."""
    for number in range(2):
        write_tar(tmp_path / "raw" / f"{number:05d}.tar", {f"{number}.png": picture(seed=number)})
    output = str(tmp_path / "out")
    cfg = TokenizeConfig(
        input=f"{tmp_path}/raw/*.tar", output=output, vq=vq, resolution=[32], device="cpu"
    )
    tokenize(cfg, tracker)
    return cfg


def test_a_changed_tar_of_one_size_is_named(tokens, tmp_path, tracker, write_tar, picture):
    path = tmp_path / "raw" / "00001.tar"
    os.utime(path, (1, 1))
    tokenize(tokens, tracker)  # read once
    assert json.loads((tmp_path / "out" / UNITS_FILE).read_bytes())["00001"][1] == str(10**9)
    num_bytes = path.stat().st_size
    write_tar(path, {"2.png": picture(seed=1)})
    assert path.stat().st_size == num_bytes
    with pytest.raises(DataError, match=r"00001\.tar: sha256 [0-9a-f]{16}, but [0-9a-f]{16} when"):
        tokenize(tokens, tracker)
    for name in ("00001.json", "00001.tar"):  # what the message says
        (tmp_path / "out" / "32" / name).unlink()
    assert tokenize(tokens, tracker)["written"] == {"32": 2}


def test_an_input_of_tars_is_told_without_reading_it(tokens, tmp_path, monkeypatch, write_tar):
    before = tokenize_inputs(tokens)
    (tmp_path / "raw" / "00000_stats.json").write_text("{}")
    (tmp_path / "raw" / "NOTES.txt").write_text("notes")
    monkeypatch.setattr("mgpt.files.atomic.file_sha256", None)
    assert tokenize_inputs(tokens) == before
    write_tar(tmp_path / "raw" / "00002.tar", {"x.txt": b"x"})
    assert tokenize_inputs(tokens) != before
