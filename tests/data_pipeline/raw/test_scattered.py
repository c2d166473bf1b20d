"""Members of a sample that are apart in a tar: joined, or rejected whole; never half a sample."""

import itertools
import json

import pytest

from data_pipeline.raw import shards
from data_pipeline.raw.shards import RawSample, RawShardReader, Rejected


def members(count: int, picture) -> list[tuple[str, bytes]]:
    return [
        member
        for n in range(count)
        for member in (
            (f"{n}.png", picture(seed=n)),
            (f"{n}.json", json.dumps({"n": n}).encode()),
            (f"{n}.txt", f"caption {n}".encode()),
        )
    ]


def read(path) -> tuple[list, RawShardReader]:
    with RawShardReader.open(path) as reader:
        return list(reader), reader


@pytest.mark.parametrize("order", ["by kind", "shuffled", "one late text"])
def test_members_that_are_apart_are_joined(tmp_path, write_tar, picture, order):
    given = members(4, picture)
    if order == "by kind":
        given.sort(key=lambda member: member[0].rpartition(".")[2])
    elif order == "shuffled":
        given = [given[(7 * place) % 12] for place in range(12)]
    else:
        given.append(given.pop(2))
    items, reader = read(write_tar(tmp_path / "a.tar", given))
    assert reader.inputs == 4 and reader.damaged is None
    together, _ = read(write_tar(tmp_path / "b.tar", members(4, picture)))
    assert sorted(items, key=lambda item: item.key) == together


def test_what_is_too_much_to_hold_is_rejected_whole(tmp_path, write_tar, picture, monkeypatch):
    given = sorted(members(4, picture), key=lambda member: member[0].rpartition(".")[2])
    size = sum(len(data) for name, data in given if name.endswith(("png", "json")))
    monkeypatch.setattr(shards, "MAX_HELD_BYTES", size * 2 // 4 + 100)
    items, reader = read(write_tar(tmp_path / "a.tar", given))
    assert reader.inputs == 4
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert [item.reason for item in rejected] == ["members_apart"] * 2
    assert all("tar --sort=name" in item.detail for item in rejected)
    for item in items:
        assert isinstance(item, Rejected) or (item.pictures and item.meta["caption"])


def test_a_key_that_comes_back_whole_is_a_duplicate(tmp_path, write_tar, picture):
    items, _ = read(write_tar(tmp_path / "a.tar", [*members(2, picture), *members(1, picture)]))
    assert [(one.key, getattr(one, "reason", "")) for one in items] == [
        ("0", ""),
        ("1", ""),
        ("0", "duplicate_key"),
    ]


def test_parts_that_contradict_each_other_are_rejected_once(tmp_path, write_tar, picture):
    given = members(2, picture)
    twice = [given[0], *given[3:], *given[:3]]  # 0.png, all of 1, all of 0
    items, reader = read(write_tar(tmp_path / "a.tar", twice))
    assert reader.inputs == 2
    assert {one.key: getattr(one, "reason", "") for one in items} == {"0": "members_apart", "1": ""}


def test_a_cut_tar_by_kind_gives_no_sample_without_its_text(tmp_path, write_tar, picture):
    given = sorted(members(4, picture), key=lambda member: member[0].rpartition(".")[2])
    path = write_tar(tmp_path / "a.tar", given)
    at = path.read_bytes().index(b"2.txt")
    path.write_bytes(path.read_bytes()[:at])
    items, reader = read(path)
    assert reader.damaged
    assert {one.key: getattr(one, "reason", "") for one in items} == {
        "0": "",
        "1": "",
        "2": "cut_short",
        "3": "cut_short",
    }


def test_files_of_a_desktop_are_no_samples(tmp_path, write_tar, picture):
    junk = b"\0\5\x16\7" + bytes(60)
    given = [
        pair
        for name, data in members(2, picture)
        for pair in ((f"./._{name}", junk), (f"./{name}", data))
    ]
    given += [("__MACOSX/x/._0.png", junk), (".DS_Store", junk)]
    items, reader = read(write_tar(tmp_path / "a.tar", given))
    assert [item.key for item in items] == ["0", "1"] and reader.ignored == {"system file": 8}
    assert all(isinstance(item, RawSample) and item.meta["caption"] for item in items)


def test_other_names_are_assigned_by_a_map(tmp_path, write_tar, picture):
    given = [("a.input.png", picture()), ("a.output.png", picture(seed=1)), ("a.prompt", b"x")]
    path = write_tar(tmp_path / "a.tar", given)
    names = {"input.png": "image", "output.png": "edit_1", "prompt": "txt"}
    with RawShardReader.open(path, names) as reader:
        (sample,) = reader
    assert (sample.key, sample.meta) == ("a", {"caption": "x"})
    assert list(sample.pictures) == ["edit_1", "image"]


@pytest.mark.parametrize(
    ("member", "data", "outcome"),
    [
        ("json", b'\xef\xbb\xbf{"caption": "x"}', "x"),
        ("txt", b"\xef\xbb\xbfx", "x"),
        ("json", b'{"caption": ["", "x", "y"]}', "x"),
        ("json", b'["x"]', ("bad_json", "no object but")),
        ("json", b'{"tasks": "caption"}', ("bad_json", "tasks is 'caption'")),
        ("txt", "x".encode("utf-16"), ("text_not_utf8", "UTF-16")),
        ("txt", "caf\xe9".encode("latin-1"), ("text_not_utf8", "0xe9 at 3")),
    ],
)
def test_texts_as_editors_write_them(tmp_path, write_tar, picture, member, data, outcome):
    path = write_tar(tmp_path / "a.tar", [("a.png", picture()), (f"a.{member}", data)])
    ((item,), _) = read(path)
    if isinstance(outcome, str):
        assert item.meta["caption"] == outcome
    else:
        assert item.reason == outcome[0] and outcome[1] in item.detail


def test_an_empty_caption_hides_none(tmp_path, write_tar, picture):
    for number, text in enumerate((b'{"caption": " "}', b"")):
        given = [("a.png", picture()), ("a.json", text), ("a.txt", b"the txt has one")]
        ((item,), _) = read(write_tar(tmp_path / f"{number}.tar", given))
        assert item.meta["caption"] == "the txt has one"


def test_keys_that_print_are_keys(tmp_path, write_tar, picture):
    good = ["nbsp\u00a0key", "emoji\U0001f468\u200d\U0001f469"]
    bad = ["bell\x07", "turned\u202etxt", "two\nlines"]
    given = list(itertools.chain([(f"{key}.png", picture()) for key in (*good, *bad)]))
    items, _ = read(write_tar(tmp_path / "a.tar", given))
    assert [item.key for item in items if isinstance(item, RawSample)] == good
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert [item.reason for item in rejected] == ["unsafe_name"] * 3
    assert "bell" in rejected[0].detail
