"""What a task may need of a sample's JSON: keys, the kind of their values, and how they are read.

A `TextField` says under which key a value stands, checks it, and gives an example of one, so that
a task can also be built from a prompt that a person types. The keys of the sixteen tasks stand
here; a task of your own declares further ones beside itself:

    COUNT = TextField("count")                       # a text that is not empty
    COUNT.read({"count": "three"})                   # 'three'
    TextField("steps", STRINGS).has({"steps": []})   # False
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mgpt.errors import DataError

FILLED_IN = "."
"""Stands for an answer that nobody reads, in an example."""


@dataclass(frozen=True)
class Kind:
    """A kind of value: how it is recognized, described, and made from a prompt."""

    fits: Callable[[Any], bool]
    description: str
    example: Callable[[str], Any]


def _is_string(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_list(value: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(fits, value))


def _is_strings(value: object) -> bool:
    return _is_list(value, _is_string)


def _is_pairs(value: object) -> bool:
    return _is_list(value, lambda pair: _is_strings(pair) and len(pair) == 2)


def _is_pieces(value: object) -> bool:
    return _is_list(
        value,
        lambda piece: (
            _is_string(piece) or (isinstance(piece, dict) and _is_string(piece.get("image")))
        ),
    )


def _is_messages(value: object) -> bool:
    return _is_list(value, lambda message: isinstance(message, dict))


STRING = Kind(_is_string, "a text that is not empty", lambda prompt: prompt)
STRINGS = Kind(_is_strings, "a list of instructions", lambda prompt: [prompt])
PAIRS = Kind(_is_pairs, "a list of [question, answer]", lambda prompt: [[prompt, FILLED_IN]])
MESSAGES = Kind(
    _is_messages,
    'a list of {"from": "human" or "gpt", "value": text}',
    lambda prompt: [{"from": "human", "value": prompt}, {"from": "gpt", "value": FILLED_IN}],
)
PIECES = Kind(_is_pieces, 'a list of texts and {"image": field}', lambda prompt: [prompt])


@dataclass(frozen=True)
class TextField:
    """A key of a sample's JSON with the kind of its value.

    `or_key` names another key whose value serves if this one is absent.
    """

    key: str
    kind: Kind = STRING
    or_key: str | None = None

    def has(self, meta: Mapping[str, Any]) -> bool:
        """Whether the value is there and of the right kind."""
        return self.kind.fits(self._value(meta))

    def read(self, meta: Mapping[str, Any]) -> Any:
        """The value. Raises `DataError` if it is absent or of another kind."""
        value = self._value(meta)
        if not self.kind.fits(value):
            raise DataError(
                f"the sample's {self.key!r} is {str(value)[:80]!r}, and must be "
                f"{self.kind.description}"
            )
        return value

    def _value(self, meta: Mapping[str, Any]) -> Any:
        other = meta.get(self.or_key) if self.or_key else None
        return meta.get(self.key, other)


CAPTION = TextField("caption", STRING)
TEXT = TextField("text", STRING, or_key="caption")  # a caption is a plain text too
OBJECT = TextField("object", STRING)
EDITS = TextField("edits", STRINGS)
DIALOG = TextField("dialog", PAIRS)
QA = TextField("qa", PAIRS)
OTHER_QA = TextField("other_qa", PAIRS)
CONVERSATIONS = TextField("conversations", MESSAGES)
INTERLEAVED = TextField("interleaved", PIECES)
