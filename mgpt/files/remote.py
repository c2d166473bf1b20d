"""Objects of s3://, gs:// and http(s)://: their paths, and requests that are sent again.

A request that fails in passing (a lost connection, a 503) is made `ATTEMPTS` times in all; then
one message says what failed. Clients are fsspec's, loaded when a URL first asks for one. Nothing
here knows what the objects are; `mgpt.files.storage` makes one face of them and of local files.

    folder = RemotePath("s3://corpus/raw")
    [path.stat().st_size for path in folder.glob("*.tar")]          # one listing
    request(folder, "listing it", lambda fs: fs.find(folder.url))
"""

from __future__ import annotations

import fnmatch
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

from mgpt.errors import MachineError

ATTEMPTS = 6
FIRST_PAUSE_S = 0.25  # doubles: about eight seconds in all
CONNECT_S, SILENCE_S = 10, 60

EXTRAS = {"s3": "s3", "gs": "gs", "http": "http", "https": "http"}
"""Protocol → the extra of this package that installs its client."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_CLIENT_LIBRARIES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RemotePath:
    """A remote file or folder, by its URL; reading it goes as with `pathlib.Path`.

    `num_bytes` and `version` (an ETag) are what a listing said of a file, and save requests.
    """

    url: str
    num_bytes: int | None = field(default=None, compare=False)
    version: str = field(default="", compare=False)

    @classmethod
    def listed(cls, url: str, entry: dict[str, Any]) -> RemotePath:
        """The path with what the store says of it."""
        version = entry.get("ETag") or entry.get("etag") or entry.get("Last-Modified") or ""
        is_file = entry.get("type") == "file" and entry.get("size") is not None
        return cls(url, int(entry["size"]) if is_file else None, str(version).strip('"'))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    def __lt__(self, other: RemotePath) -> bool:
        return self.url < other.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rpartition("/")[0])

    @property
    def parents(self) -> list[RemotePath]:
        """The folders above, nearest first, down to the bucket."""
        host, *names = self.url.partition("://")[2].split("/")
        base = self.url[: self.url.index(host)] + host
        return [RemotePath("/".join([base, *names[:n]])) for n in reversed(range(len(names)))]

    def absolute(self) -> RemotePath:
        return self

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        return self.with_name(PurePosixPath(self.name).with_suffix(suffix).name)

    def exists(self) -> bool:
        return bool(request(self, "asking for it", lambda fs: fs.exists(self.url)))

    def is_file(self) -> bool:
        if self.num_bytes is not None:
            return True
        return bool(request(self, "asking for it", lambda fs: fs.isfile(self.url)))

    def is_dir(self) -> bool:
        return not self.url.startswith("http") and any(True for _ in self.iterdir())

    def stat(self) -> RemoteStat:
        """Its size; raises FileNotFoundError."""
        if self.num_bytes is not None:
            return RemoteStat(self.num_bytes)
        return RemoteStat(int(info(self)["size"]))

    def read_bytes(self) -> bytes:
        return bytes(request(self, "reading it", lambda fs: fs.cat_file(self.url)))

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            request(self, "deleting it", lambda fs: fs.rm_file(self.url))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Object stores have no folders to make."""

    def iterdir(self) -> Iterator[RemotePath]:
        """Files and folders directly in this one."""
        for entry in entries_of(self):
            yield RemotePath.listed(f"{self.url}/{name_of(entry)}", entry)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files and folders directly in this one whose name fits."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Files at any depth whose name fits."""
        found = request(self, "listing it", lambda fs: fs.find(self.url, detail=True))
        base = plain(self.url)
        for name, entry in found.items():
            path = RemotePath.listed(f"{self.url}/{plain(name)[len(base) + 1 :]}", entry)
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path


class RemoteStat(NamedTuple):
    """The part of `os.stat_result` that an object has."""

    st_size: int


# ------------------------------------------------------------------ requests


@functools.lru_cache(maxsize=8)
def _client(protocol: str, pid: int) -> Any:
    """The client of a protocol; `pid`: a forked process needs its own."""
    try:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if protocol == "s3":
            # Attempts are counted here, once, and not by each of three layers.
            timeouts = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S}
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **timeouts}
            options["max_concurrency"] = 1  # more asks for the size before it reads a file
        elif protocol.startswith("http"):
            import aiohttp

            wait = aiohttp.ClientTimeout(None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
            options["client_kwargs"] = {"timeout": wait}
        filesystem = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        extra = EXTRAS[protocol]
        raise MachineError(
            f"{protocol}:// needs a package that is not installed ({error}); "
            f"pip install 'mgpt[{extra}]'"
        ) from error
    if protocol == "s3":
        filesystem.retries = 1
    return filesystem


def request(path: RemotePath, what: str, call: Callable[[Any], Result]) -> Result:
    """The call's result; one that fails in passing is made `ATTEMPTS` times.

    Raises:
        FileNotFoundError, FileExistsError, PermissionError: as the store says.
        MachineError: it failed every time, or no client or credentials are there.
    """
    filesystem = _client(path.url.partition("://")[0], os.getpid())
    pause_s = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(filesystem)
        except _FINAL:
            raise
        except Exception as error:
            kind = type(error)
            is_known = isinstance(error, (OSError, TimeoutError, EOFError))
            if not is_known and kind.__module__.partition(".")[0] not in _CLIENT_LIBRARIES:
                raise
            if attempt == ATTEMPTS or "Credential" in kind.__name__:
                raise MachineError(
                    f"{path}: {what} failed {attempt} times, last with {kind.__name__}: {error}; "
                    "check network, address and credentials, then run the same command again"
                ) from error
        time.sleep(pause_s)
        pause_s *= 2
    raise AssertionError("unreachable")


def info(path: RemotePath) -> dict[str, Any]:
    """What the store says of a file: `size` and more. Raises FileNotFoundError."""
    return dict(request(path, "asking for it", lambda fs: fs.info(path.url)))


def entries_of(folder: RemotePath) -> list[dict[str, Any]]:
    """What the store says of each file and folder in a folder; empty where there is none."""
    try:
        found = request(folder, "listing it", lambda fs: fs.ls(folder.url + "/", detail=True))
    except FileNotFoundError:
        return []
    # Asked for a folder of an object's name, a store lists the object.
    return [entry for entry in found if plain(entry["name"]) != plain(folder.url)]


def matching(pattern: RemotePath) -> list[RemotePath]:
    """The files that a URL with `*`, `?` or `[…]` in it names."""
    protocol = pattern.url.partition("://")[0]
    found = request(pattern, "listing it", lambda fs: fs.glob(pattern.url, detail=True))
    return [
        RemotePath.listed(f"{protocol}://{plain(name)}", entry)
        for name, entry in found.items()
        if entry.get("type") == "file"
    ]


def plain(url: str) -> str:
    """Without its protocol, as some clients name what they list."""
    return url.rpartition("://")[2].strip("/")


def name_of(entry: dict[str, Any]) -> str:
    """A listed entry's own name."""
    return plain(entry["name"]).rpartition("/")[2]
