"""The sixteen task formats and the three pretraining documents, by name, and those of your own.

    view = SampleView({"caption": "a red cube"}, {"image": (8, 6)}, latent_px=8)
    can_serve("text_to_image", view.meta, view.shapes)         # True
    item = task("text_to_image").build(view, 0)
    item.turns[0].answer                                       # (ImageSlot(field='image'),)

A sample serves a task if it has what the task needs and, if `meta["tasks"]` lists names, the task
is among them. A sample with `conversations` in the published form brings its own prompts: it serves
the tasks that `meta["tasks"]` names, or else the one whose form it has; `conversation` takes every
such sample, whatever its form. Neither vocabulary nor codes are known here.

A task of your own is a Python file that holds `TASK`, named as the file is; wherever a task is
named (`data.sources.*.tasks`, `mgpt evaluate tasks=`, `mgpt generate task=`), its path stands for
it. Nothing in this package changes:

    # counting.py
    TASK = one_turn(
        "counting",
        "How many objects are there?<|image|>",
        shows=("image",),
        answer=TextField("count"),       # a new key of the samples' JSON
        scorer="exact_match",
    )
"""

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from mgpt.errors import ConfigError, DataError
from mgpt.tasks import forms
from mgpt.tasks.fields import (
    CAPTION,
    CONVERSATIONS,
    DIALOG,
    EDITS,
    FILLED_IN,
    INTERLEAVED,
    OBJECT,
    OTHER_QA,
    QA,
    TEXT,
    TextField,
)
from mgpt.tasks.forms import SampleView, Shapes
from mgpt.tasks.templates import TEMPLATES
from mgpt.tokens.chat import Conversation, Document, ImageSlot

OWN_TASK_SUFFIX = ".py"


@dataclass(frozen=True)
class Task:
    """One way of reading a sample: its fields, prompt, form and scorer."""

    name: str
    form: Callable[[SampleView, str], Conversation | Document]
    answer: Literal["text", "image", "images"]
    texts: tuple[TextField, ...] = ()
    """What it needs of the sample's JSON."""
    pictures: tuple[str, ...] = ()
    """Picture fields that it needs, as `forms.has_pictures` reads them."""
    prompts: tuple[str, ...] = ("",)
    """Its variants, of which a draw picks one; "" for a form that needs none."""
    scorer: str = ""
    """How held-out answers are measured: a name of `mgpt.evals.scorers`, or module:attribute."""

    @property
    def variants(self) -> int:
        return len(self.prompts)

    def build(self, view: SampleView, variant: int) -> Conversation | Document:
        """The sample in this form. Raises `DataError` if it lacks what the form needs."""
        assert 0 <= variant < self.variants, f"{self.name} has {self.variants} variants"
        if self.name in TASKS and "conversations" in view.meta:
            return forms.conversation(view, "")
        return self.form(view, self.prompts[variant])

    def example(
        self, prompt: str, shape: tuple[int, int], latent_px: int, num_views: int = 1
    ) -> Conversation:
        """The conversation about a sample that has everything, with `prompt` in each of its texts.

        Args:
            shape: (height, width) of every picture in latents.
            num_views: pictures that `view_*` stands for.
        """
        meta = {field.key: field.kind.example(prompt or FILLED_IN) for field in self.texts}
        fields = [name for one in self.pictures for name in forms.example_fields(one, num_views)]
        view = SampleView(meta, dict.fromkeys(fields, shape), latent_px)
        item = self.form(view, self.prompts[0])
        assert isinstance(item, Conversation), f"{self.name} is no conversation"
        return item

    @property
    def shows_pictures(self) -> bool:
        """Whether its questions hold pictures; answers to the others follow from text alone."""
        turns = self.example("", (2, 2), latent_px=1).turns
        return any(isinstance(part, ImageSlot) for turn in turns for part in turn.question)


def one_turn(
    name: str,
    *prompts: str,
    shows: tuple[str, ...] = (),
    says: tuple[TextField, ...] = (),
    answer: TextField | str,
    scorer: str,
) -> Task:
    """A task of one question and one answer.

    Args:
        prompts: variants of the question; `<|image|>` for each picture, `{key}` for each text.
        shows: picture fields of the question, in order.
        says: texts of the question.
        answer: a text, or the name of a picture field.
        scorer: as in `Task.scorer`.
    """
    return Task(
        name,
        partial(forms.one_turn, shows=shows, says=says, answer=answer),
        "image" if isinstance(answer, str) else "text",
        texts=says if isinstance(answer, str) else (*says, answer),
        pictures=(*shows, answer) if isinstance(answer, str) else shows,
        prompts=prompts,
        scorer=scorer,
    )


def _from_image(name: str, scorer: str) -> Task:
    return one_turn(name, *TEMPLATES[name], shows=("image",), answer=name, scorer=scorer)


def _to_image(field: str) -> Task:
    name = f"{field}_to_image"
    return one_turn(
        name, *TEMPLATES[name], shows=(field,), says=(CAPTION,), answer="image", scorer="picture"
    )


TASKS: dict[str, Task] = {
    "text_dialog": Task("text_dialog", forms.text_dialog, "text", (DIALOG,), scorer="exact_match"),
    "text_to_image": Task(
        "text_to_image",
        forms.text_to_image,
        "image",
        (CAPTION,),
        ("image",),
        TEMPLATES["text_to_image"],
        scorer="free_picture",
    ),
    "caption": one_turn(
        "caption",
        *TEMPLATES["caption"],
        shows=("image",),
        answer=CAPTION,
        scorer="edit_distance",
    ),
    "vqa": Task(
        "vqa", forms.vqa, "text", (QA,), ("image",), TEMPLATES["vqa"], scorer="exact_match"
    ),
    "multi_image_dialog": Task(
        "multi_image_dialog",
        forms.multi_image_dialog,
        "text",
        (QA, OTHER_QA),
        ("image", "other"),
        TEMPLATES["multi_image_dialog"],
        scorer="exact_match",
    ),
    "edit": Task(
        "edit",
        forms.edit,
        "image",
        (EDITS,),
        ("image", "edit_*"),
        TEMPLATES["edit"],
        scorer="picture",
    ),
    "segmentation": _from_image("segmentation", "mask_iou"),
    "depth": _from_image("depth", "depth_error"),
    "normals": _from_image("normals", "angle_error"),
    "pose": _from_image("pose", "mask_iou"),
    "detection": one_turn(
        "detection",
        *TEMPLATES["detection"],
        shows=("image",),
        says=(OBJECT,),
        answer="detection",
        scorer="box_iou",
    ),
    "depth_to_image": _to_image("depth"),
    "segmentation_to_image": _to_image("segmentation"),
    "normals_to_image": _to_image("normals"),
    "pose_to_image": _to_image("pose"),
    "multi_view": Task(
        "multi_view",
        forms.multi_view,
        "images",
        (CAPTION,),
        ("view_*",),
        TEMPLATES["multi_view"],
        scorer="free_picture",
    ),
}

DOCUMENTS: dict[str, Task] = {
    "plain_text": Task("plain_text", forms.plain_text, "text", (TEXT,)),
    "image_text": Task(
        "image_text",
        forms.image_text,
        "image",
        (CAPTION,),
        ("image",),
        ("{caption}<|image|>", "<|image|>{caption}"),
    ),
    "interleaved": Task(
        "interleaved", forms.interleaved, "images", (INTERLEAVED,), ("interleaved",)
    ),
}

READINGS: dict[str, Task] = {
    **TASKS,
    "conversation": Task("conversation", forms.conversation, "text", (CONVERSATIONS,)),
    **DOCUMENTS,
}
"""All of ours that a mix may name; `conversation` is the published form as it is."""


def is_own(name: str) -> bool:
    """Whether a task is named by a file of the user's own."""
    return name.endswith(OWN_TASK_SUFFIX)


def task_name(reference: str) -> str:
    """The name of a task that is given by name or by file: what metrics and folders are called."""
    return Path(reference).stem if is_own(reference) else reference


def task(reference: str) -> Task:
    """The task, or other reading, of that name or file.

    Raises:
        ConfigError: no such name, listing all; no such file, or none that holds a task.
    """
    if is_own(reference):
        return _own_task(Path(reference).expanduser().resolve(), reference)
    found = READINGS.get(reference)
    if found is None:
        near = difflib.get_close_matches(str(reference), READINGS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        others = ", ".join(other for other in READINGS if other not in TASKS)
        raise ConfigError(
            f"no task {reference!r}; {hint}Tasks: {', '.join(TASKS)}; other readings: {others}; "
            "or a Python file with a TASK, such as my_task.py"
        )
    return found


@cache
def _own_task(file: Path, given_as: str) -> Task:
    if not file.is_file():
        raise ConfigError(f"task {given_as}: there is no such file")
    module_name = f"mgpt_task_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    found = getattr(module, "TASK", None)
    if not isinstance(found, Task):
        raise ConfigError(
            f"task {given_as}: the file holds no TASK of mgpt.tasks.registry.Task; write "
            "TASK = one_turn(…) or TASK = Task(…)"
        )
    if found.name != file.stem:
        raise ConfigError(
            f"task {given_as}: its TASK is named {found.name!r}, its file {file.stem!r}; "
            "give both one name"
        )
    if found.name in READINGS:
        raise ConfigError(f"task {given_as}: {found.name!r} is one of mgpt's own; rename yours")
    return found


def task_fingerprint(reference: str) -> str:
    """16 hex digits over what a task makes of a sample.

    All of ours share one; that of a file covers the file's text, not what it imports.
    """
    if not is_own(reference):
        return tasks_fingerprint()
    text = Path(reference).expanduser().read_bytes()
    return hashlib.sha256(tasks_fingerprint().encode() + text).hexdigest()[:16]


def caption_reading(words: str) -> Conversation:
    """The picture of field "image" with those words as its caption: how a drawn one is judged."""
    item = task("caption").build(SampleView({"caption": words}, {}, latent_px=1), 0)
    assert isinstance(item, Conversation)
    return item


def can_serve(reference: str, meta: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether a sample has all that a task needs, its answer included."""
    wanted = task(reference)
    if wanted.name not in DOCUMENTS:
        named = meta.get("tasks")
        if named is not None and wanted.name not in map(task_name, named):
            return False
        if "conversations" in meta and wanted.name in READINGS:
            form = _official_form(meta, shapes)
            return form is not None and (named is not None or wanted.name in (form, "conversation"))
    return all(field.has(meta) for field in wanted.texts) and all(
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
    """The task whose form an official conversation has; None if it is not well formed."""
    try:
        conversation = forms.conversation(SampleView(meta, shapes, latent_px=1), "")
    except DataError:
        return None
    asked = sum(isinstance(p, ImageSlot) for turn in conversation.turns for p in turn.question)
    if any(isinstance(p, ImageSlot) for turn in conversation.turns for p in turn.answer):
        return "edit" if asked else "text_to_image"
    return ("text_dialog", "vqa", "multi_image_dialog")[min(asked, 2)]
