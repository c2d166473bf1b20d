"""The shard format: what is written is read, by us and by others, to the byte."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mgpt.data.reindex import rebuild_index
from mgpt.data.shards import Shard, ShardWriter, TokenisedSample, read_manifest
from mgpt.data.verify import verify_shard
from mgpt.errors import DataError, MachineError


def test_samples_come_back_as_they_were_given(corpus, sample):
    shard = Shard(corpus, "00000")
    assert len(shard) == 30
    for number in (0, 29, 7):
        want, got = sample("00000", number), shard.sample(number)
        assert (got.key, got.meta) == (want.key, want.meta)
        assert shard.key(number) == want.key and shard.meta(number) == want.meta
        assert shard.shapes(number) == {f: c.shape for f, c in want.codes.items()}
        for field, codes_HW in want.codes.items():
            assert np.array_equal(got.codes[field], codes_HW)


def test_any_webdataset_reader_opens_it(tmp_path: Path, write):
    import webdataset

    codes_HW = np.arange(12, dtype=np.uint16).reshape(3, 4)
    write(tmp_path, "0", [TokenisedSample("cat", {"caption": "é"}, {"image": codes_HW})])
    (found,) = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
    assert found["__key__"] == "cat"
    assert json.loads(found["json"]) == {"caption": "é"}
    assert np.array_equal(np.load(io.BytesIO(found["image.npy"]), allow_pickle=False), codes_HW)


def test_tar_members_are_tight_sorted_and_without_clock_or_owner(corpus):
    with tarfile.open(corpus / "00001.tar") as tar:
        members = tar.getmembers()
    keys = [f"{n:05d}.v1" for n in range(20)]
    suffixes = ("json", "depth.npy", "image.npy")
    assert [m.name for m in members] == [f"{key}.{suffix}" for key in keys for suffix in suffixes]
    owners = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members}
    assert owners == {(0, 0, 0, "", "", 0o644)}
    content = sum(512 + -(-m.size // 512) * 512 for m in members)
    assert (corpus / "00001.tar").stat().st_size == content + 1024


def test_the_same_samples_give_the_same_bytes(corpus, tmp_path: Path, write, sample):
    write(tmp_path / "again", "00000", [sample("00000", n) for n in range(30)])
    for suffix in ("tar", "index.npy", "json"):
        first = (corpus / f"00000.{suffix}").read_bytes()
        assert first == (tmp_path / "again" / f"00000.{suffix}").read_bytes()


def test_bytes_are_those_of_every_version(tmp_path: Path, write, sample):
    """A shard of 16-bit codes is what it was before there were others (sha256, first 16 digits)."""
    write(tmp_path, "00000", [sample("00000", n) for n in range(30)])
    digests = {
        suffix: hashlib.sha256((tmp_path / f"00000.{suffix}").read_bytes()).hexdigest()[:16]
        for suffix in ("tar", "index.npy", "json")
    }
    assert digests == {
        "tar": "160c7f1a3324eaba",
        "index.npy": "3da3d85adcd17d40",
        "json": "14bdf998c74d803f",
    }


def test_manifest_tells_hashes_counts_and_rejects(tmp_path: Path, write, sample):
    rejected = [("z", "too_small"), ("b", "no_picture")]
    manifest = write(tmp_path, "0", [sample("0", 1)], rejected=rejected)
    assert manifest == read_manifest(tmp_path, "0")
    tar, index = (tmp_path / "0.tar").read_bytes(), (tmp_path / "0.index.npy").read_bytes()
    assert (manifest.bytes, manifest.index_bytes, manifest.samples) == (len(tar), len(index), 1)
    assert manifest.sha256 == hashlib.sha256(tar).hexdigest()
    assert manifest.index_sha256 == hashlib.sha256(index).hexdigest()
    assert manifest.rejected == (("b", "no_picture"), ("z", "too_small"))
    assert manifest.fields == ("depth", "image")


def test_index_holds_tasks_and_samples_without_pictures(tmp_path: Path, write):
    samples = [
        TokenisedSample("a", {"tasks": ["vqa", "caption"], "n": 1}, {}),
        TokenisedSample("b", {"tasks": ["depth"]}, {}),
        TokenisedSample("c", {}, {}),
    ]
    write(tmp_path, "0", samples)
    shard = Shard(tmp_path, "0")
    assert [shard.tasks(n) for n in range(3)] == [("caption", "vqa"), ("depth",), ()]
    assert shard.sample(0).meta == samples[0].meta and shard.shapes(2) == {}


def test_an_empty_shard_is_a_shard(tmp_path: Path, write):
    assert write(tmp_path, "0", []).samples == 0
    assert len(Shard(tmp_path, "0")) == 0


def test_index_costs_less_than_fifty_bytes_a_sample(tmp_path: Path, write):
    codes_HW = np.zeros((4, 4), np.uint16)
    write(tmp_path, "0", [TokenisedSample(f"{n:09d}", {}, {"image": codes_HW}) for n in range(500)])
    assert (tmp_path / "0.index.npy").stat().st_size / 500 < 50


@pytest.mark.parametrize(("side", "most"), [(32, 3.8), (48, 2.9), (64, 2.6)])
def test_storage_stays_near_the_two_bytes_of_a_token(tmp_path: Path, write, side: int, most: float):
    codes_HW = np.zeros((side, side), np.uint16)
    meta = {"caption": "a caption of about thirty-five tokens " * 4, "size": [1024, 1024]}
    write(
        tmp_path, "0", [TokenisedSample(f"{n:09d}", meta, {"image": codes_HW}) for n in range(500)]
    )
    num_bytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert num_bytes / 500 / (side * (side + 1) + 4 + 35) < most


def test_a_sample_costs_one_read(corpus, monkeypatch):
    import os

    calls, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *a: calls.append(a) or pread(*a))
    shard = Shard(corpus, "00000")
    for num_calls, read in enumerate((shard.sample, shard.codes), start=1):
        read(17)
        assert len(calls) == num_calls


def test_nothing_appears_without_close(tmp_path: Path, sample):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "0") as writer:
        writer.add(sample("0", 1))
        raise RuntimeError("the picture model died")
    assert list(tmp_path.iterdir()) == []


def test_nothing_appears_when_the_claim_is_lost(tmp_path: Path, sample, write):
    before = write(tmp_path, "0", [sample("0", 1)])

    def lost() -> None:
        raise MachineError("claim taken over")

    with pytest.raises(MachineError), ShardWriter(tmp_path, "0") as writer:
        extra = {"num_codes": 64, "raw": {"name": "0"}, "resolution_px": 64, "latent_px": 8}
        prints = {"vq_fingerprint": "", "settings_fingerprint": ""}
        writer.close({**extra, **prints}, before_publish=lost)
    assert read_manifest(tmp_path, "0") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.index.npy", "0.json", "0.tar"]


def test_a_shard_whose_writer_dies_between_its_files_has_no_manifest(
    tmp_path: Path, sample, write, monkeypatch
):
    import mgpt.data.shards

    write(tmp_path, "0", [sample("0", 1)])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mgpt.data.shards, "write_new", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "0", [sample("0", 2)])
    with pytest.raises(DataError, match="never finished"):
        Shard(tmp_path, "0")


def test_leftovers_of_a_dead_writer_are_cleaned(tmp_path: Path, sample, write):
    for name in (".0.tar.0123456789abcdef.tmp", ".0.json.0123456789abcdef.tmp"):
        (tmp_path / name).write_bytes(b"part")
    other = tmp_path / ".00.tar.0123456789abcdef.tmp"
    other.write_bytes(b"a live writer of another shard")
    write(tmp_path, "0", [sample("0", 1)])
    assert [p.name for p in tmp_path.glob(".*")] == [other.name]


@pytest.mark.parametrize("key", ["", "/abs", "a/../b", "x\0y", "k" * 300])
def test_keys_that_cannot_be_file_names_are_refused(tmp_path: Path, key: str):
    with ShardWriter(tmp_path, "0") as writer, pytest.raises(DataError, match="key"):
        writer.add(TokenisedSample(key, {}, {}))


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"a": float("nan")}, "not JSON"),
        ({"a": b"x"}, "not JSON"),
        ({"tasks": "vqa"}, "not a list"),
    ],
)
def test_meta_that_cannot_be_written_is_refused(tmp_path: Path, meta, words: str):
    with ShardWriter(tmp_path, "0") as writer, pytest.raises(DataError, match=words):
        writer.add(TokenisedSample("a", meta, {}))


def test_a_key_twice_is_refused(tmp_path: Path, sample):
    with ShardWriter(tmp_path, "0") as writer:
        writer.add(sample("0", 1))
        with pytest.raises(DataError, match="comes twice"):
            writer.add(sample("0", 1))


def test_codes_beyond_the_codebook_are_refused(tmp_path: Path, write):
    codes_HW = np.full((2, 2), 64, np.uint16)
    with pytest.raises(DataError, match=r"code 64, but the VQ model has 64"):
        write(tmp_path, "0", [TokenisedSample("a", {}, {"image": codes_HW})])
    assert list(tmp_path.iterdir()) == []


def test_a_large_codebook_takes_32_bits(tmp_path: Path, write):
    """Emu3.5 has 131,072 codes: its shards are read, verified and reindexed like any other."""
    codes_HW = np.array([[0, 65536, 131071]], np.uint32)
    sample = TokenisedSample("a", {}, {"image": codes_HW, "depth": codes_HW[:, :2].copy()})
    write(tmp_path, "0", [sample, TokenisedSample("b", {}, {"image": codes_HW})], num_codes=131072)
    shard = Shard(tmp_path, "0")
    for found in (shard.codes(0)["image"], shard.sample(1).codes["image"]):
        assert found.dtype == np.uint32 and np.array_equal(found, codes_HW)
    assert shard.codes(0, ["depth"])["depth"].tolist() == [[0, 65536]]
    assert verify_shard(tmp_path, "0") == []
    index = (tmp_path / "0.index.npy").read_bytes()
    (tmp_path / "0.index.npy").unlink()
    assert rebuild_index(tmp_path, "0") and (tmp_path / "0.index.npy").read_bytes() == index


def test_several_code_planes_a_picture_are_refused_by_name(tmp_path: Path, write):
    planes = np.zeros((4, 2, 2), np.uint16)
    with pytest.raises(DataError, match=r"field 'image'.*several code planes a picture"):
        write(tmp_path, "0", [TokenisedSample("a", {}, {"image": planes})])


def test_an_altered_manifest_is_refused(corpus):
    path = corpus / "00000.json"
    path.write_text(path.read_text().replace('"samples": 30', '"samples": 31'))
    with pytest.raises(DataError, match="own checksum"):
        read_manifest(corpus, "00000")


def test_a_tar_cut_short_is_refused(corpus):
    path = corpus / "00000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"manifest says"):
        Shard(corpus, "00000")


def test_a_field_that_is_not_the_index_s_is_refused(corpus):
    path = corpus / "00000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"\x93NUMPY")
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"00000.v1.*'depth' is not the"):
        Shard(corpus, "00000").sample(0)


def test_an_unwritable_folder_is_one_message(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot be written"):
        ShardWriter(tmp_path / "file" / "64", "0")
