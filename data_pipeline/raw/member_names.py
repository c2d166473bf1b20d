"""Names of a raw shard's members: which key and field they stand for, and which are refused.

>>> split_name("part/scene.v2.depth.png")
MemberName(key='part/scene.v2', field='depth', extension='png')
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

MAX_KEY_BYTES = 80  # `<key>.<field>.npy` fits ustar's 100 bytes

PICTURE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff",
     "ppm", "pgm", "pbm", "pnm"}
)  # fmt: skip
TEXT_EXTENSIONS = frozenset({"txt", "json"})
PICTURE_FIELD = re.compile(
    r"depth|normals|segmentation|pose|detection|other|edit_\d+|view_\d+|image_\d+|own_[a-z0-9_]+"
)
_TURNS = frozenset({"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"})
NO_MEMBERS: Mapping[str, str] = {}


class MemberName(NamedTuple):
    """A member's name taken apart; `field` is empty where the extension is not a known one."""

    key: str
    field: str
    extension: str


def split_name(name: str, members: Mapping[str, str] = NO_MEMBERS) -> MemberName:
    """Key, field and extension of a member; only a known field or extension ends the key.

    Args:
        members: fields by the endings of other names, `{"input.jpg": "image", "caption": "txt"}`.
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    for ending, field_name in members.items():
        if file.endswith(f".{ending}") and len(file) > len(ending) + 1:
            extension = field_name if field_name in TEXT_EXTENSIONS else ending.rpartition(".")[2]
            return MemberName(folder + slash + file[: -len(ending) - 1], field_name, extension)
    stem, _, extension = file.rpartition(".")
    extension = extension.lower() if stem else ""
    stem = stem or file
    field_name = ""
    if extension in PICTURE_EXTENSIONS:
        field_name = "image"
        head, _, tail = stem.rpartition(".")
        if head and PICTURE_FIELD.fullmatch(tail):
            stem, field_name = head, tail
    elif extension in TEXT_EXTENSIONS:
        field_name = extension
    return MemberName(folder + slash + stem, field_name, extension)


def check_members(members: Mapping[str, str]) -> None:
    """Raises ValueError for a map of members to fields that no sample has."""
    for ending, field_name in members.items():
        extension = ending.rpartition(".")[2].lower()
        if field_name in TEXT_EXTENSIONS:
            continue
        if field_name != "image" and not PICTURE_FIELD.fullmatch(field_name):
            raise ValueError(
                f"members: {ending}: {field_name!r} is no field; give image, another picture field "
                "(depth, edit_1, …), txt or json"
            )
        if extension not in PICTURE_EXTENSIONS:
            raise ValueError(f"members: {ending} cannot be {field_name}: it is no picture")


def printable(name: str) -> str:
    """The name with bytes that are not UTF-8 written as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_problem(name: str, key: str) -> str | None:
    """The reason why a member's name, or the key in it, is refused; None where it is good."""
    if printable(name) != name:
        return "name_not_utf8"
    parts = key.split("/")
    if not key or key.startswith("/") or ".." in parts or "" in parts or _has_controls(key):
        return "unsafe_name"
    return "name_too_long" if len(key.encode()) > MAX_KEY_BYTES else None


def _has_controls(key: str) -> bool:
    """Control characters, line ends, and those that turn the direction of a text; a joiner of
    emoji or a no-break space is neither."""
    return not key.isprintable() and any(
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(letter) in _TURNS
        for letter in key
    )
