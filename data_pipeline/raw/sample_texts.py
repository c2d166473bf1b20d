"""The texts of a raw sample: its json and txt as one JSON object, or the reason why they are none.

read_texts({"json": b'{"score": 1}', "txt": b"a cat"})   # {"score": 1, "caption": "a cat"}
"""

import json
from typing import Any

from data_pipeline.raw.captions import caption_of
from mgpt.data.shards import canonical_json

MAX_JSON_PARTS = 100_000  # commas and brackets: 4 MB of [[],[],…] would be 100 MB and a second

Problem = tuple[str, str]  # a reason, and what was seen


def read_texts(texts: dict[str, bytes]) -> dict[str, Any] | Problem:
    """The sample's JSON with the caption of its txt if it has none; or why not."""
    decoded = {}
    for name, data in texts.items():
        try:
            decoded[name] = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return ("text_not_utf8", f"{name}: {not_utf8(data, error)}")
    meta: dict[str, Any] = {}
    if decoded.get("json", "").strip() or ("json" in decoded and "txt" not in decoded):
        text = decoded["json"]
        if (count := sum(map(text.count, ",[{"))) > MAX_JSON_PARTS:
            return ("text_too_large", f"JSON of {count} parts")
        try:
            meta = json.loads(text, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            return ("bad_json", f"{error}: {text[:60]!r}")
        if not isinstance(meta, dict):
            return ("bad_json", f"no object but {text[:60]!r}")
    if isinstance(meta.get("caption"), list):
        meta = {**meta, "captions": meta["caption"], "caption": caption_of(meta)}
    caption = meta.get("caption")
    if "txt" in decoded and not (isinstance(caption, str) and caption.strip()):
        meta["caption"] = decoded["txt"].strip()
    problem = json_problem(meta)
    return meta if problem is None else problem


def not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    """Why a text is not UTF-8, by the name of what it seems to be."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[1:2] == b"\0" or data[:1] == b"\0":
        return "UTF-16; save it as UTF-8"
    return f"byte 0x{data[error.start]:02x} at {error.start}; save it as UTF-8"


def json_problem(meta: dict[str, Any]) -> Problem | None:
    """Reason and what was seen if a sample's JSON is none; None if it is good."""
    tasks = meta.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        return "bad_json", f"tasks is {tasks!r}, and must be a list of task names"
    try:
        canonical_json(meta)
    except (UnicodeEncodeError, RecursionError) as error:  # half a surrogate pair in an escape
        return "text_not_utf8", f"{type(error).__name__} in its JSON"
    except (TypeError, ValueError) as error:  # 1e999 reads as infinity
        return "bad_json", str(error)
    return None
