"""Verify says ok only when everything is proven, and names what is not."""

import shutil
from pathlib import Path

import pytest

from data_pipeline.tokenize_shards import TokenizeConfig, tokenize
from data_pipeline.verify_shards import VerifyConfig, verify
from mgpt.errors import DataError


@pytest.fixture
def made(tmp_path, tracker, vq, write_tar, picture) -> Path:
    """Two raw shards tokenised at 16 and 32 px: 9 inputs, 3 of them too small for 32, 1 broken."""
    for shard in range(2):
        members = {f"{n}.png": picture(36, 32 if n else 20, seed=n) for n in range(4)}
        write_tar(tmp_path / "raw" / f"{shard:05d}.tar", {**members, f"bad{shard}.png": b""})
    make(tmp_path, vq, tracker)
    return tmp_path


def make(folder: Path, vq: str, tracker) -> None:
    cfg = TokenizeConfig(
        input=str(folder / "raw"), output=str(folder / "tok"), vq=vq, resolution=[16, 32]
    )
    tokenize(cfg, tracker)


def run(made: Path, tracker, **changes) -> dict:
    return verify(VerifyConfig(input=str(made / "tok"), **changes), tracker)


def test_a_sound_output(made, tracker):
    result = run(made, tracker, raw=str(made / "raw"))
    assert result == {
        "inputs": 10,
        "written": 6,
        "rejected": 4,
        "partly_written": 2,
        "duplicates": 0,
        "damaged_shards": [],
        "problems": [],
        "ok": True,
    }


@pytest.mark.parametrize("suffix", ["tar", "index.npy", "json"])
def test_a_changed_byte_is_reported(made, tracker, suffix):
    path = made / "tok" / "32" / f"00001.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = run(made, tracker)
    assert not result["ok"] and any("00001" in problem for problem in result["problems"])


def test_a_missing_shard_is_reported(made, tracker):
    (made / "tok" / "32" / "00001.json").unlink()
    result = run(made, tracker)
    assert not result["ok"] and "00001 is missing" in result["problems"][0]


def test_a_raw_shard_without_output_or_with_other_bytes(made, tracker, write_tar, picture):
    shutil.copy(made / "raw" / "00000.tar", made / "raw" / "00002.tar")
    result = run(made, tracker, raw=str(made / "raw"))
    assert not result["ok"] and "not tokenised" in result["problems"][0]
    (made / "raw" / "00002.tar").unlink()
    write_tar(made / "raw" / "00000.tar", {"0.png": picture()})
    result = run(made, tracker, raw=str(made / "raw"))
    assert not result["ok"] and "sha256" in result["problems"][0]


def test_damaged_raw_shards_need_leave(made, tracker, vq):
    data = (made / "raw" / "00000.tar").read_bytes()
    (made / "raw" / "00002.tar").write_bytes(data[: len(data) // 2])
    make(made, vq, tracker)
    result = run(made, tracker)
    assert (result["damaged_shards"], result["ok"], result["problems"]) == (["00002"], False, [])
    assert run(made, tracker, allow_damaged=True)["ok"]


def test_no_output_at_all(tmp_path, tracker):
    with pytest.raises(DataError, match=r"settings\.json"):
        verify(VerifyConfig(input=str(tmp_path)), tracker)
