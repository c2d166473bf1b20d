"""The published training JSON: conversations of any number of turns and pictures, or of text alone.

    [{"conversations": [{"from": "human", "value": "Depth estimation. <|image|>"},
                        {"from": "gpt", "value": "<|image|>"}],
      "image": ["room.png", "room_depth.png"]}, …]

A list in one file, or an object a line; read record by record, so its size does not matter. The
n-th `<|image|>` of a conversation is its n-th picture, kept as `image_00`, `image_01`, …; where no
symbol stands anywhere, the pictures go in front of the first question. A record with any other
number of symbols is refused, and so is one with a picture that is missing or does not decode. What
else a record holds goes into the sample's JSON as it is. The key is the record's index.

A relative path starts from `pictures=`, or from the JSON's own folder; an absolute one is taken as
it stands. Train on these samples as the task `conversation`.

    mgpt pack source=conversations input=train.json pictures=/data/pictures output=raw/omni
"""

from pathlib import Path

from data_pipeline.raw.shards import Picture, RawSample
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part
from data_pipeline.sources.record_files import BadRecord
from data_pipeline.sources.records import Record, record_parts
from mgpt.errors import DataError
from mgpt.images.pixels import open_image
from mgpt.tokens.chat import ImageCountError, parse_official


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive records of the file.

    Raises:
        ConfigError: no input.
        DataError: no records there, or a JSON list with a syntax error, at its byte.
    """
    return record_parts(cfg, _read)


def _read(record: Record) -> list[RawSample]:
    paths = _paths(record.value.get("image"))
    fields = [f"image_{number:02d}" for number in range(len(paths))]
    turns = record.value.get("conversations")
    try:
        parse_official(turns, fields)
    except ImageCountError as error:
        raise BadRecord("image_count", f"record {record.number}: {error}") from error
    except DataError as error:
        raise BadRecord("bad_conversation", f"record {record.number}: {error}") from error
    pictures = {field: _picture(record, path) for field, path in zip(fields, paths, strict=True)}
    meta = {name: value for name, value in record.value.items() if name != "image"}
    return [RawSample(record.key, pictures, meta | ({"files": paths} if paths else {}))]


def _paths(image: object) -> list[str]:
    """The record's picture files; a lone one may stand without its list."""
    paths = [image] if isinstance(image, str) else [] if image is None else image
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise BadRecord("bad_json", f"image is {str(image)[:80]!r}, and must be a list of paths")
    return paths


def _picture(record: Record, path: str) -> Picture:
    given = Path(path)
    folder, name = (given.parent, given.name) if given.is_absolute() else (record.pictures, path)
    picture = record.picture_file(folder, name)
    try:
        open_image(picture.data)
    except DataError as error:
        raise BadRecord("undecodable", f"record {record.number}: {path}: {error}") from error
    return picture
