"""How each task reads a sample: one function a form, from `SampleView` to turns or parts.

    view = SampleView({"caption": "a red cube"}, {"image": (8, 6)}, latent_px=8)
    text_to_image(view, 0).turns[0].question
    # ('Generate an image of 48x64 according to the following prompt:\\na red cube',)

Every form takes (sample, variant) and raises `DataError` where a field is missing or of another
kind. Answer pictures are named, not looked up, so that a form also serves to ask a model.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mgpt.errors import DataError
from mgpt.tasks.templates import TEMPLATES
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


def text_dialog(view: SampleView, variant: int) -> Conversation:
    """Several turns of text."""
    pairs = _checked(view, "dialog")
    return Conversation(tuple(Turn((question,), (answer,)) for question, answer in pairs))


def text_to_image(view: SampleView, variant: int) -> Conversation:
    """A caption and the size in pixels, to the picture."""
    caption, size = _checked(view, "caption"), _size(view, "image")
    question = _prompt("text_to_image", variant, caption=caption, **size)
    return Conversation((Turn(question, (ImageSlot("image"),)),))


def caption(view: SampleView, variant: int) -> Conversation:
    """The picture, to its caption; variant 0 asks as the paper does, 1 as the README."""
    question = _prompt("caption", variant, "image")
    return Conversation((Turn(question, (_checked(view, "caption"),)),))


def _asked(name: str, variant: int, pairs: list[tuple[str, str]], field: str) -> tuple[Turn, ...]:
    """The first question with the picture, the others without."""
    first = _prompt(name, variant, field, question=pairs[0][0])
    later = (Turn((question,), (answer,)) for question, answer in pairs[1:])
    return (Turn(first, (pairs[0][1],)), *later)


def vqa(view: SampleView, variant: int) -> Conversation:
    """A question with the picture, then questions only."""
    return Conversation(_asked("vqa", variant, _checked(view, "qa"), "image"))


def multi_image_dialog(view: SampleView, variant: int) -> Conversation:
    """A question with the picture, then one with a new picture, and further ones on both."""
    name = "multi_image_dialog"
    first = _asked(name, variant, _checked(view, "qa")[:1], "image")
    return Conversation(first + _asked(name, variant, _checked(view, "other_qa"), "other"))


def edit(view: SampleView, variant: int) -> Conversation:
    """An instruction with the picture, then instructions only; each to the edited picture."""
    instructions = _checked(view, "edits")
    questions = [_prompt("edit", variant, "image", instruction=instructions[0])]
    questions += [(instruction,) for instruction in instructions[1:]]
    return Conversation(
        tuple(Turn(q, (ImageSlot(f"edit_{n}"),)) for n, q in enumerate(questions, start=1))
    )


def from_image(view: SampleView, variant: int, field: str) -> Conversation:
    """The picture, to the picture field of its segmentation, depth, normals or pose."""
    question = _prompt(field, variant, "image")
    return Conversation((Turn(question, (ImageSlot(field),)),))


def detection(view: SampleView, variant: int) -> Conversation:
    """The picture and what to detect, to the picture with the box drawn."""
    question = _prompt("detection", variant, "image", object=_checked(view, "object"))
    return Conversation((Turn(question, (ImageSlot("detection"),)),))


def to_image(view: SampleView, variant: int, field: str) -> Conversation:
    """A depth, segmentation, normals or pose field and a caption, to the picture."""
    question = _prompt(f"{field}_to_image", variant, field, caption=_checked(view, "caption"))
    return Conversation((Turn(question, (ImageSlot("image"),)),))


def multi_view(view: SampleView, variant: int) -> Conversation:
    """A caption, to all its views; their number and size in pixels stand in the prompt."""
    fields = numbered("view", view.shapes)
    if not fields:
        raise DataError("a multi_view sample without picture fields view_00, view_01, ..")
    if len({view.shapes[field] for field in fields}) > 1:
        raise DataError(
            f"views of different sizes {[view.shapes[field] for field in fields]}; the prompt has "
            "one size for all: give every view the same"
        )
    values = {"views": len(fields), "caption": _checked(view, "caption"), **_size(view, fields[0])}
    question = _prompt("multi_view", variant, **values)
    return Conversation((Turn(question, tuple(ImageSlot(field) for field in fields)),))


def conversation(view: SampleView, variant: int) -> Conversation:
    """The sample's own conversation in the published form; its images are image_00, image_01, ..

    A single picture may also stand in the field `image`.
    """
    fields = numbered("image", view.shapes) or [f for f in ("image",) if f in view.shapes]
    return parse_official(_checked(view, "conversations"), fields)


def plain_text(view: SampleView, variant: int) -> Document:
    """The sample's text, or its caption where it has none."""
    return Document((_checked(view, "text"),))


def image_text(view: SampleView, variant: int) -> Document:
    """Caption and picture; variant 1 has the picture first."""
    parts = (_checked(view, "caption"), ImageSlot("image"))
    return Document(parts if variant == 0 else parts[::-1])


def interleaved(view: SampleView, variant: int) -> Document:
    """Texts and pictures in the sample's own order."""
    parts = _checked(view, "interleaved")
    return Document(tuple(p if isinstance(p, str) else ImageSlot(p["image"]) for p in parts))


def numbered(prefix: str, shapes: Shapes) -> list[str]:
    """The picture fields `<prefix>_<number>` in the order of their numbers."""
    found = [field for field in shapes if re.fullmatch(rf"{prefix}_[0-9]+", field)]
    return sorted(found, key=lambda field: (int(field.rpartition("_")[2]), field))


def has_text(meta: Mapping[str, Any], key: str) -> bool:
    """Whether `meta[key]` is there and of the kind that the forms need."""
    return _TEXTS[key][0](_value(meta, key))


def has_pictures(field: str, meta: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether a picture field is there; `edit_*`, `view_*` and `interleaved` stand for several."""
    if field == "view_*":
        return len({shapes[view] for view in numbered("view", shapes)}) == 1
    if field == "edit_*":
        return all(f"edit_{n}" in shapes for n in range(1, len(meta["edits"]) + 1))
    if field == "interleaved":
        return all(isinstance(p, str) or p["image"] in shapes for p in meta["interleaved"])
    return field in shapes


def _prompt(name: str, variant: int, *fields: str, **values: object) -> tuple[Part, ...]:
    # Split before the values go in: an image symbol in a caption is no image.
    parts = split_parts(TEMPLATES[name][variant], fields)
    return tuple(p if isinstance(p, ImageSlot) else p.format(**values) for p in parts)


def _size(view: SampleView, field: str) -> dict[str, int]:
    if field not in view.shapes:
        raise DataError(f"no picture field {field!r} in a sample that has {sorted(view.shapes)}")
    height, width = view.shapes[field]
    return {"width": width * view.latent_px, "height": height * view.latent_px}


def _value(meta: Mapping[str, Any], key: str) -> Any:
    # A caption is a plain text too.
    return meta.get(key, meta.get("caption") if key == "text" else None)


def _checked(view: SampleView, key: str) -> Any:
    value = _value(view.meta, key)
    fits, kind = _TEXTS[key]
    if not fits(value):
        raise DataError(f"the sample's {key!r} is {str(value)[:80]!r}, and must be {kind}")
    return value


def _is_string(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_list(value: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(fits, value))


def _is_strings(value: object) -> bool:
    return _is_list(value, _is_string)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _is_strings(value)


def _is_pairs(value: object) -> bool:
    return _is_list(value, _is_pair)


def _is_piece(value: object) -> bool:
    return _is_string(value) or (isinstance(value, dict) and _is_string(value.get("image")))


def _is_pieces(value: object) -> bool:
    return _is_list(value, _is_piece)


def _is_messages(value: object) -> bool:
    return _is_list(value, lambda message: isinstance(message, dict))


_STRING = (_is_string, "a text that is not empty")
_PAIRS = (_is_pairs, "a list of [question, answer]")
_TEXTS: dict[str, tuple[Callable[[object], bool], str]] = {
    "caption": _STRING,
    "text": _STRING,
    "object": _STRING,
    "edits": (_is_strings, "a list of instructions"),
    "dialog": _PAIRS,
    "qa": _PAIRS,
    "other_qa": _PAIRS,
    "conversations": (_is_messages, 'a list of {"from": "human" or "gpt", "value": text}'),
    "interleaved": (_is_pieces, 'a list of texts and {"image": field}'),
}
