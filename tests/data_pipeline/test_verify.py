"""Verify says ok only when everything is proven, and names what is not."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import verify as stage
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.shard_audit import spread
from data_pipeline.verify import Config as VerifyConfig
from data_pipeline.verify import verify
from mgpt.data.shards import encode_manifest, read_manifest
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
        "decoded": 0,
        "reasons": {"too_small": 2, "undecodable": 2},
        "shards": 2,
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


def forge(folder: Path, name: str, **changes) -> None:
    """A manifest that says something else, with a checksum that fits."""
    changed = dataclasses.replace(read_manifest(folder, name), **changes)
    (folder / f"{name}.json").write_bytes(encode_manifest(changed))


def test_a_shard_that_is_gone_as_a_whole_is_reported(made, tracker):
    for path in (made / "tok").glob("*/00001.*"):
        path.unlink()
    result = run(made, tracker)
    assert not result["ok"] and "00001 is missing" in result["problems"][0]


def test_a_job_that_has_not_ended_is_not_ok(made, tracker):
    (made / "tok" / "shards.json").unlink()
    assert "has not ended" in run(made, tracker)["problems"][0]
    (made / "tok" / "shards.json").write_text('["00000"]')
    assert "00001 is of a job that has not ended" in run(made, tracker)["problems"][0]
    (made / "tok" / "shards.json").write_text('["00000", "000')
    assert "cannot be read" in run(made, tracker)["problems"][0]


@pytest.mark.parametrize("renamed", [False, True], ids=["as it is", "with its manifest renamed"])
def test_a_shard_that_is_there_twice_is_counted(made, tracker, renamed):
    for px in (16, 32):
        for suffix in ("tar", "index.npy", "json"):
            folder = made / "tok" / str(px)
            shutil.copy(folder / f"00000.{suffix}", folder / f"00007.{suffix}")
        if renamed:
            changed = dataclasses.replace(read_manifest(folder, "00000"), shard="00007")
            (folder / "00007.json").write_bytes(encode_manifest(changed))
    result = run(made, tracker)
    assert not result["ok"] and result["duplicates"] == 4


def test_a_sample_that_is_neither_written_nor_rejected_is_reported(made, tracker):
    for px in (16, 32):
        folder = made / "tok" / str(px)
        rejected = read_manifest(folder, "00000").rejected
        forge(folder, "00000", rejected=tuple(one for one in rejected if one[0] != "bad0"))
    result = run(made, tracker)
    assert not result["ok"] and "5 inputs, but" in result["problems"][0]


def test_a_sample_that_was_swapped_for_another_is_found_in_the_raw_shard(made, tracker):
    for px in (16, 32):
        folder = made / "tok" / str(px)
        rejected = read_manifest(folder, "00000").rejected
        swapped = tuple(("other" if key == "bad0" else key, why) for key, why in rejected)
        forge(folder, "00000", rejected=swapped)
    assert run(made, tracker)["ok"], "the counts are right"
    result = run(made, tracker, raw=str(made / "raw"))
    problems = " ".join(result["problems"])
    assert "1 samples lost ('bad0')" in problems and "1 samples invented ('other')" in problems


def test_settings_that_are_not_those_of_the_shards(made, tracker):
    path = made / "tok" / "settings.json"
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))
    result = run(made, tracker)
    assert not result["ok"] and "settings_fingerprint" in result["problems"][0]


def test_samples_of_every_shard_are_decoded_onto_a_sheet(made, tracker, vq):
    result = run(made, tracker, vq=vq, samples=2, output=str(made / "sheets"))
    assert result["ok"] and result["decoded"] == 2 * 2 * 2
    sheet = np.asarray(Image.open(made / "sheets" / "32.png"))
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100, "pictures, not a blank sheet"
    with pytest.raises(DataError, match="was encoded with VQ model"):
        run(made, tracker, vq="scenes_f8")


def test_two_processes_find_what_one_finds(made, tracker, vq):
    (made / "tok" / "32" / "00001.tar").write_bytes(b"")
    one = run(made, tracker, vq=vq, output=str(made / "one"))
    two = run(made, tracker, vq=vq, output=str(made / "two"), workers=2)
    assert one == two and one["problems"]
    assert (made / "one" / "16.png").read_bytes() == (made / "two" / "16.png").read_bytes()


def test_the_last_line_is_json_and_the_status_says_whether_all_is_proven(made, capsys):
    stage.main(stage.Config(input=str(made / "tok")))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"] is True and result["inputs"] == 10 and result["num_problems"] == 0
    (made / "tok" / "32" / "00001.tar").unlink()
    with pytest.raises(SystemExit) as stopped:
        stage.main(stage.Config(input=str(made / "tok")))
    assert stopped.value.code == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is False


def test_spread():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread("ab", 4) == ["a", "b"] and spread("abc", 1) == ["a"]


def test_no_output_at_all(tmp_path, tracker):
    with pytest.raises(DataError, match=r"settings\.json"):
        verify(VerifyConfig(input=str(tmp_path)), tracker)
