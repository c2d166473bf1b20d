"""The strict reader of raw tars: what it accepts, what it refuses, where it says a shard is cut."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset

from data_pipeline.raw import shards as raw_shards
from data_pipeline.raw import tar_stream
from data_pipeline.raw.member_names import split_name
from data_pipeline.raw.shards import (
    Picture,
    RawSample,
    RawShardReader,
    RawShardWriter,
    Rejected,
)
from mgpt.errors import DataError


def read(path: Path) -> tuple[list, RawShardReader]:
    with RawShardReader.open(path) as reader:
        return list(reader), reader


def outcomes(path: Path) -> dict[str, str]:
    """Key to reason, or to `written`."""
    items, _ = read(path)
    return {i.key: i.reason if isinstance(i, Rejected) else "written" for i in items}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("000000012.jpg", ("000000012", "image", "jpg")),
        ("a.b.c.PNG", ("a.b.c", "image", "png")),
        ("part/scene.v2.depth.png", ("part/scene.v2", "depth", "png")),
        ("./x.view_03.png", ("x", "view_03", "png")),
        ("photo.v1.json", ("photo.v1", "json", "json")),
        ("photo.pkl", ("photo", "", "pkl")),
        ("depth.png", ("depth", "image", "png")),
        (".png", (".png", "", "")),
    ],
)
def test_split_name(name, parts):
    assert split_name(name) == parts


def test_round_trip_and_identical_bytes(tmp_path):
    samples = [
        RawSample("cat.v1", {"image": Picture(b"jpeg", "jpg")}, {"caption": "a cät", "n": 1}),
        RawSample("view", {"view_00": Picture(b"a", "png"), "view_01": Picture(b"b", "png")}, {}),
    ]
    stats = []
    for name in ("a", "b"):
        with RawShardWriter(tmp_path / f"{name}.tar") as writer:
            for sample in samples:
                writer.add(sample)
            stats.append(writer.close())
    items, reader = read(tmp_path / "a.tar")
    assert items == samples
    assert reader.damaged is None and reader.inputs == 2
    assert reader.sha256 == stats[0].sha256 and reader.num_bytes == stats[0].bytes
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.mtime, m.uid, m.gid) for m in tar} == {(0, 0, 0)}


def test_webdataset_reads_what_is_written(tmp_path):
    with RawShardWriter(tmp_path / "a.tar") as writer:
        writer.add(RawSample("k1", {"image": Picture(b"jpeg", "jpg")}, {"caption": "x"}))
        writer.close()
    (sample,) = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert sample["__key__"] == "k1" and sample["jpg"] == b"jpeg"
    assert json.loads(sample["json"]) == {"caption": "x"}


def test_unfinished_writer_leaves_nothing_and_refuses_a_key_twice(tmp_path):
    sample = RawSample("k", {"image": Picture(b"x", "png")}, {})
    with pytest.raises(DataError, match="'k'"), RawShardWriter(tmp_path / "a.tar") as writer:
        writer.add(sample)
        writer.add(sample)
    assert list(tmp_path.iterdir()) == []


def test_caption_from_txt_only_where_json_has_none(tmp_path, write_tar):
    write_tar(
        tmp_path / "a.tar",
        {
            "1.jpg": b"x",
            "1.txt": b" a caption\n",
            "2.jpg": b"x",
            "2.json": b'{"caption": "from json"}',
            "2.txt": b"from txt",
        },
    )
    items, _ = read(tmp_path / "a.tar")
    assert [item.meta["caption"] for item in items] == ["a caption", "from json"]


def test_hostile_members_are_refused_by_reason(tmp_path, write_tar):
    members = [
        ("good.jpg", b"x"),
        ("good.pkl", b"cos\nsystem\n(S'touch /tmp/owned'\ntR."),
        ("../up.jpg", b"x"),
        ("/absolute.jpg", b"x"),
        ("latin.jpg", b"x"),
        ("latin.txt", "é".encode("latin-1")),
        ("list.jpg", b"x"),
        ("list.json", b"[1]"),
        ("deep.jpg", b"x"),
        ("deep.json", b"[" * 100_000),
        ("infinite.jpg", b"x"),
        ("infinite.json", b'{"a": 1e999}'),
        ("half.jpg", b"x"),
        ("half.json", b'{"caption": "\\ud800"}'),
        ("tasks.jpg", b"x"),
        ("tasks.json", b'{"tasks": "depth"}'),
        ("none.json", b'{"caption": "no picture"}'),
        ("talk.json", b'{"dialog": [["a", "b"]]}'),
        ("two.jpg", b"x"),
        ("two.png", b"x"),
        ("k" * 81 + ".jpg", b"x"),
        ("good.jpg", b"again"),
    ]
    write_tar(tmp_path / "a.tar", members)
    items, reader = read(tmp_path / "a.tar")
    found = [(i.key, i.reason if isinstance(i, Rejected) else "written") for i in items]
    assert found == [
        ("good", "written"),
        ("../up", "unsafe_name"),
        ("/absolute", "unsafe_name"),
        ("latin", "text_not_utf8"),
        ("list", "bad_json"),
        ("deep", "bad_json"),
        ("infinite", "bad_json"),
        ("half", "text_not_utf8"),
        ("tasks", "bad_json"),
        ("none", "missing_picture"),
        ("talk", "written"),
        ("two", "duplicate_member"),
        ("k" * 81, "name_too_long"),
        ("good", "duplicate_key"),
    ]
    assert reader.inputs == len(found) and reader.damaged is None
    assert reader.ignored == {"pkl": 1}


def test_links_and_names_that_are_not_utf8(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("caf\udce9.jpg", "d" * 120 + "/" + "n" * 40 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    assert outcomes(tmp_path / "a.tar") == {
        "link": "not_a_file",
        "caf\\xe9": "name_not_utf8",
        "d" * 120 + "/" + "n" * 40: "name_too_long",
    }


def test_a_false_size_is_damage_and_costs_no_memory(tmp_path):
    info = tarfile.TarInfo("big.jpg")
    info.size = 10 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 700)
    items, reader = read(tmp_path / "a.tar")
    assert [(i.key, i.reason) for i in items] == [("big", "cut_short")]
    assert "big.jpg" in reader.damaged


def test_a_member_above_the_limit_is_passed_over(tmp_path, write_tar, monkeypatch):
    monkeypatch.setattr(tar_stream, "MAX_MEMBER_BYTES", 1000)
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x" * 1001, "2.jpg": b"y"})
    assert outcomes(tmp_path / "a.tar") == {"1": "member_too_large", "2": "written"}


def test_a_sample_above_the_limit_is_refused(tmp_path, write_tar, monkeypatch):
    monkeypatch.setattr(raw_shards, "MAX_SAMPLE_BYTES", 1000)
    members = {f"1.view_{n:02d}.jpg": b"x" * 400 for n in range(3)}
    write_tar(tmp_path / "a.tar", {**members, "2.jpg": b"y"})
    assert outcomes(tmp_path / "a.tar") == {"1": "sample_too_large", "2": "written"}


def test_every_cut_is_reported_and_whole_samples_survive(tmp_path, write_tar):
    """Cut at every 256 bytes: damaged unless only padding is gone; no key is lost or invented."""
    keys = ["a", "b", "c"]
    whole = {f"{k}.{e}": k.encode() * 300 for k in keys for e in ("jpg", "txt")}
    data = write_tar(tmp_path / "whole.tar", whole).read_bytes()
    _, reader = read(tmp_path / "whole.tar")
    assert reader.damaged is None
    member = 512 + 512  # header and padded content
    end_marker = 2 * 3 * member
    for cut in range(0, len(data), 256):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        items, reader = read(tmp_path / "cut.tar")
        assert (reader.damaged is None) == (cut >= end_marker + 1024), cut
        seen = {i.key: i.reason if isinstance(i, Rejected) else "written" for i in items}
        started = -(-(cut // 512) // 2) if cut < end_marker else 6  # members whose header is whole
        assert list(seen) == keys[: -(-started // 2)], cut
        for number, key in enumerate(seen):
            is_whole = cut >= 2 * (number + 1) * member
            # A first sample has no neighbour that tells whether more of it was to follow.
            known = is_whole and (number > 0 or len(seen) > 1 or reader.damaged is None)
            assert (seen[key] == "written") == known, (cut, key, seen)


def test_two_tars_put_together_are_damage(tmp_path, write_tar):
    data = write_tar(tmp_path / "a.tar", {"1.jpg": b"x"}).read_bytes()
    (tmp_path / "b.tar").write_bytes(data + data)
    items, reader = read(tmp_path / "b.tar")
    assert len(items) == 1 and "after the end marker" in reader.damaged
