"""Indexes built anew from what cannot be derived: the tars and their manifests.

An index is derived from its tar alone, and its manifest says what its bytes must be. So one that
was lost or damaged comes back bit for bit, and nothing is accepted that the manifest does not
vouch for. No picture and no vocabulary is needed.

    rebuild_index("output/512", "00000")          # True: it was missing or wrong, and is written
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mgpt.data.shards import IndexBuilder, TokenisedSample, encode_sample, read_manifest
from mgpt.errors import DataError
from mgpt.files.atomic import file_sha256
from mgpt.files.local_copies import local_files
from mgpt.files.storage import Location, locate, write_whole


def rebuild_index(folder: str | Location, name: str) -> bool:
    """Write the index of one shard where it is missing or wrong; whether it was.

    Raises:
        DataError: no manifest, or a tar that is not the one its manifest names.
    """
    folder = locate(folder)
    manifest = read_manifest(folder, name)
    index_name, tar_name = f"{name}.index.npy", f"{name}.tar"
    with local_files(folder, [index_name]) as local:
        if _holds(local / index_name, manifest.index_sha256):
            return False
    with local_files(folder, [tar_name]) as local:
        if not _holds(local / tar_name, manifest.sha256):
            raise DataError(
                f"{folder / tar_name}: missing, or not the {manifest.bytes} bytes of sha256 "
                f"{manifest.sha256} that its manifest names; restore it or tokenise it again"
            )
        builder = IndexBuilder()
        for sample in _samples(local / tar_name):
            block, json_bytes, fields = encode_sample(sample)
            builder.add(sample, len(block), json_bytes, fields)
    index, _, _ = builder.finish()
    if hashlib.sha256(index).hexdigest() != manifest.index_sha256:
        raise DataError(
            f"{folder / tar_name}: its samples do not give the index that its manifest names; was "
            "it written by another version of mgpt? Tokenise the shard again"
        )
    write_whole(folder / index_name, index)
    return True


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _samples(tar: Path) -> Iterator[TokenisedSample]:
    """The samples of a tar that our writer wrote: a JSON, then the arrays of its fields."""
    key, meta = "", None
    codes: dict[str, np.ndarray] = {}
    with tarfile.open(tar, "r:") as members:
        for member in members:
            stream = members.extractfile(member)
            assert stream is not None, "the tar's sha256 is the writer's"
            if member.name.endswith(".json"):
                if meta is not None:
                    yield TokenisedSample(key, meta, codes)
                key, meta, codes = member.name.removesuffix(".json"), json.load(stream), {}
            else:
                field = member.name[len(key) + 1 :].removesuffix(".npy")
                codes[field] = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    if meta is not None:
        yield TokenisedSample(key, meta, codes)
