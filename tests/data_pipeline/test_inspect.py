"""A sample is found by its key and shown as training sees it; a summary counts every sample."""

import json
import re
from pathlib import Path

import pytest

from data_pipeline import inspect as inspect_stage
from data_pipeline import summarize as summarize_stage
from data_pipeline.inspect import Config as InspectConfig
from data_pipeline.inspect import Run, inspect_sample
from data_pipeline.summarize import Config as SummarizeConfig
from data_pipeline.summarize import summarize
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from mgpt.errors import DataError
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary

CAPTION = "a <b>bold</b> cat"


@pytest.fixture
def made(tmp_path, tracker, vq, write_tar, picture) -> Path:
    """Two shards with a key in common; `small` is rejected at 32 px."""
    for shard in range(2):
        members = {
            "cat.v1.png": picture(36, 32, seed=shard),
            "cat.v1.json": json.dumps({"caption": CAPTION, "shard": shard}).encode(),
            "talk.json": b'{"dialog": [["hello", "hi"]]}',
        }
        if not shard:
            members["small.png"] = picture(20, 20)
        write_tar(tmp_path / "raw" / f"{shard:05d}.tar", members)
    cfg = TokenizeConfig(
        input=str(tmp_path / "raw"), output=str(tmp_path / "tok"), vq=vq, resolution=[16, 32]
    )
    tokenize(cfg, tracker)
    return tmp_path


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("text") / "text.model"
    train_sentencepiece(["a cat", "hello", "hi"] * 20, path, 300)
    return scratch_vocabulary(SentencePieceText(path), num_codes=64, max_grids=8)


def config(made: Path, **changes) -> InspectConfig:
    settings = {"input": str(made / "tok"), "key": "cat.v1", "output": str(made / "seen")}
    return InspectConfig(**(settings | changes))


def test_every_sample_of_the_key_is_shown_at_every_resolution(made, vq):
    found, path = inspect_sample(config(made, vq=vq), None)
    identities = [(one.resolution_px, one.raw_shard) for one in found]
    assert identities == [(16, "00000"), (16, "00001"), (32, "00000"), (32, "00001")]
    text = path.read_text()
    assert path.name == "cat.v1.html" and text.count("data:image/png") == 4
    assert "<b>bold</b>" not in text and "&lt;b&gt;bold" in text
    assert "http://" not in text and "<script" not in text
    (one,), _ = inspect_sample(config(made, shard="00001", resolution=32), None)
    assert one.sample.meta["shard"] == 1


def test_ids_are_those_of_training_and_marked_as_trained(made, vocabulary):
    (found,), path = inspect_sample(
        config(made, shard="00000", resolution=32, task="caption"), vocabulary
    )
    (reading,) = found.readings
    assert reading.tokens is not None
    trained = [run.words for run in reading.runs if run.trained]
    said = "".join(re.findall(r"'(.*)'", word)[0] for word in trained[:-1])
    assert said == CAPTION and trained[-1].endswith("end of turn")
    assert reading.trained == len(trained), "no code is trained in a caption"
    given = [run.words for run in reading.runs if not run.trained]
    assert given[0] == f"{vocabulary.bos} <s>" and any("begin image" in word for word in given)
    height, width = found.sample.codes["image"].shape
    hidden = sum(int(word.split()[1]) for word in given if word.startswith("…"))
    assert hidden == height * (width - 4)
    assert path.read_text().count("class='trained'") == len(trained)


def test_without_a_vocabulary_text_and_places_are_shown(made):
    (found,), _ = inspect_sample(
        config(made, key="talk", shard="00000", resolution=16, task="text_dialog"), None
    )
    assert found.readings[0].runs == [Run("hello", False), Run("hi", True)]


def test_a_rejected_key_and_one_that_is_not_there(made):
    with pytest.raises(DataError, match="rejected from 00000 at 32 px: too_small"):
        inspect_sample(config(made, key="small", resolution=32), None)
    with pytest.raises(DataError, match="no shard has it"):
        inspect_sample(config(made, key="dog"), None)
    with pytest.raises(DataError, match="cannot serve task depth"):
        inspect_sample(config(made, task="depth"), None)


def test_a_summary_counts_every_sample(made, vocabulary, tracker):
    cfg = SummarizeConfig(input=str(made / "tok"), output=str(made / "sum"))
    found = summarize(cfg, vocabulary, tracker)
    assert dict(found["32"]["tasks"])["caption"] == 2
    assert dict(found["16"]["picture fields"]) == {"image": 3}
    assert dict(found["32"]["rejected"]) == {"too_small": 1}
    assert found["32"]["characters of captions"] == [(str(len(CAPTION)), 2)]
    assert sum(count for _, count in found["32"]["tokens of caption"]) == 2
    assert (
        json.loads((made / "sum" / "summary.json").read_text())["32"].keys() == found["32"].keys()
    )
    page = (made / "sum" / "summary.html").read_text()
    assert page.count("data:image/png") == len(found["16"]) + len(found["32"])
    assert (made / "sum" / "32" / "tokens_of_caption.png").read_bytes()[:4] == b"\x89PNG"


def test_both_stages_say_where_the_page_is(made, capsys):
    inspect_stage.main(config(made, shard="00000", resolution=32))
    said = capsys.readouterr().out
    assert "00000/cat.v1 at 32 px" in said and "as caption" in said and "cat.v1.html" in said
    summarize_stage.main(SummarizeConfig(input=str(made / "tok"), output=str(made / "sum")))
    assert "summary.html" in capsys.readouterr().out
