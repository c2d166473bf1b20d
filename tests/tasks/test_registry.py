"""The sixteen formats word for word, what a sample can serve, and errors by name."""

import re
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.scenes.corpus import CorpusConfig, make_sample
from mgpt.errors import ConfigError, DataError
from mgpt.tasks.registry import DOCUMENTS, TASKS, SampleView, can_serve, task, tasks_fingerprint
from mgpt.tasks.templates import TEMPLATES
from mgpt.tokens.chat import Conversation, Document, ImageSlot, Turn
from mgpt.tokens.unirep import grid_length

META = {
    "caption": "a red cube, {shiny}",
    "object": "the red cube",
    "edits": ["Make it blue.", "Add a cone."],
    "dialog": [["Hi", "Hello"], ["Bye", "See you"]],
    "qa": [["What is it?", "a cube"], ["What colour?", "red"]],
    "other_qa": [["And this?", "a cone"], ["Same colour?", "no"]],
}
FIELDS = ("image", "other", "depth", "normals", "segmentation", "pose", "detection")
SHAPES = dict.fromkeys((*FIELDS, "edit_1", "edit_2", "view_00", "view_01", "view_10"), (8, 6))
VIEW = SampleView(META, SHAPES, latent_px=8)

_IMAGE = "Generate an image"
_PROVIDED = (
    f"{_IMAGE} according to the provided image, and according to the following caption:\n"
    "a red cube, {shiny} "
)
# What stands in the questions and answers, pictures as <field>; the prompts as published.
EXPECTED = {
    ("text_dialog", 0): ["Hi", "Hello", "Bye", "See you"],
    ("text_to_image", 0): [
        f"{_IMAGE} of 48x64 according to the following prompt:\na red cube, {{shiny}}",
        "<image>",
    ],
    ("caption", 0): ["Describe this image in detail.<image>", "a red cube, {shiny}"],
    ("caption", 1): ["Describe the image in detail. <image>", "a red cube, {shiny}"],
    ("vqa", 0): ["What is it?<image>", "a cube", "What colour?", "red"],
    ("multi_image_dialog", 0): [
        *("What is it?<image>", "a cube"),
        *("And this?<other>", "a cone", "Same colour?", "no"),
    ],
    ("edit", 0): ["Make it blue. <image>", "<edit_1>", "Add a cone.", "<edit_2>"],
    ("segmentation", 0): ["Semantic segmentation. <image>", "<segmentation>"],
    ("depth", 0): ["Depth estimation. <image>", "<depth>"],
    ("normals", 0): ["Surface normal estimation. <image>", "<normals>"],
    ("pose", 0): ["Human pose estimation. <image>", "<pose>"],
    ("detection", 0): ["Detect: the red cube <image>", "<detection>"],
    ("depth_to_image", 0): [f"{_PROVIDED}<depth>", "<image>"],
    ("segmentation_to_image", 0): [f"{_PROVIDED}<segmentation>", "<image>"],
    ("normals_to_image", 0): [f"{_PROVIDED}<normals>", "<image>"],
    ("pose_to_image", 0): [f"{_PROVIDED}<pose>", "<image>"],
    ("multi_view", 0): [
        "Generate 3 object views of 48x64 according to the following prompt: "
        "a red cube, {shiny}, 3d asset",
        "<view_00><view_01><view_10>",
    ],
}


def written(parts: tuple) -> str:
    return "".join(f"<{p.field}>" if isinstance(p, ImageSlot) else p for p in parts)


@pytest.mark.parametrize(("name", "variant"), EXPECTED)
def test_each_format_is_as_published(name: str, variant: int) -> None:
    item = task(name).build(VIEW, variant)
    assert isinstance(item, Conversation)
    messages = [written(parts) for turn in item.turns for parts in (turn.question, turn.answer)]
    assert messages == EXPECTED[name, variant]
    pictures = sum(isinstance(p, ImageSlot) for p in item.turns[-1].answer)
    assert task(name).answer == ("text", "image", "images")[min(pictures, 2)]


def test_there_are_sixteen_tasks_and_every_variant_is_tested() -> None:
    assert len(TASKS) == 16 and all(name == one.name for name, one in TASKS.items())
    assert set(EXPECTED) == {(n, v) for n, one in TASKS.items() for v in range(one.variants)}
    assert set(TEMPLATES) == set(TASKS) - {"text_dialog"}
    assert all(len(TEMPLATES[name]) == TASKS[name].variants for name in TEMPLATES)


def test_sixteen_views_have_the_published_length() -> None:
    shapes = {f"view_{n:02d}": (24, 24) for n in range(16)}
    item = task("multi_view").build(SampleView(META, shapes, 16), 0)
    assert "Generate 16 object views of 384x384" in item.turns[0].question[0]
    assert sum(grid_length(*shapes[slot.field]) for slot in item.turns[0].answer) == 9664


def test_an_image_symbol_in_a_caption_is_text() -> None:
    view = SampleView({"caption": "the <|image|> symbol"}, SHAPES, 8)
    question = task("depth_to_image").build(view, 0).turns[0].question
    assert [part for part in question if isinstance(part, ImageSlot)] == [ImageSlot("depth")]
    assert "the <|image|> symbol" in question[0]


def test_documents() -> None:
    meta = {**META, "interleaved": ["before", {"image": "other"}, "after"]}
    view = SampleView(meta, SHAPES, 8)
    caption = "a red cube, {shiny}"
    built = {
        (name, variant): written(task(name).build(view, variant).parts)
        for name, one in DOCUMENTS.items()
        for variant in range(one.variants)
    }
    assert built == {
        ("plain_text", 0): caption,
        ("image_text", 0): f"{caption}<image>",
        ("image_text", 1): f"<image>{caption}",
        ("interleaved", 0): "before<other>after",
    }
    text = SampleView({**META, "text": "a story"}, {}, 8)
    assert task("plain_text").build(text, 0) == Document(("a story",))


NEEDS = {
    "text_dialog": ["dialog"],
    "text_to_image": ["caption", "image"],
    "caption": ["caption", "image"],
    "vqa": ["qa", "image"],
    "multi_image_dialog": ["qa", "other_qa", "image", "other"],
    "edit": ["edits", "image", "edit_1", "edit_2"],
    "segmentation": ["image", "segmentation"],
    "depth": ["image", "depth"],
    "normals": ["image", "normals"],
    "pose": ["image", "pose"],
    "detection": ["object", "image", "detection"],
    "depth_to_image": ["caption", "image", "depth"],
    "segmentation_to_image": ["caption", "image", "segmentation"],
    "normals_to_image": ["caption", "image", "normals"],
    "pose_to_image": ["caption", "image", "pose"],
    "multi_view": ["caption", "view_00"],
    "plain_text": ["caption"],
    "image_text": ["caption", "image"],
    "interleaved": ["interleaved", "image"],
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_task_needs_each_of_its_fields_and_no_more(name: str) -> None:
    everything = {**META, "interleaved": ["before", {"image": "image"}]}
    meta = {key: everything[key] for key in NEEDS[name] if key in everything}
    shapes = {field: SHAPES[field] for field in NEEDS[name] if field in SHAPES}
    assert can_serve(name, meta, shapes)
    assert task(name).build(SampleView(meta, shapes, 8), 0)
    for missing in NEEDS[name]:
        fewer_meta = {key: value for key, value in meta.items() if key != missing}
        fewer_shapes = {field: shape for field, shape in shapes.items() if field != missing}
        assert not can_serve(name, fewer_meta, fewer_shapes), missing
        if missing in meta:
            with pytest.raises(DataError, match=f"the sample's '{missing.replace('caption', '')}"):
                task(name).build(SampleView(fewer_meta, fewer_shapes, 8), 0)
            assert not can_serve(name, {**meta, missing: 7}, shapes), missing


def test_a_sample_that_names_its_tasks_serves_no_other() -> None:
    meta = {**META, "tasks": ["caption", "pose"]}
    assert [name for name in TASKS if can_serve(name, meta, SHAPES)] == ["caption", "pose"]
    assert not can_serve("pose", meta, {"image": (8, 6)})
    assert can_serve("image_text", meta, SHAPES), "documents are no tasks"


def test_views_of_different_sizes_are_refused() -> None:
    shapes = {"view_00": (8, 6), "view_01": (6, 8)}
    assert not can_serve("multi_view", META, shapes)
    with pytest.raises(DataError, match="views of different sizes"):
        task("multi_view").build(SampleView(META, shapes, 8), 0)


def test_malformed_fields_are_named() -> None:
    for value in ([["q"]], [["q", "a", "b"]], [["q", 3]], "qa", [], [["q", ""]]):
        assert not can_serve("vqa", {"qa": value}, SHAPES)
        with pytest.raises(DataError, match=r"the sample's 'qa' is .* a list of \[question, ans"):
            task("vqa").build(SampleView({"qa": value}, SHAPES, 8), 0)
    with pytest.raises(DataError, match="no picture field 'image' in a sample that has"):
        task("text_to_image").build(SampleView(META, {"depth": (2, 2)}, 8), 0)


def official(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize(
    ("turns", "fields", "name"),
    [
        (official("Hi", "Hello"), (), "text_dialog"),
        (official("What is it?", "a cube"), ("image",), "vqa"),
        (
            official("<|image|><|image|> Same?", "no"),
            ("image_00", "image_01"),
            "multi_image_dialog",
        ),
        (official("Draw a cube", "<|image|>"), ("image_00",), "text_to_image"),
        (official("Blue <|image|>", "<|image|>"), ("image_00", "image_01"), "edit"),
    ],
)
def test_an_official_conversation_serves_the_task_of_its_form(
    turns: list[dict[str, str]], fields: tuple[str, ...], name: str
) -> None:
    meta, shapes = {"conversations": turns}, dict.fromkeys(fields, (8, 6))
    assert [one for one in TASKS if can_serve(one, meta, shapes)] == [name]
    assert can_serve("depth", {**meta, "tasks": ["depth"]}, shapes), "tasks may name another"
    assert not can_serve(name, meta, {**shapes, "image_07": (8, 6), "image_08": (8, 6)})
    item = task(name).build(SampleView(meta, shapes, 8), 0)
    slots = [
        p for turn in item.turns for p in turn.question + turn.answer if not isinstance(p, str)
    ]
    assert [slot.field for slot in slots] == list(fields)


def test_an_official_conversation_is_taken_word_for_word() -> None:
    view = SampleView({"conversations": official("What is it?", "a cube")}, {"image": (8, 6)}, 8)
    turn = Turn((ImageSlot("image"), " What is it?"), ("a cube",))
    assert task("vqa").build(view, 0) == Conversation((turn,))


@pytest.mark.parametrize(
    "turns",
    [
        official("Hi", "Hello"),
        official("Draw a cube", "<|image|>"),
        official("Which? <|image|><|image|>", "the left") + official("Why?", "so"),
        official("Draw both", "<|image|> and <|image|>") + official("Swap", "<|image|>"),
    ],
)
def test_conversation_takes_every_official_record(turns: list[dict[str, str]]) -> None:
    num_images = sum(message["value"].count("<|image|>") for message in turns)
    shapes = {f"image_{number:02d}": (8, 6) for number in range(num_images)}
    meta = {"conversations": turns}
    assert can_serve("conversation", meta, shapes)
    item = task("conversation").build(SampleView(meta, shapes, 8), 0)
    shown = "\n".join(
        written(parts) for turn in item.turns for parts in (turn.question, turn.answer)
    )
    slots = iter(sorted(shapes))
    values = "\n".join(message["value"] for message in turns)
    assert shown == re.sub(r"<\|image\|>", lambda _: f"<{next(slots)}>", values)
    one_more = {**shapes, f"image_{num_images:02d}": (8, 6)}
    assert can_serve("conversation", meta, one_more) == (num_images == 0)


def test_conversation_takes_nothing_else() -> None:
    assert not can_serve("conversation", META, SHAPES)
    meta = {"conversations": official("Hi", "Hello"), "tasks": ["text_dialog"]}
    assert not can_serve("conversation", meta, {})
    with pytest.raises(DataError, match="the sample's 'conversations' is 'None', and must be"):
        task("conversation").build(SampleView({}, {}, 8), 0)


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no task 'captoin'; did you mean 'caption'.*multi_view"):
        task("captoin")


def test_the_fingerprint_follows_every_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tasks_fingerprint()
    # Kept in the lengths of every data set: a change makes all of them be counted again.
    assert before == "2a6cb35014b0450e"
    tasks_fingerprint.cache_clear()
    assert tasks_fingerprint() == before
    for name in TEMPLATES:
        with monkeypatch.context() as patch:
            louder = replace(TASKS[name], prompts=tuple(f"{t}!" for t in TEMPLATES[name]))
            patch.setitem(TASKS, name, louder)
            tasks_fingerprint.cache_clear()
            assert tasks_fingerprint() != before, name
    tasks_fingerprint.cache_clear()


@pytest.mark.parametrize("kind", ["objects", "mannequin", "views"])
def test_the_embedded_scenes_serve_the_tasks_that_they_name(kind: str) -> None:
    cfg = CorpusConfig(num_scenes=1, split="train", area_px=32, kind_weights={kind: 1.0})
    sample = make_sample(cfg, 0)
    shapes = {field: np.shape(image)[:2] for field, image in sample.images.items()}
    named = sample.json["tasks"]
    assert named and [name for name in TASKS if can_serve(name, sample.json, shapes)] == named
    for name in named:
        item = task(name).build(SampleView(sample.json, shapes, 1), 0)
        parts = [part for turn in item.turns for part in turn.question + turn.answer]
        assert {part.field for part in parts if isinstance(part, ImageSlot)} <= set(shapes)
