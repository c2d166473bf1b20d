"""Several npy arrays in one file, one after another, read through one mapping of it.

path.write_bytes(encode_arrays([samples, fields, keys]))
samples, fields, keys = map_arrays(path, 3, "run mgpt reindex on its folder")
"""

import io
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mgpt.errors import DataError
from mgpt.files.storage import Location


def encode_arrays(arrays: Iterable[np.ndarray]) -> bytes:
    """The bytes of a file that holds these arrays; none of Python objects."""
    buffer = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def write_joined(stream: BinaryIO, blocks: Callable[[], Iterable[np.ndarray]]) -> None:
    """One npy array made of blocks along its first axis, which are gone through twice and never
    all in memory; the bytes are those of `encode_arrays` of the whole."""
    num_rows = 0
    for block in blocks():
        num_rows += len(block)
        shape, descr = block.shape[1:], np.lib.format.dtype_to_descr(block.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (num_rows, *shape)}
    np.lib.format.write_array_header_1_0(stream, header)
    for block in blocks():
        stream.write(np.ascontiguousarray(block).data)


def map_arrays(
    path: Path, num_arrays: int, remedy: str, shown: Location | None = None
) -> list[np.ndarray]:
    """Read-only views of the npy arrays that follow one another in a file, through one mapping.

    Args:
        remedy: what a message says is to be done.
        shown: the file that `path` is a copy of, for the message.

    Raises:
        DataError: the file is missing, cut short, or holds something else.
    """
    arrays = []
    try:
        with open(path, "rb") as stream:
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            for _ in range(num_arrays):
                if np.lib.format.read_magic(stream) != (1, 0):
                    raise ValueError("not an npy array of version 1.0")
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                array = np.frombuffer(buffer, dtype, int(np.prod(shape)), stream.tell())
                stream.seek(array.nbytes, os.SEEK_CUR)
                arrays.append(array.reshape(shape))
    except Exception as error:  # numpy's header parser raises kinds from SyntaxError to TokenError
        raise DataError(
            f"{shown or path}: not the arrays it should hold ({error}); {remedy}"
        ) from error
    return arrays
