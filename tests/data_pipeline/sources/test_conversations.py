"""The published training JSON becomes exactly the ids and labels that the published code trains."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).parents[2] / "tokens"))
from chameleon_layout import chameleon_json

from data_pipeline.pack import PackConfig, pack
from data_pipeline.raw.shards import RawShardReader
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from mgpt.data.dataset import TokenisedDataset, open_dataset
from mgpt.data.documents import IGNORED
from mgpt.data.loader import held_out_rows
from mgpt.data.rows import NO_GROUP
from mgpt.data.source import DataConfig, SourceConfig
from mgpt.errors import DataError
from mgpt.tokens.vocab import chameleon_vocabulary
from mgpt.tracking.tracker import Tracker

SIZES = {
    "square.png": (40, 40),
    "wide.png": (96, 40),
    "tall.jpg": (36, 80),
    "sub/other.png": (64, 64),
}


def record(*values: str, **fields: Any) -> dict[str, Any]:
    speakers = ("human", "gpt")
    turns = [{"from": speakers[n % 2], "value": value} for n, value in enumerate(values)]
    return {"conversations": turns, **fields}


GOOD = {
    0: record("Hello  there,", " Hi.\n", "Bye", "See you"),
    1: record("What is it?", "a red  cube", image=["square.png"], id=7),
    # No symbol: both stand in front of the first question, each with its space.
    2: record("Same?", "No.", "Sure?", "Yes.", image=["wide.png", "tall.jpg"]),
    3: record(
        *("Make it blue. <|image|>", "<|image|>", "And again", "Here: <|image|> done"),
        image=["square.png", "tall.jpg", "sub/other.png"],
    ),
    4: record("<|image|><|image|>Which?", "The left.", image=["wide.png", "square.png"]),
    5: record("Depth estimation. <|image|>", "<|image|>", image=["square.png"] * 2, tasks=None),
    6: record("What is <s>?", "<reserved08706>IMGIMGBZ"),
}
del GOOD[5]["tasks"]
BAD = {
    7: (record("See <|image|>", "ok", image=["square.png", "wide.png"]), "image_count"),
    8: (record("See <|image|>", "ok"), "image_count"),
    9: (record("Draw", "<|image|><|image|>", image=["square.png"]), "image_count"),
    10: (record("See", "ok", image=["gone.png"]), "missing_picture"),
    11: (record("See", "ok", image=["square.png", "broken.png"]), "undecodable"),
    12: ("no object", "bad_json"),
    13: (record("See", "ok", image=13), "bad_json"),
    14: (record("A question alone"), "bad_conversation"),
    15: ({"image": ["square.png"]}, "bad_conversation"),
}
RECORDS = [*GOOD.values(), *(one for one, _ in BAD.values())]


@pytest.fixture
def pictures(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        form = "JPEG" if name.endswith("jpg") else "PNG"
        (folder / name).write_bytes(picture(width, height, seed, form=form))
    (folder / "broken.png").write_bytes((folder / "wide.png").read_bytes()[:400])
    return folder


@pytest.fixture
def run(tmp_path: Path, tracker: Tracker) -> Callable[..., dict[str, Any]]:
    def make(text: str, name: str = "train.json", output: str = "raw", **fields: Any) -> dict:
        (tmp_path / name).write_text(text)
        given, raw = str(tmp_path / name), str(tmp_path / output)
        cfg = PackConfig(source="conversations", input=given, output=raw, **fields)
        return pack(cfg, tracker)

    return make


def published(
    values: list[str], grids: list[np.ndarray], encode: Callable[[str], list[int]]
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which are trained, as the published code makes them.

    The whole text is encoded at once; answers and their separators are trained, pictures whole.
    """
    if not any("<|image|>" in value for value in values):
        values = ["<|image|> " * len(grids) + values[0], *values[1:]]
    left, ids, trained, message = list(grids), [0], [False], 0
    for token in encode("".join(f"{value}<reserved08706>" for value in values)):
        added = [token]
        if token == 65536:
            codes_HW = left.pop(0)
            height, width = codes_HW.shape
            rows = [code for row in codes_HW.tolist() for code in [*(k + 4 for k in row), 8803]]
            added = [8197, 8804 + height // 2, 8804 + width // 2, *rows, 8196]
        ids += added
        trained += [message % 2 == 1] * len(added)
        message += token == 8710
    assert not left and message == len(values)
    return ids, trained


def documents(dataset: TokenisedDataset) -> Iterator[tuple[list[int], list[bool]]]:
    """Ids and trained flags of every document of one pass, out of the rows that training reads."""
    source = {"mine": SourceConfig(str(dataset.folder), {"conversation": 1.0}, max_epochs=1)}
    vocab = chameleon_vocabulary(chameleon_json())
    rows = held_out_rows(DataConfig(source, row_tokens=1024), vocab, seed=0, num_rows=99)
    for ids, labels, positions, groups in zip(rows.ids, rows.labels, rows.positions, rows.groups):
        real = int((groups != NO_GROUP).sum())
        starts = [*np.flatnonzero(positions[:real] == 0).tolist(), real]
        for start, end in itertools.pairwise(starts):
            trained = [False, *(labels[start : end - 1] != IGNORED).tolist()]
            targets = np.where(trained[1:], ids[start + 1 : end], IGNORED)
            np.testing.assert_array_equal(labels[start : end - 1], targets)
            yield ids[start:end].tolist(), trained


def test_ids_and_labels_are_the_published_ones(tmp_path, run, pictures, tracker, vq):
    run(json.dumps(RECORDS), pictures=str(pictures), samples_per_shard=5)
    cfg = TokenizeConfig(
        input=str(tmp_path / "raw"), output=str(tmp_path / "tokens"), vq=vq, resolution=[32]
    )
    tokenize(cfg, tracker)
    dataset = open_dataset(tmp_path / "tokens" / "32")
    model = Tokenizer.from_buffer(chameleon_json(extra={"<|image|>": 65536}))
    wanted = []
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        given = GOOD[int(sample.key)]
        grids = [sample.codes[f"image_{n:02d}"] for n in range(len(given.get("image", [])))]
        # A control token's name in a text is text to us, and none of the others has one.
        values = [message["value"] for message in given["conversations"]]
        if int(sample.key) != 6:
            wanted.append(published(values, grids, lambda s: model.encode(s).ids))
    found = list(documents(dataset))
    assert len(found) == len(GOOD) == len(dataset)
    literal = [one for one in found if one not in wanted]
    assert len(literal) == 1 and literal[0][0].count(8710) == 2
    assert all(one in found for one in wanted) and len(wanted) == 6


def test_what_cannot_be_used_is_listed_with_its_index_and_reason(tmp_path, run, pictures, caplog):
    summary = run(json.dumps(RECORDS, indent=1), pictures=str(pictures), samples_per_shard=5)
    counts = {reason: 0 for _, reason in BAD.values()}
    for _, reason in BAD.values():
        counts[reason] += 1
    assert summary["rejected"] == counts and summary["samples"] == len(GOOD)
    listed = [
        pair
        for n in range(4)
        for pair in json.loads((tmp_path / "raw" / f"{n:05d}.json").read_bytes())["rejected"]
    ]
    assert "record 9: a conversation with 2 <|image|> and 1 images" in caplog.text
    assert listed == [[f"{index:09d}", reason] for index, (_, reason) in BAD.items()]


def test_pictures_and_the_rest_of_a_record_are_kept(tmp_path, run, pictures):
    absolute = record("See", "ok", image=str(pictures / "tall.jpg"), source="x")
    given = [GOOD[0], GOOD[1], GOOD[3], absolute]
    run(json.dumps(given), name="pictures/train.json")  # relative to the JSON's own folder
    with RawShardReader.open(tmp_path / "raw" / "00000.tar") as reader:
        items = list(reader)
    assert [item.key for item in items] == [f"{n:09d}" for n in range(4)]
    assert items[0].meta == GOOD[0] and items[0].pictures == {}
    assert items[1].meta == {
        "conversations": GOOD[1]["conversations"],
        "files": ["square.png"],
        "id": 7,
    }
    names = {f"image_{n:02d}": name for n, name in enumerate(GOOD[3]["image"])}
    assert {field: one.data for field, one in items[2].pictures.items()} == {
        field: (pictures / name).read_bytes() for field, name in names.items()
    }
    assert items[3].pictures["image_00"].data == (pictures / "tall.jpg").read_bytes()
    assert items[3].meta["source"] == "x"


def test_a_list_and_json_lines_give_the_same_shards(tmp_path, run, pictures, tree):
    run(json.dumps(RECORDS), output="one", pictures=str(pictures), samples_per_shard=4)
    lines = "\n".join(map(json.dumps, RECORDS))
    run(lines, "train.jsonl", "two", pictures=str(pictures), samples_per_shard=4, workers=2)
    one, two = (
        {name: data for name, data in tree(tmp_path / out).items() if name.endswith(".tar")}
        for out in ("one", "two")
    )
    assert one == two and "00000.tar" in one


def test_a_cut_file_is_refused_before_anything_is_written(tmp_path, run, pictures):
    with pytest.raises(DataError, match=r"train\.json: no JSON at byte \d+"):
        run(json.dumps(RECORDS)[:-40], pictures=str(pictures))
    assert not list((tmp_path / "raw").glob("*.tar"))
