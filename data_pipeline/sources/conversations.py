"""The published training JSON: conversations of any number of turns and pictures, or of text alone.

    [{"conversations": [{"from": "human", "value": "Depth estimation. <|image|>"},
                        {"from": "gpt", "value": "<|image|>"}],
      "image": ["room.png", "room_depth.png"]}, …]

A list in one file, or an object a line; read record by record, so its size does not matter. The
n-th `<|image|>` of a conversation is its n-th picture, kept as `image_00`, `image_01`, …; where no
symbol stands anywhere, the pictures go in front of the first question. LLaVA's `<image>` and chat
templates' `messages` with parts are read as well (`data_pipeline.sources.turns`). A record with any
other number of symbols is refused, and so is one with a picture that is missing or does not decode,
or with a video. What else a record holds goes into the sample's JSON as it is. The key is the
record's index.

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
from data_pipeline.sources.turns import IMAGE_FIELDS, TURN_FIELDS, read_turns
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
    try:
        found = read_turns(record.value)
    except BadRecord as bad:
        reason = "bad_conversation" if bad.reason == "bad_turns" else bad.reason
        raise BadRecord(reason, f"record {record.number}: {bad.detail}") from bad
    fields = [f"image_{number:02d}" for number in range(len(found.images))]
    try:
        parse_official(found.turns, fields)
    except ImageCountError as error:
        raise BadRecord("image_count", f"record {record.number}: {error}") from error
    except DataError as error:
        raise BadRecord("bad_conversation", f"record {record.number}: {error}") from error
    pictures = {
        field: _picture(record, image) for field, image in zip(fields, found.images, strict=True)
    }
    left = {*IMAGE_FIELDS, *TURN_FIELDS}
    meta = {name: value for name, value in record.value.items() if name not in left}
    names = [_name(image) for image in found.images]
    files = {"files": names} if names else {}
    return [RawSample(record.key, pictures, meta | {"conversations": found.turns} | files)]


def _name(image: object) -> str:
    """What the sample's JSON keeps of a picture."""
    return str(image.get("path") or "") if isinstance(image, dict) else str(image)


def _picture(record: Record, image: object) -> Picture:
    if not isinstance(image, (str, dict)) or not image:
        raise BadRecord("bad_json", f"image is {str(image)[:80]!r}, and must be a path or a list")
    if isinstance(image, dict):
        return record.picture(image)
    path = image
    given = Path(path)
    folder, name = (given.parent, given.name) if given.is_absolute() else (record.pictures, path)
    picture = record.picture_file(folder, name)
    try:
        open_image(picture.data)
    except DataError as error:
        raise BadRecord("undecodable", f"record {record.number}: {path}: {error}") from error
    return picture
