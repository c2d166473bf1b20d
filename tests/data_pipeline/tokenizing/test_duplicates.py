"""Duplicates over a whole job: the same whoever looks, and the same as comparing every pair."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.duplicates import RECORD_DTYPE, find_duplicates
from data_pipeline.tokenizing.filters import FilterConfig
from data_pipeline.tokenizing.looks import are_alike
from mgpt.data.shards import read_manifest
from mgpt.errors import ConfigError


def records_of(rows: list[tuple[int, int, int, bool]]) -> np.ndarray:
    """(content, bits that are flipped, colour, has a look) each."""
    records_N = np.zeros(len(rows), RECORD_DTYPE)
    for record, (content, flipped, colour, has_look) in zip(records_N, rows):
        record["content"] = bytes([content, 0, 7])
        record["look"]["bits"] = np.uint64(0x9E3779B97F4A7C15 ^ flipped)
        record["look"]["colours"] = colour
        record["has_look"] = has_look
    return records_N


flips = st.lists(st.sampled_from([0, 1, 17, 31, 32, 63]), max_size=4).map(
    lambda places: sum({1 << place for place in places})
)
rows = st.lists(st.tuples(st.integers(0, 5), flips, st.sampled_from([0, 10, 30]), st.booleans()))


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(0, 4), st.booleans())
def test_it_is_what_comparing_every_pair_finds(rows, max_bits, drop_duplicates):
    records_N = records_of(rows)
    cfg = FilterConfig(max_look_bits=max_bits, drop_duplicates=drop_duplicates)
    first_of_N, same_bytes_N = find_duplicates(records_N, cfg)
    for place, record in enumerate(records_N):
        earlier = records_N[:place]
        same = np.flatnonzero(earlier["content"] == record["content"])
        alike = are_alike(record["look"], earlier["look"], max_bits) & (earlier["has_look"] == 1)
        places = np.flatnonzero(alike) if record["has_look"] else []
        if drop_duplicates and len(same):
            assert same_bytes_N[place] and first_of_N[place] == same[0]
        else:
            assert not same_bytes_N[place]
            assert first_of_N[place] == (places[0] if len(places) else -1)


@pytest.fixture
def raw(tmp_path, write_tar, picture) -> Path:
    """Pictures 0 to 5 over three shards, some of them twice, once as a JPEG."""
    held = [[0, 1, 2], [2, 3, 0], [4, 1, 5]]
    for shard, seeds in enumerate(held):
        members = {f"{shard}-{seed}.png": picture(40, 40, seed=seed) for seed in seeds}
        write_tar(tmp_path / "raw" / f"{shard:05d}.tar", members)
    again = picture(40, 40, seed=3, form="JPEG")
    write_tar(tmp_path / "raw" / "00003.tar", {"3-3.jpg": again, "3-9.png": b"broken"})
    return tmp_path / "raw"


def run(raw: Path, vq: str, tracker, output: str, **changes) -> dict[str, dict[str, str]]:
    """Tokenise; by shard what was rejected and why."""
    filters = FilterConfig(drop_duplicates=True, max_look_bits=8, duplicates_across="job")
    cfg = {"input": str(raw), "vq": vq, "resolution": [32], "filters": filters} | changes
    tokenize(TokenizeConfig(output=str(raw.parent / output), **cfg), tracker)
    return {
        unit: dict(read_manifest(raw.parent / output / "32", unit).rejected)
        for unit in ("00000", "00001", "00002", "00003")
    }


def test_the_first_of_a_job_stays_whichever_worker_takes_it(raw, vq, tracker, tree):
    rejected = run(raw, vq, tracker, "one")
    assert rejected == {
        "00000": {},
        "00001": {"1-2": "duplicate_picture", "1-0": "duplicate_picture"},
        "00002": {"2-1": "duplicate_picture"},
        "00003": {"3-3": "lookalike_picture", "3-9": "undecodable"},
    }
    assert run(raw, vq, tracker, "two", workers=2) == rejected
    assert tree(raw.parent / "one") == tree(raw.parent / "two")
    named = json.loads((raw.parent / "one" / "duplicates" / "00003.json").read_text())
    assert named == {"3-3": ["lookalike_picture", "of 00001/1-3"]}


def test_a_rerun_changes_nothing_and_another_raw_shard_is_refused(
    raw, vq, tracker, write_tar, picture
):
    run(raw, vq, tracker, "out")
    stamps = {path: path.stat().st_mtime_ns for path in (raw.parent / "out").rglob("*")}
    run(raw, vq, tracker, "out")
    after = {path: path.stat().st_mtime_ns for path in (raw.parent / "out").rglob("*")}
    assert {p: t for p, t in stamps.items() if p.is_file()} == {
        p: t for p, t in after.items() if p.is_file()
    }
    write_tar(raw / "00000a.tar", {"new.png": picture(40, 40, seed=5)})
    with pytest.raises(ConfigError, match="duplicates_among"):
        run(raw, vq, tracker, "out")


def test_within_a_shard_only_its_own_copies_are_dropped(raw, vq, tracker):
    filters = FilterConfig(drop_duplicates=True, max_look_bits=8)
    rejected = run(raw, vq, tracker, "shard", filters=filters)
    assert [len(one) for one in rejected.values()] == [0, 0, 0, 1]
