"""Files that appear whole or not at all, and what they hold, by its hash.

A file is written under a temporary name in its own folder, flushed to the disk, renamed, and the
folder flushed too: whoever reads sees the old file or the new one, also after a power cut. What
dead writers leave is recognised by its name and removed by the next owner of the target.

    >>> atomic_write(folder / "settings.json", b"{}")
    >>> file_sha256(folder / "settings.json")[:16]
    '44136fa355b3678a'
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mgpt.errors import ConfigError, MachineError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An `OSError` on the way to `path` becomes one message with the folder and the reason."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free space or give another output folder"
        ) from error


def temporary_path(path: Path) -> Path:
    """A new name beside `path` for what will become `path`; `remove_leftovers` knows its form."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def publish(stream: BinaryIO, temporary: Path, path: Path) -> None:
    """Flush to the disk, take the final name, and make the name itself durable."""
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk: a rename is durable only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: str | Path, data: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Args:
        data: its content, or what writes the content into a stream, perhaps more than once.

    Raises:
        MachineError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    path = Path(path)
    with disk_errors(path):
        while True:
            temporary = temporary_path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as stream:
                    if callable(data):
                        data(stream)
                    else:
                        stream.write(data)
                    publish(stream, temporary, path)
                return
            except FileNotFoundError:  # another took it for a dead writer's, and removed it
                continue
            finally:
                temporary.unlink(missing_ok=True)


def create_exclusive(path: str | Path, data: bytes) -> bool:
    """The file with its content at once, unless there is one already; whether it is ours.

    Raises:
        FileNotFoundError: its folder is not there.
        MachineError: it cannot be written; the file system needs hard links.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        if not path.exists():
            raise
        return False  # another was first, and removed what it took for a dead writer's
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be written ({error.strerror or error}); the folder needs free space "
            "and a file system with hard links"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def remove_leftovers(folder: str | Path, prefix: str = "") -> list[str]:
    """Delete temporary files that dead writers left for targets named `prefix…`; their targets.

    Only for whoever owns these names (holds the claim), since a live writer's file has the same
    form, or where all write by `atomic_write` or `create_exclusive`, which expect it.
    """
    removed = []
    for path in sorted(Path(folder).glob(".*.tmp")):
        match = TEMPORARY.fullmatch(path.name)
        if match and match["name"].startswith(prefix):
            path.unlink(missing_ok=True)
            removed.append(match["name"])
    return removed


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    return file_hash(path, "sha256")


def file_hash(path: str | Path, algorithm: str) -> str:
    """Hex hash of a file by one of hashlib's algorithms, for its content's sake, not security's."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while data := stream.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def check_output(output: str | Path, inputs: Iterable[str] = ()) -> None:
    """Raises ConfigError for an output folder that cannot be meant: none, all of the disk, the home
    folder, an input, or a folder that holds one."""
    if not str(output).strip():
        raise ConfigError("output= is empty (a variable that is not set?); give a folder")
    if "://" in str(output):
        return
    folder = Path(output).expanduser().resolve()
    for kind, taken in (("the root of the file system", folder.anchor), ("your home", Path.home())):
        if folder == Path(taken).resolve():
            raise ConfigError(f"output={output} is {kind}; give a folder of its own in it")
    for name in inputs:
        if "://" in name or not Path(name).exists():
            continue
        given = Path(name).resolve()
        if folder in (given, *given.parents):
            relation = "is" if folder == given else "holds"
            raise ConfigError(f"output={output} {relation} the input {name}; give another output=")
