"""Folders, interleaved documents and COCO: pictures in their places, texts as they were."""

import io
import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from data_pipeline.pack import PackConfig, pack
from data_pipeline.raw.shards import RawShardReader
from data_pipeline.sources.coco_keypoints import LIMBS, draw_poses
from mgpt.errors import DataError


@pytest.fixture
def folder(tmp_path, picture):
    """Two pictures in a folder of their own."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "tom.png").write_bytes(picture(32, 32))
    (tmp_path / "in" / "sub" / "room.png").write_bytes(picture(64, 32, seed=1))
    return tmp_path / "in"


def test_a_bare_folder_of_pictures(folder, corpus):
    (folder / "tom.txt").write_text("a grey cat\n")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.md").write_bytes(b"")
    (folder / "sub" / "broken.png").write_bytes(b"no picture")
    made = corpus("folder", folder)
    assert made.packed["samples"] == 3  # whether a picture decodes, tokenising finds out
    assert made.documents("image_text")[0][0] in (
        "<s>a grey cat[8 x 8]</s>",
        "<s>[8 x 8]a grey cat</s>",
    )
    samples = [made.dataset.sample(index) for index in range(len(made.dataset))]
    assert [sample.key for sample in samples] == ["sub/room", "tom"]
    assert made.dataset.manifests[0].rejected == (("sub/broken", "undecodable"),)


def test_a_folder_with_a_table(folder, corpus):
    rows = [
        {"file": "tom.png", "image": None, "caption": "a cat", "score": 0.5},
        {
            "file": None,
            "image": {"bytes": (folder / "sub" / "room.png").read_bytes(), "path": "x"},
            "caption": "a room",
            "score": None,
        },
        {"file": "gone.png", "image": None, "caption": "gone", "score": 1.0},
        {"file": None, "image": {"bytes": b"odd", "path": "x"}, "caption": "odd", "score": 1.0},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "captions.parquet")
    made = corpus("folder", folder)
    assert made.packed["rejected"] == {"missing_picture": 1, "unknown_extension": 1}
    samples = [made.dataset.sample(index) for index in range(len(made.dataset))]
    assert [(one.key, one.meta["caption"]) for one in samples] == [
        ("tom", "a cat"),
        ("000000001", "a room"),
    ]
    assert samples[0].meta["score"] == 0.5 and "score" not in samples[1].meta
    question = "<s>Generate an image of 32x32 according to the following prompt:\na cat"
    assert (f"{question}|[8 x 8]|", "[8 x 8]|") in made.documents("text_to_image")
    (folder / "captions.jsonl").write_text("{}")
    with pytest.raises(DataError, match="both"):
        corpus("folder", folder)


def test_interleaved_documents_keep_their_order(folder, corpus):
    documents = folder / "documents.jsonl"
    records = [
        {"texts": ["A cat.", None, "It sleeps."], "images": [None, "tom.png", None]},
        {"texts": [None, "Text."], "images": ["sub/room.png", None]},
        {
            "text_list": ["First.", "Second.", "Third."],
            "image_info": [
                {"image_name": "tom.png", "matched_text_index": 2},
                {"image_name": "tom.png", "matched_text_index": 0},
            ],
        },
        {"texts": ["A"], "images": ["tom.png"]},
        {"texts": ["A"], "images": []},
        {"texts": ["A", None], "images": [None, "https://example.com/gone.png"]},
        {"text_list": ["A"], "image_info": [{"image_name": "tom.png", "matched_text_index": 1}]},
        {"texts": [], "images": []},
    ]
    documents.write_text("\n".join(map(json.dumps, records)))
    made = corpus("interleaved", documents)
    want = {"bad_document": 3, "missing_picture": 1, "missing_text": 1}
    assert made.packed["rejected"] == want
    texts = [
        "<s>A cat.[8 x 8]It sleeps.</s>",
        "<s>[6 x 10]Text.</s>",
        "<s>[8 x 8]First. Second.[8 x 8]Third.</s>",
    ]
    found = made.documents("interleaved")
    assert found == sorted((text, text.removeprefix("<s>")) for text in texts)


def keypoints(**seen: tuple[int, int]) -> list[int]:
    joints = {"nose": 0, "left_shoulder": 5, "left_elbow": 7, "left_wrist": 9}
    flat = [0] * 51
    for name, (x, y) in seen.items():
        flat[3 * joints[name] : 3 * joints[name] + 3] = [x, y, 2]
    return flat


def test_coco_keypoints(folder, tmp_path, tracker, corpus):
    arm = keypoints(left_shoulder=(4, 4), left_elbow=(20, 4), left_wrist=(20, 24))
    size = {"width": 32, "height": 32}
    annotations = {
        "info": {"year": 2017},
        "annotations": [
            {"image_id": 1, "num_keypoints": 3, "keypoints": arm},
            {"image_id": 1, "num_keypoints": 0, "keypoints": [0] * 51},
            {"image_id": 2, "num_keypoints": 0, "keypoints": [0] * 51},
            {"image_id": 3, "num_keypoints": 3, "keypoints": arm[:-1]},
            {"image_id": 4, "num_keypoints": 3, "keypoints": arm},
            {"image_id": 9, "num_keypoints": 3, "keypoints": arm},
        ],
        "images": [
            {"id": 1, "file_name": "tom.png", **size},
            {"id": 2, "file_name": "tom.png", **size},
            {"id": 3, "file_name": "tom.png", **size},
            {"id": 4, "file_name": "gone.png", **size},
        ],
        "categories": [{"name": "person"}],
    }
    path = tmp_path / "person_keypoints_val2017.json"
    path.write_text(json.dumps(annotations))
    captions = {"annotations": [{"image_id": 1, "caption": " a person waves "}]}
    (tmp_path / "captions_val2017.json").write_text(json.dumps(captions))
    made = corpus("coco_keypoints", path, pictures=str(folder), samples_per_shard=3)
    want = {"bad_keypoints": 1, "missing_picture": 1, "no_keypoints": 1}
    assert made.packed["rejected"] == want
    assert made.documents("pose") == [
        ("<s>Human pose estimation. [8 x 8]|[8 x 8]|", "[8 x 8]|"),
    ]
    ((question, answer),) = made.documents("pose_to_image")
    assert "a person waves [8 x 8]" in question and answer == "[8 x 8]|"
    with RawShardReader.open(tmp_path / "raw" / "00000.tar") as reader:
        (sample,) = reader
    levels = np.asarray(Image.open(io.BytesIO(sample.pictures["pose"].data)))
    assert levels.shape == (32, 32, 3)
    assert levels[4, 12].any() and levels[14, 20].any(), "no limb where the annotation has one"
    assert not levels[28, 4].any() and not levels[16, 10].any()


def test_limbs_have_colours_of_their_own_and_end_at_joints():
    pose = np.zeros((17, 3), np.float32)
    for joint in range(17):
        pose[joint] = [50 + 40 * np.cos(joint), 50 + 40 * np.sin(joint), 1]
    assert len(set(LIMBS)) == 19 and {joint for limb in LIMBS for joint in limb} == set(range(17))
    everything = np.asarray(Image.open(io.BytesIO(draw_poses([pose], 100, 100))))
    assert len(np.unique(everything.reshape(-1, 3), axis=0)) >= 15
    pose[:, 2] = 0
    assert not np.asarray(Image.open(io.BytesIO(draw_poses([pose], 100, 100)))).any()


def test_tables_need_no_file_names_to_be_safe(folder, tmp_path, tracker):
    lines = [{"texts": [None], "images": [name]} for name in ("../x.png", "/x.png", "a\0.png", "x")]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cfg = PackConfig(
        source="interleaved", input=str(folder / "a.jsonl"), output=str(tmp_path / "out")
    )
    want = {"missing_picture": 2, "unsafe_name": 2}
    assert pack(cfg, tracker)["rejected"] == want
