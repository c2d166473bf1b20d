"""Names of raw shards, and the estimate of their samples."""

import gzip
import json
import os

import pytest

from data_pipeline.raw.inputs import counted, estimate_samples, find_raw_shards, passed_over
from data_pipeline.raw.shards import RawShardReader
from mgpt.errors import DataError


@pytest.fixture
def folder(tmp_path, write_tar):
    for name in ("00000", "a b", "sub/00000"):
        write_tar(tmp_path / f"{name}.tar", {f"{n}.jpg": b"x" for n in range(4)})
    write_tar(tmp_path / ".hidden.tar", {})
    return tmp_path


def test_folder_glob_file_and_list(folder):
    assert list(find_raw_shards(str(folder))) == ["00000", "a_b", "sub-00000"]
    assert find_raw_shards(f"{folder}/0*.tar") == {"00000": folder / "00000.tar"}
    assert find_raw_shards(str(folder / "00000.tar")) == {"00000": folder / "00000.tar"}
    both = find_raw_shards([f"{folder}/a*.tar", str(folder / "sub")])
    assert list(both) == ["00000", "a_b"]


def test_two_shards_of_one_name_and_none_at_all(folder):
    with pytest.raises(DataError, match="'00000'"):
        find_raw_shards([str(folder / "00000.tar"), str(folder / "sub" / "00000.tar")])
    with pytest.raises(DataError, match="no raw shards"):
        find_raw_shards(str(folder / "nothing"))
    (folder / "gone.tar").symlink_to(folder / "nowhere")
    with pytest.raises(DataError, match=r"gone\.tar"):
        find_raw_shards(str(folder))


def test_counts_beside_the_shard_or_by_size(folder):
    (folder / "00000.json").write_text(json.dumps({"samples": 11}))
    (folder / "sub" / "00000_stats.json").write_text(json.dumps({"successes": 12}))
    counts = estimate_samples(find_raw_shards(str(folder)))
    assert counts == {"00000": 11, "a_b": 4, "sub-00000": 12}


def test_a_long_shard_is_looked_at_and_not_read_through(tmp_path, write_tar):
    write_tar(tmp_path / "00000.tar", {f"{number:04d}.jpg": b"x" for number in range(600)})
    (count,) = estimate_samples(find_raw_shards(str(tmp_path))).values()
    assert count == pytest.approx(600, rel=0.02)


def test_tars_of_a_folder_and_what_lies_beside_them(tmp_path, write_tar):
    write_tar(tmp_path / "a.TAR", {"0.jpg": b"x"})
    write_tar(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.tar", {"0.jpg": b"x"})
    for name in ("b.tar.gz", "c.tgz", "a_stats.json", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    assert list(find_raw_shards(str(tmp_path))) == ["a"]
    assert counted(passed_over(str(tmp_path))) == (
        "1 × .md, 1 × .tar.gz (compressed: unpack it to a plain .tar), "
        "1 × .tgz (compressed: unpack it to a plain .tar), 1 × hidden folder .ipynb_checkpoints"
    )


def test_compressed_tars_are_refused_by_name(tmp_path):
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"b\.tar\.gz: a compressed tar.*gunzip"):
        find_raw_shards(str(tmp_path / "b.tar.gz"))
    with pytest.raises(DataError, match=r"no raw shards there.*1 × \.tar\.gz \(compressed"):
        find_raw_shards(str(tmp_path))
    (tmp_path / "c.tar").write_bytes(gzip.compress(os.urandom(2000)))
    with RawShardReader.open(tmp_path / "c.tar") as reader:
        assert list(reader) == []
    assert reader.damaged == "no tar but gzip; unpack it to a plain .tar"


def test_braces_name_local_shards_as_those_of_urls(tmp_path, write_tar):
    for number in range(4):
        write_tar(tmp_path / f"{number:05d}.tar", {"0.jpg": b"x"})
    found = find_raw_shards(f"{tmp_path}/{{00001..00002}}.tar")
    assert list(found) == ["00001", "00002"]
    write_tar(tmp_path / "{odd}.tar", {"0.jpg": b"x"})
    assert list(find_raw_shards(f"{tmp_path}/{{odd}}.tar")) == ["_odd_"]
