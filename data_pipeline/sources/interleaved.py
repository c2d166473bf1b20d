"""Documents of texts and pictures in turn, as OBELICS and MMC4 have them.

    {"texts": ["A cat.", null, "It sleeps."], "images": [null, "tom.jpg", null]}          OBELICS
    {"text_list": ["A cat.", "It sleeps."],
     "image_info": [{"image_name": "tom.jpg", "matched_text_index": 1}]}                  MMC4

The samples keep the order: `interleaved` is a list of texts and `{"image": "image_00"}`, and
`image_00`, `image_01`, … are the pictures. An MMC4 picture stands before the sentence it matches.
Pictures are files in the folder `pictures=` (fetched before, with img2dataset for instance), or
bytes in the table; a document that lacks one is refused whole, because what its text says of the
picture would be wrong.

    mgpt pack source=interleaved input=obelics/ pictures=obelics/images output=raw/documents
"""

from collections.abc import Iterator
from typing import Any

from data_pipeline.raw.shards import Picture, RawSample
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part
from data_pipeline.sources.record_files import BadRecord
from data_pipeline.sources.records import Record, record_parts

Piece = str | dict[str, str]


def parts(cfg: PackConfig) -> list[Part]:
    """Consecutive documents."""
    return record_parts(cfg, read)


def read(record: Record) -> list[RawSample]:
    """One document."""
    obelics = "texts" in record.value
    pieces: list[Piece] = []
    pictures: dict[str, Picture] = {}
    for kind, value in _obelics(record.value) if obelics else _mmc4(record.value):
        if kind == "image":
            field = f"image_{len(pictures):02d}"
            pictures[field] = record.picture(value)
            pieces.append({"image": field})
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += ("\n\n" if obelics else " ") + value
        else:
            pieces.append(value)
    if not pieces:
        raise BadRecord("missing_text", "neither a text nor a picture")
    return [RawSample(record.key, pictures, {"interleaved": pieces})]


def _obelics(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    texts, images = value.get("texts"), value.get("images")
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise BadRecord("bad_document", "texts and images are not two lists of one length")
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise BadRecord("bad_document", f"place {place} holds not one of text and image")
        yield ("image", image) if text is None else ("text", _text(text))


def _mmc4(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    texts, infos = value.get("text_list"), value.get("image_info")
    if not isinstance(texts, list) or not isinstance(infos, list):
        raise BadRecord("bad_document", "neither texts and images nor text_list and image_info")
    before: dict[int, list[Any]] = {}
    for info in infos:
        place = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(place, int) or not 0 <= place < len(texts):
            raise BadRecord("bad_document", f"a picture at text {place} of {len(texts)}")
        before.setdefault(place, []).append(info.get("image_name"))
    for place, text in enumerate(texts):
        yield from (("image", name) for name in before.get(place, ()))
        yield "text", _text(text)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRecord("missing_text", f"{str(value)[:40]!r}")
    return value
