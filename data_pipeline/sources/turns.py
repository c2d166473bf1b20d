"""Turns of a conversation in the forms that chat data has, as the published one.

    {"conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, …], "image": "0.jpg"}
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]}

    found = read_turns(record.value)
    found.turns        # [{"from": "human", "value": "<|image|>\\nWhat is this?"}, …]
    found.images       # ["0.jpg"]: what the record says of its pictures, in their order

A system message goes in front of the first question, with an empty line between: the model knows no
such role. LLaVA's `<image>` is read as the image symbol if there are as many as pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.sources.record_files import BadRecord
from mgpt.tokens.chat import IMAGE_SYMBOL

TURN_FIELDS = ("conversations", "messages")
IMAGE_FIELDS = ("image", "images")
OTHER_MEDIA = ("video", "videos", "audio", "audios")
LLAVA_SYMBOL = "<image>"
SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "model": "gpt",
    "system": "system",
}


@dataclass(frozen=True)
class Turns:
    """Messages of human and gpt in turn, and the pictures that their symbols stand for."""

    turns: list[dict[str, str]]
    images: list[Any]


def read_turns(value: Mapping[str, Any]) -> Turns:
    """The turns of a record.

    Raises BadRecord: `bad_turns`, `image_count`, or `unsupported_media`.
    """
    given = next((value[name] for name in TURN_FIELDS if value.get(name) is not None), None)
    if not isinstance(given, list) or not given:
        raise BadRecord("bad_turns", f"no list under {' or '.join(TURN_FIELDS)}")
    for name in OTHER_MEDIA:
        if value.get(name):
            raise BadRecord("unsupported_media", f"{name}: {str(value[name])[:80]}")
    inline: list[Any] = []
    messages = [_message(turn, inline) for turn in given]
    images = _images(value)
    if inline and not images:
        images = inline
    if any(image is None for image in images):
        raise BadRecord("image_count", f"a part of type image, and no {' or '.join(IMAGE_FIELDS)}")
    system = messages.pop(0)[1].strip() if messages[0][0] == "system" else ""
    for place, (speaker, _) in enumerate(messages):
        if speaker != ("human", "gpt")[place % 2]:
            raise BadRecord("bad_turns", f"message {place} is from {speaker}")
    if not messages or len(messages) % 2:
        raise BadRecord("bad_turns", f"{len(messages)} messages, the last without an answer")
    texts = _with_symbols([text for _, text in messages], len(images))
    if system:
        texts[0] = f"{system}\n\n{texts[0]}"
    return Turns(
        [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)],
        images,
    )


def _with_symbols(texts: list[str], num_images: int) -> list[str]:
    if any(IMAGE_SYMBOL in text for text in texts):
        return texts
    count = sum(text.count(LLAVA_SYMBOL) for text in texts)
    if not count or not num_images:
        return texts
    if count != num_images:
        raise BadRecord(
            "image_count",
            f"{count} {LLAVA_SYMBOL} and {num_images} pictures; write one for each picture",
        )
    return [text.replace(LLAVA_SYMBOL, IMAGE_SYMBOL) for text in texts]


def _images(value: Mapping[str, Any]) -> list[Any]:
    for name in IMAGE_FIELDS:
        found = value.get(name)
        if found is not None and found != []:
            return found if isinstance(found, list) else [found]
    return []


def _message(turn: Any, images: list[Any]) -> tuple[str, str]:
    """Speaker and text; pictures of its parts are added to `images`, None for one by its place."""
    if not isinstance(turn, dict):
        raise BadRecord("bad_turns", "a message that is not an object")
    name = turn.get("from", turn.get("role"))
    value = turn.get("value", turn.get("content"))
    speaker = SPEAKERS.get(name) if isinstance(name, str) else None
    if speaker is None:
        raise BadRecord("bad_turns", f"a message from {name!r}")
    if isinstance(value, list):
        value = "".join(_part(part, images) for part in value)
    if not isinstance(value, str) or (not value.strip() and speaker != "system"):
        raise BadRecord("bad_turns", f"a message of {speaker} without text")
    return speaker, value


def _part(part: Any, images: list[Any]) -> str:
    """A part of a message: a text, or a picture, as chat templates have them."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind in ("text", None, "input_text", "output_text") and isinstance(text, str):
        return text
    if kind in ("image", "image_url", "input_image"):
        found = next(
            (part[name] for name in (kind, "image", "url", "path") if part.get(name)), None
        )
        images.append(found.get("url", found) if isinstance(found, dict) else found)
        return IMAGE_SYMBOL
    if kind is not None and kind != "text":
        raise BadRecord("unsupported_media", f"a part of type {kind!r}")
    raise BadRecord("bad_turns", f"a part of a message: {str(part)[:80]!r}")
