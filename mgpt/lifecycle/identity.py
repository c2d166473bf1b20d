"""What an input of a stage is: units with identities of their own, whatever lies beside them.

    shards:<16 hex>      tokenised shards, by the sha256 in their manifests
    raw:<16 hex>         raw shards, by name and content (`data_pipeline.raw.inputs`)
    weights:<16 hex>     a model folder by its SHA256SUMS, a checkpoint by its COMPLETE
    vocabulary:<16 hex>  a vocabulary, by its fingerprint
    vq:<16 hex>          a VQGAN, by its fingerprint
    stage:<16 hex>:<at>  what else a finished stage made, by its record and the place in it
    file:, folder:       files of the user, by content
    files:<n>:<16 hex>   what a job packs, by names, sizes and modification times
    name:<path>          nothing is there

Caches beside shards, notes, hidden files and the other files of a run belong to none of these. So
an identity stays what it is while another run writes lengths, or the parent run is still training.

    input_identity("cats.jsonl"), dataset_identity("tokens", 64), weights_identity("pretrain")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mgpt.data.dataset import shard_names, shards_fingerprint
from mgpt.data.shards import read_manifests
from mgpt.errors import CheckpointError, DataError, VocabularyError
from mgpt.files.file_sums import SUMS
from mgpt.files.storage import Location, content_stamp, locate, relative
from mgpt.files.walk import FileStamp
from mgpt.train.step_layout import COMPLETE

DONE = "DONE"
HASHED_BYTES = 1 << 22  # larger files are told apart by name and size
_BY_FILES = ("stage:", "folder:", "file:")  # all that older versions told an input by


def input_identities(*paths: str | Location | None) -> dict[str, str]:
    """Each path that is given → its identity, for inputs of no kind of their own."""
    return {str(path): input_identity(path) for path in paths if path is not None}


def input_identity(path: str | Location) -> str:
    """The record of the stage that made it, else its files without hidden ones.

    A name that is no path (a VQGAN shipped with the package) stands for itself.
    """
    return _by_files(locate(path), with_hidden=False)


def listing_identity(files: Mapping[str, FileStamp | None]) -> str:
    """Files that are told apart by name, size and modification time; nothing is read."""
    lines = [f"{name}\0{stamp}\n" for name, stamp in sorted(files.items())]
    text = "".join(lines).encode("utf-8", "surrogateescape")
    return f"files:{len(lines)}:{hashlib.sha256(text).hexdigest()[:16]}"


def is_same_input(then: str, now: str, path: str) -> bool:
    """Whether an input that was recorded as `then` is still the same, being `now` at `path`.

    A record of an older version is compared as that version would.
    """
    if then == now:
        return True
    is_older = then.startswith(_BY_FILES)
    return is_older and _by_files(locate(path), with_hidden=True) == then


def is_missing(path: str, identity: str) -> bool:
    """Whether nothing was found at the path."""
    return identity == f"name:{path}"


def told_by_files(identity: str) -> bool:
    """Whether this identity may have come from every file below a path, as in older versions."""
    return identity.startswith(_BY_FILES)


def dataset_identity(path: str | Location, resolution_px: int | None = None) -> str:
    """Tokenised shards: those of one resolution, or of all there are at a path."""
    folder = locate(path)
    if resolution_px is not None:
        folders = [folder / str(resolution_px)]
    else:
        inside = [item for item in folder.glob("*") if item.name.isdigit() and item.is_dir()]
        folders = sorted(inside, key=lambda item: int(item.name)) or [folder]
    found = {}
    for one in folders:
        names = shard_names(one) if one.is_dir() else []
        try:
            if names:
                found[one.name] = shards_fingerprint(read_manifests(one, names))
        except DataError:  # whoever reads the shards says what is wrong with them
            return f"damaged:{path}"
    if not found:
        return f"name:{path}"
    return f"shards:{next(iter(found.values())) if len(found) == 1 else digest(found)}"


def weights_identity(path: str | Path, averaged: bool = True) -> str:
    """A model folder, a checkpoint, or what a run folder stands for; released files by content."""
    # Stages without weights start without torch.
    from mgpt.lifecycle.weights import Weights

    try:
        weights = Weights.find(path, averaged)
    except CheckpointError:
        return input_identity(path)
    if weights.is_checkpoint:
        files = json.loads((weights.folder / COMPLETE).read_bytes())["files"]
        stored = {name: one["sha256"] for name, one in files.items() if name.startswith("state/")}
        return f"weights:{digest(stored)}"
    sums = weights.folder / SUMS
    if sums.exists():
        return f"weights:{hashlib.sha256(sums.read_bytes()).hexdigest()[:16]}"
    files = [weights.folder / "config.json", *weights.folder.glob("*.safetensors")]
    return f"weights:{digest(_stamps(files, weights.folder))}"


def vocabulary_identity(path: str | Path) -> str:
    """A vocabulary wherever one is found for a path."""
    from mgpt.lifecycle.weights import load_vocabulary

    try:
        return f"vocabulary:{load_vocabulary(path).fingerprint}"
    except VocabularyError:
        return input_identity(path)


def vq_input(vq: str | None) -> dict[str, str]:
    """A VQGAN as a stage's input: its folder or shipped name → its fingerprint."""
    from mgpt.tokenizers.folder import load_tokenizer

    return {} if vq is None else {vq: f"vq:{load_tokenizer(vq).fingerprint()}"}


def _by_files(path: Location, with_hidden: bool) -> str:
    for folder in [path, *path.absolute().parents][:4]:
        done = done_fingerprint(folder)
        if done:
            inside = relative(path.absolute(), folder.absolute()) if folder != path else ""
            return f"stage:{done}:{inside}"
    if path.is_file():
        return f"file:{content_stamp(path, HASHED_BYTES)}"
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            place = relative(file, path)
            if with_hidden or not any(part.startswith(".") for part in place.parts):
                digest.update(f"{place}\0{content_stamp(file, HASHED_BYTES)}\n".encode())
        return f"folder:{digest.hexdigest()[:16]}"
    return f"name:{path}"


def done_fingerprint(folder: Location) -> str | None:
    """The fingerprint of the finished stage in a folder; None where there is none."""
    try:
        return str(json.loads((folder / DONE).read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stamps(files: Iterable[Path], folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): content_stamp(file, HASHED_BYTES) for file in files}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
