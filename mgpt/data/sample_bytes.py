"""The bytes of one sample of a tokenised shard: its JSON, then the codes of each picture field.

    block, json_bytes, fields = encode_sample(TokenisedSample("cat", {}, {"image": codes_HW}))

The shard around them, its index and its reader are `mgpt.data.shards`.
"""

import functools
import io
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgpt.data.tar_header import tar_header
from mgpt.errors import DataError

BLOCK_BYTES = 512
NPY_HEADER_BYTES = 128  # of every array of two axes
FIELD_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CODE_TYPES = (np.uint16, np.uint32)


@dataclass(frozen=True)
class TokenisedSample:
    """One sample: its key in the raw shard, its JSON, and the codes of each picture field.

    `codes` maps a field to uint16 or uint32 [h, w] in latents; a text sample has none.
    """

    key: str
    meta: dict[str, Any]
    codes: dict[str, np.ndarray]


def canonical_json(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    ).encode()


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


@functools.lru_cache(maxsize=4096)
def npy_header(height: int, width: int, code_bytes: int) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": f"<u{code_bytes}", "fortran_order": False, "shape": (height, width)}
    np.lib.format.write_array_header_1_0(buffer, header)
    assert buffer.tell() == NPY_HEADER_BYTES, (height, width)
    return buffer.getvalue()


def _tar_header(name: str, num_bytes: int) -> bytes:
    try:
        return tar_header(name, num_bytes)
    except ValueError as error:
        raise DataError(
            f"member {name!r} does not fit a tar header ({error}); shorten the sample's key"
        ) from error


def _member(name: str, payload: bytes) -> bytes:
    return _tar_header(name, len(payload)) + payload.ljust(_padded(len(payload)), b"\0")


def encode_sample(sample: TokenisedSample) -> tuple[bytes, int, list[tuple[int, str, int, int]]]:
    """The tar bytes of a sample, its JSON's length, and (offset, field, height, width) of each.

    Raises:
        DataError: a key, a field name or a JSON value that the format cannot hold.
    """
    key = sample.key
    if not key or "\0" in key or key.startswith("/") or ".." in key.split("/"):
        raise DataError(f"sample key {key!r} cannot be a file name; rename it in the raw shard")
    try:
        text = canonical_json(sample.meta)
    except (TypeError, ValueError) as error:
        raise DataError(f"sample {key!r}: its fields are not JSON ({error})") from error
    tasks = sample.meta.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise DataError(f"sample {key!r}: 'tasks' is {tasks!r}, not a list of task names")
    parts, fields = [_member(f"{key}.json", text)], []
    position = _padded(len(text)) + BLOCK_BYTES
    for field, codes_HW in sorted(sample.codes.items()):
        if not FIELD_NAME.fullmatch(field):
            raise DataError(f"sample {key!r}: field {field!r} is not letters, digits, - and _")
        if codes_HW.ndim > 2:
            raise DataError(
                f"sample {key!r}: field {field!r} has codes of shape {codes_HW.shape}; several "
                "code planes a picture (residual or multi-scale tokenizers) are not supported, "
                "give one of [height, width]"
            )
        assert codes_HW.ndim == 2 and codes_HW.dtype in _CODE_TYPES, (
            codes_HW.shape,
            codes_HW.dtype,
        )
        height, width = codes_HW.shape
        code_bytes = codes_HW.dtype.itemsize
        payload = npy_header(height, width, code_bytes)
        payload += codes_HW.astype(f"<u{code_bytes}").tobytes()
        parts.append(_member(f"{key}.{field}.npy", payload))
        fields.append((position, field, height, width))
        position += _padded(len(payload)) + BLOCK_BYTES
    return b"".join(parts), len(text), fields
