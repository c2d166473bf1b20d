"""Names of raw shards, and the estimate of their samples."""

import json

import pytest

from data_pipeline.raw.inputs import estimate_samples, find_raw_shards
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
