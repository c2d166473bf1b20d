"""Every rejection says what was seen and where, on the disk; every reason has its meaning."""

import json
import re
from pathlib import Path

from data_pipeline.pack import PackConfig, pack
from data_pipeline.raw.shards import Rejected
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.details import REASONS, Details, read_details

ROOT = Path(__file__).parents[3]


def test_every_reason_is_explained():
    said = re.compile(r"(?:BadRecord|Rejected)\([^\"]*?\"([a-z_]+)\"|refuse\(\s*\"([a-z_]+)\"")
    found = {
        one or other
        for path in (ROOT / "data_pipeline").rglob("*.py")
        for one, other in said.findall(path.read_text())
    } - {"cat", "file"}
    assert len(found) > 25 and not found - REASONS.keys()


def test_a_rejected_record_is_found_by_its_file_and_line(tmp_path, tracker, capsys):
    line = '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}\n'
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(line * 3)
    (tmp_path / "in" / "b.jsonl").write_text(line + "not json\n")
    cfg = PackConfig(source="chat", input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    assert pack(cfg, tracker)["rejected"] == {"bad_json": 1}
    (rejected,) = json.loads((tmp_path / "out/00001.json").read_bytes())["explained"]
    assert (rejected["file"], rejected["line"], rejected["reason"]) == ("b.jsonl", 2, "bad_json")
    assert "Expecting value" in rejected["detail"]
    assert "not one JSON object" in " ".join(capsys.readouterr().out.split())


def test_tokenising_says_at_which_resolution_and_how_many_have_captions(
    tmp_path, tracker, vq, write_tar, picture, capsys
):
    members = {"a.png": picture(20, 20), "a.txt": b"a", "b.png": picture(40, 40)}
    write_tar(tmp_path / "raw" / "00000.tar", {**members, "c.png": b"none"})
    cfg = TokenizeConfig(
        input=str(tmp_path / "raw"), output=str(tmp_path / "out"), vq=vq, resolution=[16, 32]
    )
    tokenize(cfg, tracker)
    (details,) = read_details(tmp_path / "out", ["00000"])
    assert (details.pictures, details.captions) == (3, 1)
    assert [(one["key"], one.get("px")) for one in details.explained] == [("a", 32), ("c", None)]
    assert "captions: 1 of 3 samples with pictures (33%)" in capsys.readouterr().out


def test_a_resolution_that_is_made_later_keeps_what_the_others_said(tmp_path):
    for px in (16, 32):
        details = Details()
        details.reject(Rejected("a", "undecodable"))
        details.reject(Rejected("b", "too_small"), px)
        details.write(tmp_path, "00000", [px])
    (found,) = read_details(tmp_path, ["00000"])
    assert [(one["key"], one.get("px")) for one in found.explained] == [
        ("a", None),
        ("b", 16),
        ("b", 32),
    ]
