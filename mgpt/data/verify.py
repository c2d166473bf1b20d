"""Proof that a shard's tar, index and manifest agree byte for byte.

problems = verify_shard("output/512", "00000")
assert not problems, problems
"""

from pathlib import Path

from mgpt.data.shards import (
    TAR_END,
    IndexBuilder,
    Manifest,
    Shard,
    encode_sample,
    read_manifest,
)
from mgpt.errors import DataError
from mgpt.files.atomic import file_sha256
from mgpt.files.local_copies import local_files
from mgpt.files.storage import Location, locate

MOST_NAMED = 8  # samples named in one report; the counts go on


def verify_shard(folder: str | Location, name: str) -> list[str]:
    """List every problem of a shard; an empty list is the proof that there is none.

    Both files are hashed against the manifest (which carries its own checksum), and each sample is
    read through the index and encoded again: the tar must hold those bytes, in that order, and
    nothing else, and the index must be the one they give. So a byte cut, flipped or added anywhere
    in the three files is reported, with the first samples it touches. Remote files are fetched
    once, to a temporary folder.
    """
    names = [f"{name}.{suffix}" for suffix in ("json", "index.npy", "tar")]
    with local_files(locate(folder), names) as local:
        return [line.replace(str(local), str(folder)) for line in _problems(local, name)]


def _problems(folder: Path, name: str) -> list[str]:
    try:
        manifest = read_manifest(folder, name)
    except DataError as error:
        return [str(error)]
    problems = _wrong_file(
        folder / f"{name}.index.npy", manifest.index_bytes, manifest.index_sha256
    )
    tar_problems = _wrong_file(folder / f"{name}.tar", manifest.bytes, manifest.sha256)
    try:
        if not problems:  # through a damaged index every sample looks wrong
            tar_problems += _wrong_samples(Shard(folder, name, manifest), manifest)
    except DataError as error:
        tar_problems = tar_problems or [str(error)]
    return problems + tar_problems


def _wrong_file(path: Path, num_bytes: int, digest: str) -> list[str]:
    if not path.is_file():
        return [f"{path}: missing; the manifest says {num_bytes} bytes"]
    if path.stat().st_size != num_bytes:
        return [f"{path}: {path.stat().st_size} bytes, the manifest says {num_bytes}"]
    if (found := file_sha256(path)) != digest:
        return [f"{path}: sha256 is {found}, the manifest says {digest}"]
    return []


def _wrong_samples(shard: Shard, manifest: Manifest) -> list[str]:
    """Samples whose bytes are not what the writer would write, and the index likewise."""
    problems: list[str] = []
    builder = IndexBuilder()
    tar = Path(str(shard.folder)) / f"{shard.name}.tar"
    with open(tar, "rb") as stream:
        for index in range(len(shard)):
            try:
                sample = shard.sample(index)
                block, json_bytes, fields = encode_sample(sample)
            except (DataError, ValueError, IndexError, OverflowError) as error:
                problems.append(f"{tar}: sample {index}: {error}")
                break
            if stream.read(len(block)) != block:
                problems.append(f"{tar}: sample {index} ({sample.key!r}): its bytes were changed")
            builder.add(sample, len(block), json_bytes, fields)
            for field, codes_HW in sample.codes.items():
                if codes_HW.size and codes_HW.max() >= manifest.num_codes:
                    problems.append(
                        f"{tar}: sample {index} ({sample.key!r}): {field} holds code "
                        f"{codes_HW.max()}, the VQ model has {manifest.num_codes}"
                    )
            if len(problems) >= MOST_NAMED:
                problems.append(f"{tar}: stopped looking at samples after {len(problems)} problems")
                return problems
        if not problems and stream.read() != TAR_END:
            problems.append(f"{tar}: does not end in two zero blocks after its last sample")
    if not problems:
        index_file, fields_named, tasks_named = builder.finish()
        path = tar.with_name(f"{shard.name}.index.npy")
        if path.read_bytes() != index_file:
            problems.append(f"{path}: not the index of the samples in the tar")
        if (fields_named, tasks_named) != (manifest.fields, manifest.tasks):
            problems.append(f"{tar}: fields or tasks differ from the manifest's tables")
    return problems
