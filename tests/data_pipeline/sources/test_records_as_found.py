"""Records as data sets have them: LLaVA's symbol, parts, wrapped lists, tables, encodings."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from data_pipeline.pack import PackConfig, pack
from data_pipeline.raw.shards import RawSample, RawShardReader
from mgpt.errors import DataError

ASK = {"from": "human", "value": "q"}
ANSWER = {"from": "gpt", "value": "a"}


@pytest.fixture
def packed(tmp_path, tracker, picture):
    """`packed(source, name, records)`: figures, and samples by key; 0.png and 1.png are there."""

    def run(source, given, **settings):
        out = tmp_path / f"out_{len(list(tmp_path.glob('out_*')))}"
        cfg = PackConfig(source=source, input=str(given), output=str(out), **settings)
        figures = pack(cfg, tracker)
        samples = []
        for path in sorted(out.glob("*.tar")):
            with RawShardReader.open(path) as reader:
                samples += [one for one in reader if isinstance(one, RawSample)]
        return figures, samples

    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(seed=number))
    return run


def write(path, records):
    path.write_text(json.dumps(records))
    return path


def test_the_symbol_of_llava_keeps_its_place(tmp_path, packed):
    records = [
        {"image": "0.png", "conversations": [{**ASK, "value": "What is it?\n<image>"}, ANSWER]},
        {"image": ["0.png", "1.png"],
         "conversations": [{**ASK, "value": "<image> or <image>?"}, ANSWER]},
        {"image": "0.png", "conversations": [{**ASK, "value": "<image><image>"}, ANSWER]},
        {"video": "v.mp4", "conversations": [{**ASK, "value": "<video>\nWhat?"}, ANSWER]},
        {"conversations": [{**ASK, "value": "What does <image> do in SVG?"}, ANSWER]},
    ]  # fmt: skip
    figures, samples = packed("conversations", write(tmp_path / "llava.json", records))
    assert figures["rejected"] == {"image_count": 1, "unsupported_media": 1}
    asked = [one.meta["conversations"][0]["value"] for one in samples]
    assert asked == [
        "What is it?\n<|image|>",
        "<|image|> or <|image|>?",
        "What does <image> do in SVG?",
    ]
    assert [sorted(one.pictures) for one in samples] == [
        ["image_00"],
        ["image_00", "image_01"],
        [],
    ]
    figures, samples = packed("chat", tmp_path / "llava.json")
    assert figures["rejected"] == {"image_count": 1, "image_symbol": 2, "unsupported_media": 1}


def test_messages_in_parts(tmp_path, packed):
    def record(*parts, **more):
        answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
        system = {"role": "system", "content": "Be brief."}
        return {"messages": [system, {"role": "user", "content": [*parts]}, answer], **more}

    text = {"type": "text", "text": "What?"}
    records = [
        record({"type": "image", "image": "0.png"}, text),
        record(text, {"type": "image"}, images=["1.png"]),
        record({"type": "image_url", "image_url": {"url": "0.png"}}, text),
        record(text, {"type": "image"}),
        record(text, {"type": "audio", "audio": "a.wav"}),
    ]
    figures, samples = packed("conversations", write(tmp_path / "parts.json", records))
    assert figures["rejected"] == {"image_count": 1, "unsupported_media": 1}
    asked = [one.meta["conversations"][0]["value"] for one in samples]
    brief = "Be brief.\n\n"
    assert asked == [f"{brief}<|image|>What?", f"{brief}What?<|image|>", f"{brief}<|image|>What?"]
    assert [one.meta["files"] for one in samples] == [["0.png"], ["1.png"], ["0.png"]]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_list_inside_an_object_and_a_byte_order_mark(tmp_path, packed, bom):
    records = [{"conversations": [{**ASK, "value": str(n)}, ANSWER]} for n in range(5)]
    wrapped = json.dumps({"version": {"of": 1}, "data": records, "license": "x"})
    (tmp_path / "wrapped.json").write_text(bom + wrapped)
    _, samples = packed("chat", tmp_path / "wrapped.json", samples_per_shard=2)
    assert [one.meta["conversations"][0]["value"] for one in samples] == list("01234")
    (tmp_path / "lines.json").write_text(bom + "\n".join(map(json.dumps, records)))
    assert packed("chat", tmp_path / "lines.json", samples_per_shard=2)[1] == samples


def test_utf_16_is_refused_by_its_name(tmp_path, packed):
    for number, coding in enumerate(("utf-16", "utf-16-le")):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(json.dumps({"conversations": [ASK, ANSWER]}).encode(coding))
        with pytest.raises(DataError, match=r"jsonl: UTF-16; save it as UTF-8"):
            packed("chat", path)


def test_tables_that_hold_their_pictures(tmp_path, packed, picture):
    data = tmp_path / "hf" / "data"
    data.mkdir(parents=True)
    struct = [{"bytes": picture(), "path": "x.jpg"}, {"bytes": picture(seed=1), "path": None},
              {"bytes": None, "path": None}]  # fmt: skip
    rows = {"image": struct, "text": ["one", None, "three"], "score": [0.5, float("nan"), 1.0]}
    parquet.write_table(pyarrow.table(rows), data / "train-00000-of-00002.parquet")
    parquet.write_table(pyarrow.table(rows), data / "train-00001-of-00002.parquet")
    for given in (tmp_path / "hf", data / "*.parquet"):
        figures, samples = packed("folder", given)
        assert figures["rejected"] == {"missing_picture": 2} and len(samples) == 4
        assert samples[0].meta == {"caption": "one", "score": 0.5} and samples[1].meta == {}
    columns = {"pic": [picture(), picture(seed=1)], "alt": [["a", "b"], ["c"]], "text": ["n", "n"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "raw.parquet")
    settings = {"image_column": "pic", "caption_column": "alt"}
    _, samples = packed("folder", tmp_path / "raw.parquet", **settings)
    assert [one.meta["caption"] for one in samples] == ["a", "c"]


def test_notes_beside_records_are_no_records(tmp_path, packed):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.json", [{"conversations": [ASK, ANSWER]}])
    (tmp_path / "in" / "README.txt").write_text("how it was made")
    figures, _ = packed("chat", tmp_path / "in")
    assert (figures["samples"], figures["rejected"]) == (1, {})
