"""Every cut and every flipped byte of a shard is reported."""

import dataclasses
import shutil

import numpy as np
import pytest

from mgpt.data.shards import TokenisedSample, canonical_json, encode_manifest
from mgpt.data.verify import verify_shard

SUFFIXES = ("tar", "index.npy", "json")
INDEX_ENTRIES = ("index_bytes", "index_sha256", "fields", "tasks")


def test_a_sound_shard_has_no_problem(corpus):
    assert verify_shard(corpus, "00000") == [] == verify_shard(corpus, "00001")


def test_every_cut_at_a_block_is_reported(tmp_path, write, sample):
    write(tmp_path, "0", [sample("0", n) for n in range(4)])
    whole = (tmp_path / "0.tar").read_bytes()
    for size in range(0, len(whole), 512):
        (tmp_path / "0.tar").write_bytes(whole[:size])
        assert verify_shard(tmp_path, "0"), size


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_flipped_byte_is_reported(tmp_path, write, sample, suffix):
    write(tmp_path, "0", [sample("0", n) for n in range(3)])
    path = tmp_path / f"0.{suffix}"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.choice(len(whole), 340).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert verify_shard(tmp_path, "0"), place


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_behind_the_end_and_missing_files_are_reported(corpus, suffix):
    path = corpus / f"00000.{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    assert verify_shard(corpus, "00000")
    path.unlink()
    assert verify_shard(corpus, "00000")


def test_a_flipped_code_is_found_by_the_hash_alone(corpus):
    path = corpus / "00000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"\x93NUMPY") + 128] ^= 1
    path.write_bytes(data)
    problems = verify_shard(corpus, "00000")
    assert len(problems) == 1 and "sha256" in problems[0]  # a flipped code is still a code


def test_a_changed_name_names_its_sample(corpus):
    path = corpus / "00000.tar"
    path.write_bytes(path.read_bytes().replace(b"00003.v1.json", b"00003.v2.json"))
    assert any("00003.v1" in problem for problem in verify_shard(corpus, "00000"))


def test_sound_files_of_different_samples_are_reported(tmp_path, write, sample):
    """A tar and an index that each match the manifest's hashes, but not each other."""
    first = write(tmp_path / "a", "0", [sample("0", 1), sample("0", 2)])
    other = write(tmp_path / "b", "0", [sample("0", 2), sample("0", 1)])
    shutil.copy(tmp_path / "b/0.index.npy", tmp_path / "a/0.index.npy")
    forged = dataclasses.replace(first, **{n: getattr(other, n) for n in INDEX_ENTRIES})
    (tmp_path / "a/0.json").write_bytes(encode_manifest(forged))
    assert verify_shard(tmp_path / "a", "0")


def test_codes_beyond_the_codebook_are_reported(tmp_path, write):
    codes_HW = np.full((2, 2), 63, np.uint16)
    manifest = write(tmp_path, "0", [TokenisedSample("a", {}, {"image": codes_HW})])
    smaller = dataclasses.replace(manifest, num_codes=63)
    (tmp_path / "0.json").write_bytes(encode_manifest(smaller))
    (problem,) = verify_shard(tmp_path, "0")
    assert "holds code 63, the VQ model has 63" in problem


def test_canonical_json_is_sorted_and_tight():
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
