"""Files wherever they are: on a local file system, or objects of s3://, gs:// and http(s)://.

`locate` turns what a user writes into a `Path` or a `RemotePath`, which has the part of `Path`'s
face that reading needs. What must appear whole or not at all, exclusively, or be read in ranges
goes through the functions here, so that no other module asks where a file is.

    shard = locate("s3://corpus/tokens") / "512" / "00000.tar"
    with WholeFile(shard) as file:              # local: temporary name, fsync, rename
        file.write(block)                       # remote: one conditional PUT (If-None-Match: *)
        file.publish(claim.check)
    read_at(shard).read(97, 512)               # 97 bytes from byte 512 on

http(s) is read only. `mgpt.files.local_copies` keeps copies of small remote files.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from mgpt.errors import MachineError
from mgpt.files import atomic
from mgpt.files.remote import (
    EXTRAS,
    RemotePath,
    entries_of,
    info,
    matching,
    name_of,
    plain,
    request,
)

BLOCK_BYTES = 8 << 20  # of a remote file that is read from its beginning to its end
MAX_PUT_BYTES = 5 << 30  # what S3 takes in one request

Location = Path | RemotePath


def locate(path: str | Path | RemotePath) -> Location:
    """The place that a user's `input=` or `output=` names."""
    if isinstance(path, str) and path.partition("://")[0] in EXTRAS:
        return RemotePath(path.rstrip("/"))
    return path if isinstance(path, RemotePath) else Path(path)


def relative(path: Location, folder: Location) -> PurePosixPath:
    """The path as seen from a folder that it lies in."""
    return PurePosixPath(str(path)).relative_to(PurePosixPath(str(folder)))


def find_glob(pattern: str) -> Sequence[Location]:
    """Files that a glob names, sorted; `{00000..00009}` stands for its numbers."""
    from braceexpand import braceexpand

    if not isinstance(locate(pattern), RemotePath):
        try:
            patterns = list(braceexpand(pattern))
        except ValueError:  # braces that do not close
            patterns = [pattern]
        names = {
            name for one in patterns for name in ([one] if Path(one).exists() else glob.glob(one))
        }
        return [Path(name) for name in sorted(names)]
    found: list[RemotePath] = []
    for one in map(RemotePath, braceexpand(pattern)):
        is_glob = any(character in one.url for character in "*?[")
        found += matching(one) if is_glob else [one]
    return sorted(found)


# ------------------------------------------------------------------ whole files


class WholeFile:
    """A file that is written in pieces and appears at `publish`, whole, or never.

    Local bytes go to a temporary file in the same folder; remote ones to a nameless local file,
    and from there in one conditional request. Only the holder of the claim to a path writes it:
    whatever a dead one left under the name is removed or replaced.

    Raises MachineError where the folder cannot be written or the disk is full.
    """

    def __init__(self, path: Location) -> None:
        self._path = path
        self._temporary: Path | None = None
        self._stream: BinaryIO
        if isinstance(path, RemotePath):
            _refuse_http(path)
            with self._errors():
                self._stream = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (likewise)
            return
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.remove_leftovers(path.parent, path.name)
            self._temporary = atomic.temporary_path(path)
            self._stream = open(self._temporary, "xb")  # noqa: SIM115 (closed in __exit__)

    def _errors(self) -> AbstractContextManager[None]:
        path = self._path
        return atomic.disk_errors(path if isinstance(path, Path) else Path(tempfile.gettempdir()))

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk: what was buffered is given up with the file
            self._stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        with self._errors():
            self._stream.write(data)

    def publish(self, before_replace: Callable[[], None] | None = None) -> None:
        """Give the file its name.

        Args:
            before_replace: called where there is a file of that name already; it raises to keep
                that one (a claim that was lost). A remote one of the same bytes is as good as ours.
        """
        if isinstance(self._path, RemotePath):
            with self._errors():
                self._stream.seek(0)
                data = self._stream.read()
            _put_new(self._path, data, before_replace)
            return
        if before_replace is not None and self._path.exists():
            before_replace()
        assert self._temporary is not None
        with self._errors():
            atomic.publish(self._stream, self._temporary, self._path)


def _put_new(path: RemotePath, data: bytes, before_replace: Callable[[], None] | None) -> None:
    """One conditional PUT. Of an object with the same bytes that is there already, the answer was
    lost, or a dead worker got so far; others are replaced, again with a condition."""
    if len(data) > MAX_PUT_BYTES:
        raise MachineError(
            f"{path}: {len(data)} bytes, an object takes {MAX_PUT_BYTES} in one request; make "
            "shards of fewer samples"
        )
    wanted = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        if _put(path, data):
            return
        try:
            if digest(path) == wanted:
                return
        except FileNotFoundError:
            continue  # deleted meanwhile
        if before_replace is not None:
            before_replace()
        path.unlink(missing_ok=True)
    if not _put(path, data):
        raise MachineError(f"{path}: somebody else writes this object; give another output")


def _put(path: RemotePath, data: bytes) -> bool:
    """Create the object in one request; False where there is one already."""

    def put(filesystem: Any) -> bool:
        try:
            filesystem.pipe_file(path.url, data, mode="create", chunksize=MAX_PUT_BYTES)
        except FileExistsError:
            return False
        except OSError as error:  # a 412 that some servers answer without naming the condition
            if error.errno == errno.EINVAL and filesystem.exists(path.url):
                return False
            raise
        return True

    return request(path, "writing it", put)


def _refuse_http(path: RemotePath) -> None:
    if path.url.startswith("http"):
        raise MachineError(f"{path}: http is read only; give a local, s3:// or gs:// output")


def write_whole(path: Location, data: bytes | Callable[[BinaryIO], object]) -> None:
    """Write or overwrite a file; a reader sees the old one or the new one, never a part.

    Args:
        data: its content, or what writes a large one into a stream, perhaps more than once.
    """
    if not isinstance(path, RemotePath):
        atomic.atomic_write(path, data)
        return
    _refuse_http(path)
    if not callable(data):
        request(path, "writing it", lambda fs: fs.pipe_file(path.url, data))
        return
    with tempfile.NamedTemporaryFile(prefix="mgpt-") as spool:
        with atomic.disk_errors(Path(spool.name)):
            data(cast(BinaryIO, spool))
            spool.flush()
        request(path, "writing it", lambda fs: fs.put_file(spool.name, path.url))


def write_new(
    path: Location, data: bytes, before_replace: Callable[[], None] | None = None
) -> None:
    """`WholeFile` in one go, for a file that only the holder of a claim writes."""
    with WholeFile(path) as file:
        file.write(data)
        file.publish(before_replace)


def create(path: Location, data: bytes) -> bool:
    """The file with its content at once, unless there is one already; whether it is ours.

    A remote request whose answer was lost is known by its bytes: make them unique to the writer
    where it matters who was first.
    """
    if not isinstance(path, RemotePath):
        return atomic.create_exclusive(path, data)
    _refuse_http(path)
    if _put(path, data):
        return True
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def remove_leftovers(folder: Location) -> None:
    """Delete what dead writers left directly in a folder, as `atomic.remove_leftovers` does; on an
    object store they leave nothing."""
    if not isinstance(folder, RemotePath):
        atomic.remove_leftovers(folder)


def remove_tree(folder: Location, last: str = "") -> None:
    """Delete a folder with all that is in it; nothing happens where there is none.

    Args:
        last: the file that says what the folder is: it goes last, so that a deletion that is cut
            short is still known as a part of what was there.
    """
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in sorted(folder.rglob("*"), key=lambda path: path == folder / last):
        path.unlink(missing_ok=True)


def free_bytes(folder: Location) -> float:
    """Room on the disk of a local folder; an object store has no end."""
    return float("inf") if isinstance(folder, RemotePath) else shutil.disk_usage(folder).free


def content_stamp(path: Location, hashed_bytes: int) -> str:
    """What tells a file from another by its content: the sha256 of one of at most `hashed_bytes`,
    name and size of a larger one, the store's own version of a remote one."""
    if isinstance(path, RemotePath):
        listed = path if path.version else RemotePath.listed(path.url, info(path))
        return f"{path.name}:{listed.num_bytes}:{listed.version}"
    num_bytes = path.stat().st_size
    return f"{path.name}:{num_bytes}" if num_bytes > hashed_bytes else atomic.file_sha256(path)[:16]


# ------------------------------------------------------------------ reading


class RangeReader:
    """Reads at any place of one file; safe in several threads."""

    read: Callable[[int, int], bytes]
    """`read(num_bytes, offset)`: the bytes there, fewer at the end of the file. One request, or one
    system call and nothing around it."""

    def __init__(self, path: Location) -> None:
        if isinstance(path, RemotePath):
            self.num_bytes = path.stat().st_size
            self.read = partial(self._request, path)
        else:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (lives as long as this)
            self.num_bytes = os.fstat(self._file.fileno()).st_size
            self.read = partial(os.pread, self._file.fileno())

    def _request(self, path: RemotePath, num_bytes: int, offset: int) -> bytes:
        stop = min(offset + num_bytes, self.num_bytes)
        if offset >= stop:
            return b""

        def fetch(filesystem: Any) -> bytes:
            data = bytes(filesystem.cat_file(path.url, start=offset, end=stop))
            if len(data) != stop - offset:
                raise EOFError(f"{len(data)} of {stop - offset} bytes at {offset}")
            return data

        return request(path, "reading it", fetch)


def read_at(path: Location) -> RangeReader:
    """Opens a file for reading in ranges. Raises OSError as `open` does."""
    return RangeReader(path)


class _BlockStream(io.RawIOBase):
    """A remote file from its beginning on, in ranged requests that are checked for their length:
    a connection that breaks must not look like the end of the file."""

    def __init__(self, path: RemotePath) -> None:
        self._reader, self._at = RangeReader(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._reader.num_bytes}
        self._at = base[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read(len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_stream(path: Location) -> BinaryIO:
    """A file to be read forward (and sought in). Raises OSError as `open` does."""
    if not isinstance(path, RemotePath):
        return open(path, "rb", buffering=1 << 20)
    if path.url.startswith("http") and not info(path).get("partial"):
        return _download(path)  # a server without ranges
    return io.BufferedReader(_BlockStream(path), BLOCK_BYTES)


def _download(path: RemotePath) -> BinaryIO:
    num_bytes = path.stat().st_size
    copy = tempfile.NamedTemporaryFile(prefix="mgpt-")  # noqa: SIM115 (gone when it is closed)

    def fetch(filesystem: Any) -> None:
        filesystem.get_file(path.url, copy.name)
        found = os.stat(copy.name).st_size
        if found != num_bytes:
            raise EOFError(f"{found} of {num_bytes} bytes")

    request(path, "fetching it", fetch)
    return cast(BinaryIO, copy)


def read_all(paths: Sequence[Location]) -> list[bytes | None]:
    """The content of small files, None where there is none; remote ones side by side."""
    remote = [path for path in paths if isinstance(path, RemotePath)]
    if len(remote) < 2:
        return [_read_or_none(path) for path in paths]
    assert len(remote) == len(paths), "files of one place"

    def fetch(filesystem: Any) -> list[bytes | None]:
        # Many at once are patterns to the client, a single one is a name.
        names = {path.url for path in remote if not any(one in path.url for one in "*?[")}
        answers = filesystem.cat(sorted(names), on_error="return") if names else {}
        for url in {path.url for path in remote} - names:
            try:
                answers[url] = filesystem.cat_file(url)
            except FileNotFoundError as error:
                answers[url] = error
        by_name = {plain(name): answer for name, answer in answers.items()}
        found: list[bytes | None] = []
        for path in remote:
            answer = by_name[plain(path.url)]
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
            found.append(None if isinstance(answer, Exception) else bytes(answer))
        return found

    return request(remote[0].parent, f"reading {len(remote)} files", fetch)


def _read_or_none(path: Location) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def digest(path: Location) -> str:
    """Hex sha256 of a file, read in pieces."""
    if not isinstance(path, RemotePath):
        return atomic.file_sha256(path)
    found = hashlib.sha256()
    with open_stream(path) as stream:
        while data := stream.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def modified_times(folder: Location) -> dict[str, float]:
    """Name → seconds since 1970 of each file in a folder, by the clock of whoever stores them."""
    if isinstance(folder, RemotePath):
        return {
            name_of(entry): _modified(entry)
            for entry in entries_of(folder)
            if entry.get("type") == "file"
        }
    found = {}
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return {}
    for entry in entries:
        try:
            found[entry.name] = entry.stat().st_mtime
        except FileNotFoundError:  # gone since it was listed
            continue
    return found


def _modified(entry: dict[str, Any]) -> float:
    stamp = entry.get("LastModified") or entry.get("mtime") or entry.get("updated")
    if isinstance(stamp, str):
        from datetime import datetime

        stamp = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    return float(stamp if isinstance(stamp, (int, float)) else stamp.timestamp())  # type: ignore[union-attr]


def touch(path: Location) -> float:
    """Make an empty file, or renew the one there; its stamp, as `modified_times` gives it."""
    if isinstance(path, RemotePath):
        request(path, "writing it", lambda fs: fs.pipe_file(path.url, b""))
        return _modified(info(path))
    path.touch()
    return path.stat().st_mtime
