"""How each task reads a sample: one function a form, from `SampleView` to turns or parts.

    view = SampleView({"caption": "a red cube"}, {"image": (8, 6)}, latent_px=8)
    text_to_image(view, "Draw {width}x{height}: {caption}").turns[0].question
    # ('Draw 48x64: a red cube',)

Every form takes (sample, prompt), the prompt with `{values}` and `<|image|>` still in it, and
raises `DataError` if a field is missing or of another kind. Answer pictures are named, not looked
up, so that a form also serves to ask a model. A task of one question and one answer needs no form
of its own: `one_turn` is enough.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgpt.errors import DataError
from mgpt.tasks.fields import (
    CAPTION,
    CONVERSATIONS,
    DIALOG,
    EDITS,
    INTERLEAVED,
    OTHER_QA,
    QA,
    TEXT,
    TextField,
)
from mgpt.tokens.chat import (
    Conversation,
    Document,
    ImageSlot,
    Part,
    Turn,
    parse_official,
    split_parts,
)

Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class SampleView:
    """What a task may see of a sample."""

    meta: Mapping[str, Any]
    shapes: Shapes
    """(height, width) in latents of each picture field."""
    latent_px: int
    """Pixels a latent stands for, a side."""


def one_turn(
    view: SampleView,
    prompt: str,
    shows: Sequence[str],
    says: Sequence[TextField],
    answer: TextField | str,
) -> Conversation:
    """The prompt with the pictures `shows` and the texts `says`, to a text or a picture field."""
    values = {field.key: field.read(view.meta) for field in says}
    given = ImageSlot(answer) if isinstance(answer, str) else answer.read(view.meta)
    return Conversation((Turn(_filled(prompt, *shows, **values), (given,)),))


def text_dialog(view: SampleView, prompt: str) -> Conversation:
    """Several turns of text."""
    pairs = DIALOG.read(view.meta)
    return Conversation(tuple(Turn((question,), (answer,)) for question, answer in pairs))


def text_to_image(view: SampleView, prompt: str) -> Conversation:
    """A caption and the size in pixels, to the picture."""
    caption, size = CAPTION.read(view.meta), _size(view, "image")
    question = _filled(prompt, caption=caption, **size)
    return Conversation((Turn(question, (ImageSlot("image"),)),))


def _asked(prompt: str, pairs: list[tuple[str, str]], field: str) -> tuple[Turn, ...]:
    """The first question with the picture, the others without."""
    first = _filled(prompt, field, question=pairs[0][0])
    later = (Turn((question,), (answer,)) for question, answer in pairs[1:])
    return (Turn(first, (pairs[0][1],)), *later)


def vqa(view: SampleView, prompt: str) -> Conversation:
    """A question with the picture, then questions only."""
    return Conversation(_asked(prompt, QA.read(view.meta), "image"))


def multi_image_dialog(view: SampleView, prompt: str) -> Conversation:
    """A question with the picture, then one with a new picture, and further ones on both."""
    first = _asked(prompt, QA.read(view.meta)[:1], "image")
    return Conversation(first + _asked(prompt, OTHER_QA.read(view.meta), "other"))


def edit(view: SampleView, prompt: str) -> Conversation:
    """An instruction with the picture, then instructions only; each to the edited picture."""
    instructions = EDITS.read(view.meta)
    questions = [_filled(prompt, "image", instruction=instructions[0])]
    questions += [(instruction,) for instruction in instructions[1:]]
    return Conversation(
        tuple(Turn(q, (ImageSlot(f"edit_{n}"),)) for n, q in enumerate(questions, start=1))
    )


def multi_view(view: SampleView, prompt: str) -> Conversation:
    """A caption, to all its views; their number and size in pixels stand in the prompt."""
    fields = numbered("view", view.shapes)
    if not fields:
        raise DataError("a multi_view sample without picture fields view_00, view_01, ..")
    if len({view.shapes[field] for field in fields}) > 1:
        raise DataError(
            f"views of different sizes {[view.shapes[field] for field in fields]}; the prompt has "
            "one size for all: give every view the same"
        )
    values = {"views": len(fields), "caption": CAPTION.read(view.meta), **_size(view, fields[0])}
    question = _filled(prompt, **values)
    return Conversation((Turn(question, tuple(ImageSlot(field) for field in fields)),))


def conversation(view: SampleView, prompt: str) -> Conversation:
    """The sample's own conversation in the published form; its images are image_00, image_01, ..

    A single picture may also stand in the field `image`.
    """
    fields = numbered("image", view.shapes) or [f for f in ("image",) if f in view.shapes]
    return parse_official(CONVERSATIONS.read(view.meta), fields)


def plain_text(view: SampleView, prompt: str) -> Document:
    """The sample's text, or its caption if it has none."""
    return Document((TEXT.read(view.meta),))


def image_text(view: SampleView, prompt: str) -> Document:
    """Caption and picture, in the order of the prompt."""
    return Document(_filled(prompt, "image", caption=CAPTION.read(view.meta)))


def interleaved(view: SampleView, prompt: str) -> Document:
    """Texts and pictures in the sample's own order."""
    parts = INTERLEAVED.read(view.meta)
    return Document(tuple(p if isinstance(p, str) else ImageSlot(p["image"]) for p in parts))


def numbered(prefix: str, shapes: Shapes) -> list[str]:
    """The picture fields `<prefix>_<number>` in the order of their numbers."""
    found = [field for field in shapes if re.fullmatch(rf"{prefix}_[0-9]+", field)]
    return sorted(found, key=lambda field: (int(field.rpartition("_")[2]), field))


def has_pictures(field: str, meta: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether a picture field is there; `edit_*`, `view_*` and `interleaved` stand for several."""
    if field == "view_*":
        return len({shapes[view] for view in numbered("view", shapes)}) == 1
    if field == "edit_*":
        return all(f"edit_{n}" in shapes for n in range(1, len(meta["edits"]) + 1))
    if field == "interleaved":
        return all(isinstance(p, str) or p["image"] in shapes for p in meta["interleaved"])
    return field in shapes


def example_fields(field: str, num_views: int) -> list[str]:
    """The picture fields that `field` of a task stands for, in an example of a sample."""
    several = {
        "view_*": [f"view_{number:02d}" for number in range(num_views)],
        "edit_*": ["edit_1"],
        "interleaved": [],
    }
    return several.get(field, [field])


def _filled(prompt: str, *fields: str, **values: object) -> tuple[Part, ...]:
    # Split before the values go in: an image symbol in a caption is no image.
    parts = split_parts(prompt, fields)
    return tuple(p if isinstance(p, ImageSlot) else p.format(**values) for p in parts)


def _size(view: SampleView, field: str) -> dict[str, int]:
    if field not in view.shapes:
        raise DataError(f"no picture field {field!r} in a sample that has {sorted(view.shapes)}")
    height, width = view.shapes[field]
    return {"width": width * view.latent_px, "height": height * view.latent_px}
