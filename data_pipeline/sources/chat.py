"""Text-only conversations, as OpenHermes and most chat data have them: JSON lines, lists, parquet.

    {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}
    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}

Both become the published `conversations` form, one sample a record
(`data_pipeline.sources.turns`). Turns that do not alternate, or end in a question, are refused
(`bad_turns`), and so is a record with a picture or a text that holds the image symbol
(`image_symbol`): the `conversations` source is for records with pictures.

    mgpt pack source=chat input=openhermes.json output=raw/chat
"""

from data_pipeline.raw.shards import RawSample
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part
from data_pipeline.sources.record_files import BadRecord
from data_pipeline.sources.records import Record, record_parts
from data_pipeline.sources.turns import read_turns
from mgpt.tokens.chat import IMAGE_SYMBOL


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive records."""
    return record_parts(cfg, read)


def read(record: Record) -> list[RawSample]:
    """One sample: it serves `text_dialog` and `conversation`."""
    found = read_turns(record.value)
    if found.images:
        raise BadRecord("image_symbol", "a record with pictures; source=conversations reads them")
    for turn in found.turns:
        if IMAGE_SYMBOL in turn["value"]:
            raise BadRecord("image_symbol", IMAGE_SYMBOL)
    return [RawSample(record.key, {}, {"conversations": found.turns})]
