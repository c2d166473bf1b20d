"""Text-only conversations, as OpenHermes and most chat data have them: JSON lines, lists, parquet.

    {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}
    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}

Both become the published `conversations` form, one sample a record. The model knows no system
role: such a message goes in front of the first question, with an empty line between. Turns that do
not alternate, or end in a question, are refused (`bad_turns`), and so is a text that holds the
image symbol (`image_symbol`): the `conversations` source is for records with pictures.

    mgpt pack source=chat input=openhermes.json output=raw/chat
"""

from typing import Any

from data_pipeline.raw.shards import RawSample
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part
from data_pipeline.sources.record_files import BadRecord
from data_pipeline.sources.records import Record, record_parts
from mgpt.tokens.chat import IMAGE_SYMBOL

TURN_FIELDS = ("conversations", "messages")
SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "model": "gpt",
    "system": "system",
}


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive records."""
    return record_parts(cfg, read)


def read(record: Record) -> list[RawSample]:
    """One sample: it serves `text_dialog` and `conversation`."""
    turns = next((record.value[name] for name in TURN_FIELDS if name in record.value), None)
    if not isinstance(turns, list) or not turns:
        raise BadRecord("bad_turns", f"no list under {' or '.join(TURN_FIELDS)}")
    messages = [_message(turn) for turn in turns]
    system = ""
    if messages[0][0] == "system":
        system = messages.pop(0)[1].strip()
    for place, (speaker, _) in enumerate(messages):
        if speaker != ("human", "gpt")[place % 2]:
            raise BadRecord("bad_turns", f"message {place} is from {speaker}")
    if not messages or len(messages) % 2:
        raise BadRecord("bad_turns", f"{len(messages)} messages, the last without an answer")
    values = [value for _, value in messages]
    if system:
        values[0] = f"{system}\n\n{values[0]}"
    conversations = [
        {"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)
    ]
    return [RawSample(record.key, {}, {"conversations": conversations})]


def _message(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise BadRecord("bad_turns", "a message that is not an object")
    name = turn.get("from", turn.get("role"))
    value = turn.get("value", turn.get("content"))
    speaker = SPEAKERS.get(name) if isinstance(name, str) else None
    if speaker is None:
        raise BadRecord("bad_turns", f"a message from {name!r}")
    if not isinstance(value, str) or (not value.strip() and speaker != "system"):
        raise BadRecord("bad_turns", f"a message of {speaker} without text")
    if IMAGE_SYMBOL in value:
        raise BadRecord("image_symbol", IMAGE_SYMBOL)
    return speaker, value
