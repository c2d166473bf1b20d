"""Folders as people have them: every file is packed, rejected, or counted by its kind."""

import json

import pytest

from data_pipeline.pack import Config, main, pack
from data_pipeline.raw.shards import RawSample, RawShardReader
from data_pipeline.sources.pack_config import PackConfig
from mgpt.errors import DataError
from mgpt.tracking.tracker import TrackingConfig


@pytest.fixture
def packed(tmp_path, tracker):
    """`packed(folder, **settings)`: the figures, and the samples by key."""

    def run(folder, **settings):
        out = tmp_path / "out"
        cfg = PackConfig(source="folder", input=str(folder), output=str(out), **settings)
        figures = pack(cfg, tracker)
        samples = {}
        for path in sorted(out.glob("*.tar")):
            with RawShardReader.open(path) as reader:
                samples |= {one.key: one for one in reader if isinstance(one, RawSample)}
        return figures, samples

    return run


def test_pictures_by_any_name_are_packed_or_rejected(tmp_path, packed, picture):
    folder = tmp_path / "in"
    folder.mkdir()
    kinds = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.ppm": "PPM", "d.pgm": "PPM", "1f0c": "PNG"}
    for name, form in kinds.items():
        (folder / name).write_bytes(picture(form=form))
    (folder / "e.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (folder / "f.jxl").write_bytes(b"\xff\x0a" + bytes(50))
    (folder / "5a77").write_bytes(b"\0\0\0\x18ftypavif" + bytes(50))
    (folder / "LICENSE").write_text("no picture")
    figures, samples = packed(folder)
    assert sorted(samples) == ["1f0c", "a", "b", "c", "d"]
    assert figures["rejected"] == {"unreadable_picture": 3}
    assert samples["a"].pictures["image"].extension == "jpg"
    assert samples["1f0c"].pictures["image"].extension == "png"


def test_what_is_not_packed_is_counted_by_kind(tmp_path, packed, picture, capsys):
    for name in ("in/0.png", "in/.ipynb_checkpoints/0.png", "in/@eaDir/0.png", "in/sub/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "in" / "gone.txt").write_text("of a picture that is gone")
    (tmp_path / "in" / "run.log").write_text("a log")
    (tmp_path / "in" / "nowhere.png").symlink_to("gone.png")
    assert sorted(packed(tmp_path / "in")[1]) == ["0", "sub/1"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "SKIPPED in" in shown and "1 × .txt without its picture" in shown
    for words in ("folder .ipynb_checkpoints", "folder @eaDir", ".log", "link to nowhere"):
        assert f"1 × {'hidden ' if 'folder' in words else ''}{words}" in shown, words


def test_links_are_followed_once(tmp_path, packed, picture):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(picture())
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "near.png").write_bytes(picture())
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "elsewhere")
    assert sorted(packed(tmp_path / "in")[1]) == ["a/far", "near"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("0.caption", "c"),
        ("0.TXT", "\ufeffc\n"),
        ("0.png.txt", "c"),
        ("0.json", '{"caption": "c"}'),
        ("0.json", '{"text": ["c", "other"]}'),
    ],
)
def test_captions_beside_pictures(tmp_path, packed, picture, name, text):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(picture())
    (tmp_path / "in" / name).write_text(text)
    ((_, sample),) = packed(tmp_path / "in")[1].items()
    assert sample.meta["caption"] == "c"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_tables_of_hugging_face_in_every_split(tmp_path, packed, picture, kind, capsys):
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        for number in range(2):
            path = tmp_path / "in" / split / f"{number}.png"
            path.write_bytes(picture(seed=number))
        rows = [{"file_name": "1.png", "text": f'{split},\n"quoted"'}]
        text = "\n".join(map(json.dumps, rows))
        if kind == "csv":
            text = f'file_name,text\n1.png,"{split},\n""quoted"""\n'
        (tmp_path / "in" / split / f"metadata.{kind}").write_text(text)
    figures, _ = packed(tmp_path / "in")
    assert figures["samples"] == 2
    captions = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with RawShardReader.open(path) as reader:
            captions += [one.meta["caption"] for one in reader]
    assert captions == ['test,\n"quoted"', 'train,\n"quoted"']
    assert "2 × .png that no table lists" in capsys.readouterr().out


def test_a_job_that_wrote_nothing_fails(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    off = TrackingConfig(mode="disabled")
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="not one sample was written, and 1 were rejected"):
        main(Config(source="folder", input=str(tmp_path / "in"), output=out, tracking=off))
    assert not (tmp_path / "out" / "DONE").exists()


def test_the_picture_may_stand_in_any_named_field(tmp_path, packed, picture):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(picture(seed=number))
    lines = [{"image": "0.png", "caption": "zero"}, {"path": "1.png", "caption": "one"},
             {"file": "2.png", "text": "two"}]  # fmt: skip
    (tmp_path / "in" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    figures, samples = packed(tmp_path / "in")
    assert {key: one.meta["caption"] for key, one in samples.items()} == {"0": "zero", "2": "two"}
    assert figures["rejected"] == {"missing_picture": 1}


def test_a_caption_is_the_first_of_a_list_or_drawn(tmp_path, packed, picture):
    (tmp_path / "in").mkdir()
    lines = []
    for number in range(12):
        (tmp_path / "in" / f"{number}.png").write_bytes(picture(seed=number))
        lines.append({"file": f"{number}.png", "alt": ["a", "b"], "caption": "not this"})
    (tmp_path / "in" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {"caption_column": "alt", "caption_choice": "drawn"}
    found = [one.meta["caption"] for one in packed(tmp_path / "in", **settings)[1].values()]
    assert set(found) == {"a", "b"}
