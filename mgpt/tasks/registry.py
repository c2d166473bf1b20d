"""The sixteen task formats and the three pretraining documents, by name.

    view = SampleView({"caption": "a red cube"}, {"image": (8, 6)}, latent_px=8)
    can_serve("text_to_image", view.meta, view.shapes)         # True
    item = task("text_to_image").build(view, 0)
    item.turns[0].answer                                       # (ImageSlot(field='image'),)

A sample serves a task when it has what the task needs and, where `meta["tasks"]` lists names, the
task is among them. A sample with `conversations` in the published form brings its own prompts: it
serves the tasks that `meta["tasks"]` names, or else the one whose form it has; `conversation` takes
every such sample, whatever its form. Neither vocabulary nor codes are known here.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from mgpt.errors import ConfigError, DataError
from mgpt.tasks import forms
from mgpt.tasks.forms import SampleView, Shapes
from mgpt.tasks.templates import TEMPLATES
from mgpt.tokens.chat import Conversation, Document, ImageSlot


@dataclass(frozen=True)
class Task:
    """One way of reading a sample."""

    name: str
    variants: int
    """Number of forms; a draw picks one of 0..variants-1."""
    form: Callable[[SampleView, int], Conversation | Document]
    answer: Literal["text", "image", "images"]
    texts: tuple[str, ...] = ()
    """Keys of `meta` that it needs."""
    pictures: tuple[str, ...] = ()
    """Picture fields that it needs, as `forms.has_pictures` reads them."""

    def build(self, view: SampleView, variant: int) -> Conversation | Document:
        """The sample in this form. Raises `DataError` where it lacks what the form needs."""
        assert 0 <= variant < self.variants, f"{self.name} has {self.variants} variants"
        if self.name in TASKS and "conversations" in view.meta:
            return forms.conversation(view, variant)
        return self.form(view, variant)


_FROM = {
    f: partial(forms.from_image, field=f) for f in ("segmentation", "depth", "normals", "pose")
}
_TO = {f: partial(forms.to_image, field=f) for f in ("segmentation", "depth", "normals", "pose")}
_CAPTION = ("caption",)
_NUM_CAPTIONS = len(TEMPLATES["caption"])

TASKS: dict[str, Task] = {
    "text_dialog": Task("text_dialog", 1, forms.text_dialog, "text", ("dialog",)),
    "text_to_image": Task("text_to_image", 1, forms.text_to_image, "image", _CAPTION, ("image",)),
    "caption": Task("caption", _NUM_CAPTIONS, forms.caption, "text", _CAPTION, ("image",)),
    "vqa": Task("vqa", 1, forms.vqa, "text", ("qa",), ("image",)),
    "multi_image_dialog": Task(
        "multi_image_dialog",
        1,
        forms.multi_image_dialog,
        "text",
        ("qa", "other_qa"),
        ("image", "other"),
    ),
    "edit": Task("edit", 1, forms.edit, "image", ("edits",), ("image", "edit_*")),
    "segmentation": Task(
        "segmentation", 1, _FROM["segmentation"], "image", (), ("image", "segmentation")
    ),
    "depth": Task("depth", 1, _FROM["depth"], "image", (), ("image", "depth")),
    "normals": Task("normals", 1, _FROM["normals"], "image", (), ("image", "normals")),
    "pose": Task("pose", 1, _FROM["pose"], "image", (), ("image", "pose")),
    "detection": Task(
        "detection", 1, forms.detection, "image", ("object",), ("image", "detection")
    ),
    "depth_to_image": Task(
        "depth_to_image", 1, _TO["depth"], "image", _CAPTION, ("depth", "image")
    ),
    "segmentation_to_image": Task(
        "segmentation_to_image",
        1,
        _TO["segmentation"],
        "image",
        _CAPTION,
        ("segmentation", "image"),
    ),
    "normals_to_image": Task(
        "normals_to_image", 1, _TO["normals"], "image", _CAPTION, ("normals", "image")
    ),
    "pose_to_image": Task("pose_to_image", 1, _TO["pose"], "image", _CAPTION, ("pose", "image")),
    "multi_view": Task("multi_view", 1, forms.multi_view, "images", _CAPTION, ("view_*",)),
}

DOCUMENTS: dict[str, Task] = {
    "plain_text": Task("plain_text", 1, forms.plain_text, "text", ("text",)),
    "image_text": Task("image_text", 2, forms.image_text, "image", _CAPTION, ("image",)),
    "interleaved": Task(
        "interleaved", 1, forms.interleaved, "images", ("interleaved",), ("interleaved",)
    ),
}

READINGS: dict[str, Task] = {
    **TASKS,
    "conversation": Task("conversation", 1, forms.conversation, "text", ("conversations",)),
    **DOCUMENTS,
}
"""All that a mix may name; `conversation` is the published form as it is."""


def task(name: str) -> Task:
    """The task, or other reading, of that name. Raises `ConfigError` listing the names."""
    found = READINGS.get(name)
    if found is None:
        near = difflib.get_close_matches(str(name), READINGS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        others = ", ".join(other for other in READINGS if other not in TASKS)
        raise ConfigError(
            f"no task {name!r}; {hint}Tasks: {', '.join(TASKS)}; other readings: {others}"
        )
    return found


def caption_reading(words: str) -> Conversation:
    """The picture of field "image" with those words as its caption: how a drawn one is judged."""
    item = task("caption").build(SampleView({"caption": words}, {}, latent_px=1), 0)
    assert isinstance(item, Conversation)
    return item


def can_serve(name: str, meta: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether a sample has all that the task `name` needs, its answer included."""
    wanted = task(name)
    if name not in DOCUMENTS:
        named = meta.get("tasks")
        if named is not None and name not in named:
            return False
        if "conversations" in meta:
            form = _official_form(meta, shapes)
            return form is not None and (named is not None or name in (form, "conversation"))
    return all(forms.has_text(meta, key) for key in wanted.texts) and all(
        forms.has_pictures(field, meta, shapes) for field in wanted.pictures
    )


@cache
def tasks_fingerprint() -> str:
    """16 hex digits over what every task and variant makes of one sample that has all fields.

    It changes with any prompt or form, and so belongs to the lengths that were counted with them.
    """
    shapes = dict.fromkeys(_PROBE_FIELDS, (4, 6))
    sample = SampleView(_PROBE_META, shapes, latent_px=16)
    built = [
        (one.name, variant, one.build(sample, variant))
        for one in (*TASKS.values(), *DOCUMENTS.values())
        for variant in range(one.variants)
    ]
    published = SampleView({"conversations": _PROBE_CONVERSATION}, shapes, latent_px=16)
    built.append(("conversation", 0, READINGS["conversation"].build(published, 0)))
    return hashlib.sha256(repr(built).encode()).hexdigest()[:16]


_PROBE_META = {
    "caption": "a caption",
    "text": "a text",
    "object": "an object",
    "edits": ["first", "second"],
    "dialog": [["a", "b"], ["c", "d"]],
    "qa": [["a", "b"], ["c", "d"]],
    "other_qa": [["e", "f"], ["g", "h"]],
    "interleaved": ["before", {"image": "image"}, "after"],
}
_PROBE_FIELDS = ("image", "view_00", "view_01")
_PROBE_CONVERSATION = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def _official_form(meta: Mapping[str, Any], shapes: Shapes) -> str | None:
    """The task whose form an official conversation has; None where it is not well formed."""
    try:
        conversation = forms.conversation(SampleView(meta, shapes, latent_px=1), 0)
    except DataError:
        return None
    asked = sum(isinstance(p, ImageSlot) for turn in conversation.turns for p in turn.question)
    if any(isinstance(p, ImageSlot) for turn in conversation.turns for p in turn.answer):
        return "edit" if asked else "text_to_image"
    return ("text_dialog", "vqa", "multi_image_dialog")[min(asked, 2)]
