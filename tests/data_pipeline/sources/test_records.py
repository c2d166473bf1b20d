"""Records of every kind of file, in spans: all of them, in order, the bad ones by reason."""

import json
import re
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from data_pipeline.pack import PackConfig, pack
from data_pipeline.sources.record_files import (
    BadRecord,
    JsonStream,
    find_spans,
    open_records,
    read_span,
)
from mgpt.errors import ConfigError, DataError

PAGE = Path(__file__).parents[3] / "data_pipeline" / "README.md"
RECORDS = [{"n": n, "text": 'ü "]},{[' * n} for n in range(11)]  # what a careless reader trips on


def write(path: Path) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path, row_group_size=4)
    elif path.suffix == ".json":
        path.write_text(json.dumps(RECORDS, indent=1, ensure_ascii=False))
    else:
        path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in RECORDS))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("step", [1, 3, 5, 11, 50])
def test_spans_of_any_step_join_to_the_file(tmp_path, suffix, step):
    spans = list(find_spans(write(tmp_path / f"a{suffix}"), step))
    assert [span.count for span in spans[:-1]] == [step] * (len(spans) - 1)
    for span in reversed(spans):  # each by itself, whatever was read before
        numbers = range(span.first, span.first + span.count)
        assert list(read_span(span)) == [(number, RECORDS[number]) for number in numbers]
    assert sum(span.count for span in spans) == len(RECORDS)


def test_a_list_is_read_across_the_borders_of_what_is_held(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json")
    for chunk in (2, 3, 7):
        monkeypatch.setattr("data_pipeline.sources.record_files.CHUNK_BYTES", chunk)
        with open_records(path) as stream:
            found = list(JsonStream(stream, path).elements())
        assert [value for _, value in found] == RECORDS
        for offset, value in found:
            assert json.JSONDecoder().raw_decode(path.read_bytes()[offset:].decode())[0] == value


def test_numbers_at_a_border_and_members_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.record_files.CHUNK_BYTES", 2)
    path = tmp_path / "a.json"
    path.write_text('{"one": 12345, "two": [67, 890, {"x": 1}], "three": []}')
    with open_records(path) as stream:
        json_stream = JsonStream(stream, path)
        found = [
            (name, [value for _, value in json_stream.elements()])
            if json_stream.peek() == "["
            else (name, json_stream.value())
            for name in json_stream.members()
        ]
    assert found == [("one", 12345), ("two", [67, 890, {"x": 1}]), ("three", [])]


def test_bad_records_come_out_in_their_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 0}\n\n[1]\n{"n": \n\xff\n{"n": NaN}')
    (span,) = find_spans(path, 100)
    found = {
        number: value.reason if isinstance(value, BadRecord) else value
        for number, value in read_span(span)
    }
    want = {0: {"n": 0}, 2: "bad_json", 3: "bad_json", 4: "text_not_utf8", 5: {"n": None}}
    assert found == want


def test_a_record_too_large_to_hold_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.record_files.MAX_RECORD_BYTES", 64)
    lines, lists = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text(json.dumps({"text": "x" * 100}) + '\n{"n": 1}\n')
    (span,) = find_spans(lines, 100)
    (_, bad), after = read_span(span)
    assert bad.reason == "record_too_large" and after == (1, {"n": 1})
    monkeypatch.setattr("data_pipeline.sources.record_files.CHUNK_BYTES", 32)
    lists.write_text(json.dumps([{"text": "x" * 1000}]))
    with pytest.raises(DataError, match="no end of a record within 64 bytes"):
        list(find_spans(lists, 100))


@pytest.mark.parametrize("text", ['[{"n": 1}, {"n": 2', '[{"n": 1} {"n": 2}]', "[1, ]", "["])
def test_a_broken_list_is_refused_with_its_byte(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json: no JSON at byte \d+"):
        list(find_spans(path, 10))


def test_several_files_keep_their_numbers_apart(tmp_path, tracker):
    for name in ("b.jsonl", "a.txt"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    output = tmp_path / "out"
    cfg = PackConfig(
        source="plain_text", input=str(tmp_path), output=str(output), samples_per_shard=2
    )
    assert pack(cfg, tracker)["samples"] == 6
    assert [path.name for path in sorted(output.glob("*.tar"))] == [
        "00000.tar", "00001.tar", "00002.tar", "00003.tar",
    ]  # fmt: skip


def test_what_cannot_be_json_is_refused_and_the_rest_packed(tmp_path, tracker):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud800"}\n{"text": "whole"}\n')
    cfg = PackConfig(source="plain_text", input=str(tmp_path), output=str(tmp_path / "out"))
    summary = pack(cfg, tracker)
    assert (summary["samples"], summary["rejected"]) == (1, {"text_not_utf8": 1})
    listed = json.loads((tmp_path / "out" / "00000.json").read_bytes())["rejected"]
    assert listed == [["000000000", "text_not_utf8"]]


def test_the_documented_source(tmp_path, tracker, picture, corpus):
    """The file that data_pipeline/README.md shows, run by its path, by two processes."""
    (text,) = re.findall(r"```python\n(\"\"\"Recipes.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "recipes.py").write_text(text)
    for name in ("soup", "cake"):
        (tmp_path / f"{name}.png").write_bytes(picture())
    lines = [
        {"photo": "soup.png", "title": "Soup", "steps": ["Cut.", "Cook."]},
        {"photo": "cake.png", "title": "Cake", "steps": ["Bake."]},
        {"photo": "lost.png", "title": "Lost", "steps": []},
        {"photo": "cake.png", "steps": ["Bake."]},
    ]
    (tmp_path / "recipes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = corpus(
        str(tmp_path / "recipes.py"), tmp_path / "recipes.jsonl", samples_per_shard=2, workers=2
    )
    assert made.packed["rejected"] == {"missing_picture": 1, "missing_text": 1}
    assert made.documents("vqa") == [
        ("<s>How is this made?[8 x 8]|Bake.|", "Bake.|"),
        ("<s>How is this made?[8 x 8]|Cut. Cook.|", "Cut. Cook.|"),
    ]


def test_a_file_that_is_no_source_is_named(tmp_path, tracker):
    (tmp_path / "nothing.py").write_text("")
    (tmp_path / "hungry.py").write_text("import a_package_that_is_not_there")
    for name, words in (
        ("nothing.py", "no function parts"),
        ("gone.py", "no such file"),
        ("hungry.py", "which is not there: pip install a_package_that_is_not_there"),
    ):
        cfg = PackConfig(source=str(tmp_path / name), input="x", output=str(tmp_path / words))
        with pytest.raises(ConfigError, match=words):
            pack(cfg, tracker)
