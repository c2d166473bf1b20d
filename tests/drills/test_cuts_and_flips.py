"""Damage of any kind is reported: every cut, a thousand flipped bits, every lost raw member.

The short form takes a smaller shard and fewer flips; `-m long` the whole of it.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_pipeline.raw.shards import Picture, RawSample, RawShardReader, RawShardWriter
from data_pipeline.tokenizing.job_settings import list_finished, read_settings, settle_settings
from data_pipeline.tokenizing.shard_audit import ShardAuditor
from mgpt.data.shards import ShardWriter, TokenisedSample

FILES = ("tar", "index.npy", "json")


def write_tokenised(output: Path, num_samples: int) -> ShardAuditor:
    """A finished output of one shard at one resolution, as `mgpt tokenize` leaves it."""
    settings = {
        "job": "tokenize",
        "resolution": [64],
        "latent_px": 8,
        "num_codes": 512,
        "vq_fingerprint": "0123456789abcdef",
    }
    fingerprint = settle_settings(output, settings, "mgpt tokenize")
    rng = np.random.default_rng(0)
    with ShardWriter(output / "64", "00000") as writer:
        for number in range(num_samples):
            codes = {
                name: rng.integers(0, 512, (8, 8 + 2 * (number % 3)), np.uint16)
                for name in ("image", "depth")[: 1 + number % 2]
            }
            meta = {"caption": "a caption " * (1 + number % 40), "tasks": ["caption"]}
            writer.add(TokenisedSample(f"sample.{number:05d}", meta, codes))
        writer.close(
            {
                "raw": {"name": "00000", "sha256": "0" * 64, "inputs": num_samples + 1,
                        "bytes": 9, "damaged": None, "ignored": {}},
                "rejected": [("small", "too_small")],
                "resolution_px": 64,
                "settings_fingerprint": fingerprint,
                **{name: settings[name] for name in ("latent_px", "num_codes", "vq_fingerprint")},
            }
        )  # fmt: skip
    list_finished(output, ["00000"])
    return ShardAuditor(output, read_settings(output))


def unreported_cuts(auditor: ShardAuditor, path: Path) -> list[int]:
    """Lengths, multiples of 512, to which a file can be cut without a report."""
    whole = path.read_bytes()
    missed = []
    try:
        for size in range(0, len(whole), 512):
            path.write_bytes(whole[:size])
            if not auditor.audit("00000").problems:
                missed.append(size)
    finally:
        path.write_bytes(whole)
    return missed


def unreported_flips(auditor: ShardAuditor, path: Path, count: int, seed: int) -> list[int]:
    """Places of a file, drawn by `seed`, where a flipped bit is not reported."""
    whole, rng = path.read_bytes(), np.random.default_rng(seed)
    missed = []
    try:
        for place in rng.integers(0, len(whole), count).tolist():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            if not auditor.audit("00000").problems:
                missed.append(place)
    finally:
        path.write_bytes(whole)
    return missed


@pytest.mark.parametrize(
    ("num_samples", "num_flips"),
    [
        pytest.param(6, 60, id="short"),
        pytest.param(150, 1_000, id="long", marks=pytest.mark.long),
    ],
)
def test_every_cut_and_flip_of_a_tokenised_shard(tmp_path, num_samples, num_flips):
    auditor = write_tokenised(tmp_path, num_samples)
    assert auditor.audit("00000").problems == []
    for suffix in FILES:
        path = tmp_path / "64" / f"00000.{suffix}"
        assert unreported_cuts(auditor, path) == [], suffix
        assert unreported_flips(auditor, path, num_flips, seed=num_samples) == [], suffix
    assert auditor.audit("00000").problems == [], "the files stand as they did"


def write_raw(path: Path, num_samples: int) -> None:
    rng = np.random.default_rng(1)
    with RawShardWriter(path) as writer:
        for number in range(num_samples):
            pictures = {"image": Picture(rng.bytes(int(rng.integers(1, 2_000))), "jpg")}
            if number % 2:
                pictures["depth"] = Picture(rng.bytes(int(rng.integers(1, 2_000))), "png")
            writer.add(RawSample(f"k{number}", pictures, {"caption": f"picture {number}"}))
        writer.close()


@pytest.mark.parametrize(
    ("num_samples", "step"),
    [pytest.param(4, 512, id="short"), pytest.param(40, 128, id="long", marks=pytest.mark.long)],
)
def test_every_cut_of_a_raw_shard_that_loses_a_member(tmp_path, num_samples, step):
    write_raw(tmp_path / "whole.tar", num_samples)
    whole = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [info.offset_data + -(-info.size // 512) * 512 for info in tar]
    unseen_by_webdataset = 0
    for size in range(0, len(whole), step):
        data = whole[:size]
        reader = RawShardReader(io.BytesIO(data), "cut.tar")
        seen = sum(1 for _ in reader)
        lost = sum(end > size for end in ends)
        assert reader.damaged is not None, f"cut to {size} bytes, {lost} members lost"
        assert seen <= num_samples
        if lost and size in ends:
            (tmp_path / "cut.tar").write_bytes(data)
            read = webdataset.WebDataset(str(tmp_path / "cut.tar"), shardshuffle=False)
            unseen_by_webdataset += len(list(read)) < num_samples
    assert unseen_by_webdataset > 0, "what this guards against: a reader that says nothing"
