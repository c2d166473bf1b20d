"""Which text of a record is its caption: of a named field, of the usual ones, of a list.

    caption_of({"text": "a cat"})                             # "a cat"
    with_caption({"captions": ["a cat", "Tom"]}, "tom", "drawn")   # + {"caption": one of the two}

Knows no file; a caption is drawn by the sample's key, so that it does not depend on who draws it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

CAPTION_FIELDS = ("caption", "text", "captions", "texts")
"""Where a caption is looked for, in this order."""
Choice = Literal["first", "drawn"]


def caption_of(
    fields: Mapping[str, Any], column: str | None = None, key: str = "", choice: Choice = "first"
) -> str:
    """The caption; empty if there is none.

    Args:
        column: the field that holds it; None for the usual ones.
        choice: which of a list.
    """
    for name in CAPTION_FIELDS if column is None else (column,):
        value = fields.get(name)
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        texts = [one.strip() for one in texts if isinstance(one, str) and one.strip()]
        if texts:
            place = 0 if choice == "first" else _draw(key, len(texts))
            return str(texts[place])
    return ""


def with_caption(
    fields: Mapping[str, Any], key: str, choice: Choice = "first", column: str | None = None
) -> dict[str, Any]:
    """The fields of a sample with a picture, its caption under `caption`. A text that became the
    caption is not kept twice; a list stays under its own name."""
    caption = caption_of(fields, column, key, choice)
    kept = dict(fields)
    if not caption:
        return kept
    for name in ("text",) if column is None else (column,):
        if isinstance(kept.get(name), str) and kept[name].strip() == caption:
            del kept[name]
    if isinstance(kept.get("caption"), list):
        kept["captions"] = kept["caption"]
    if not isinstance(kept.get("caption"), str) or kept["caption"].strip() != caption:
        kept["caption"] = caption
    return kept


def _draw(key: str, count: int) -> int:
    digest = hashlib.sha256(f"caption\0{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % count
