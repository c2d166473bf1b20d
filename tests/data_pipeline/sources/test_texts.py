"""Chat and plain text: what the model reads is what the records say, nothing of it lost."""

import json

import pytest

from data_pipeline.sources.plain_text import split


def test_chat_in_all_its_spellings(tmp_path, corpus):
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4."}]
    records = [
        {"conversations": turns, "id": 7},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "No."},
            ]
        },
        {"conversations": turns[:1]},
        {"conversations": [turns[1], turns[0]]},
        {"conversations": [{"from": "human", "value": ""}, turns[1]]},
        {"conversations": [{"from": "tool", "value": "x"}, turns[1]]},
        {"conversations": [{"from": "human", "value": "a <|image|>"}, turns[1]]},
        {"text": "no turns"},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(records))
    made = corpus("chat", tmp_path / "chat.json")
    assert made.packed["rejected"] == {"bad_turns": 5, "image_symbol": 1}
    want = [
        ("<s>2 + 2?|4.|", "4.|"),
        ("<s>Be brief.\n\nWhy?|So.|And?|No.|", "So.|No.|"),
    ]
    assert made.documents("text_dialog") == want
    assert made.documents("conversation") == want


def test_plain_text_from_records_and_lines(tmp_path, corpus):
    folder = tmp_path / "in"
    folder.mkdir()
    records = [{"text": "One two. Three four."}, {"content": "five"}, {"text": " "}, {"t": 1}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "b.txt").write_bytes(b"six\r\n\nseven\n\xff\n")
    made = corpus("plain_text", folder, text_chars=10)
    assert made.packed["rejected"] == {"missing_text": 2, "text_not_utf8": 1}
    documents = made.documents("plain_text")
    texts = ["One two. ", "Three ", "four.", "five", "six", "seven"]
    assert documents == sorted((f"<s>{text}</s>", f"{text}</s>") for text in texts)
    keys = [made.dataset.sample(index).key for index in range(3)]
    assert keys == ["000000000-000", "000000000-001", "000000000-002"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("short", ["short"]),
        ("aaaa\nbb bb\n\nccc", ["aaaa\nbb bb\n\n", "ccc"]),
        ("aaaa bb\nbb ccc", ["aaaa bb\n", "bb ccc"]),
        ("one. two three", ["one. two ", "three"]),
        ("x" * 30, ["x" * 12, "x" * 12, "x" * 6]),
    ],
)
def test_a_long_text_is_cut_at_its_strongest_end_and_kept(text, pieces):
    assert list(split(text, 12)) == pieces
    assert "".join(pieces) == text
