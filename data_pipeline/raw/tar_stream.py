"""A tar read forward, strictly: every member, the checksum of all bytes, and where it breaks.

`tarfile` ends quietly where a file is cut at a member's border, and reads whatever size an
extended header claims into memory. This reader asks for the end marker (two blocks of zeros),
bounds what it holds, and raises `Damaged` with the byte at which the stream cannot be followed.
It reads ustar, pax and GNU long names, as img2dataset and webdataset write them; it knows nothing
of samples.

    tar = TarStream(open("00000.tar", "rb"))
    for member in tar.members():
        member.name, member.data                  # b"" … or None where it was too large
    tar.sha256                                    # of the whole stream, damaged or not
"""

import hashlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 512
CHUNK_BYTES = 1 << 20
MAX_MEMBER_BYTES = 64 << 20
MAX_HEADER_BYTES = 1 << 16  # a pax record or long name; a real one holds a path

_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
# What is often given in the place of a tar, by its first bytes.
_OTHERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK": "a zip file",
    b"<": "a web page (an error of the download?)",
}
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Damaged(Exception):
    """The stream cannot be followed; says where and why. `member`: the one that is cut, if any."""

    member: str | None = None


class Member(NamedTuple):
    """One member; bytes of the name that are not UTF-8 are surrogate escapes.

    `data` is None where `num_bytes` is above `MAX_MEMBER_BYTES`: it was passed over.
    """

    name: str
    is_file: bool
    num_bytes: int
    data: bytes | None


class TarStream:
    """`members()` once; `sha256` and `num_bytes` of the whole stream when that has ended."""

    def __init__(self, stream: BinaryIO) -> None:
        self.num_bytes = 0
        self._stream = stream
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def members(self) -> Iterator[Member]:
        """Files and links in order; directories are passed over.

        Raises:
            Damaged: no end marker, a header or size that cannot be, data after the end marker.
        """
        try:
            yield from self._members()
        except Damaged:
            while self._next_piece(CHUNK_BYTES):  # the checksum is that of the whole file
                pass
            raise

    def _members(self) -> Iterator[Member]:
        long_name: str | None = None
        pax: dict[str, str] = {}
        while True:
            at = self.num_bytes
            block = self._read(BLOCK_BYTES, "a header")
            if not any(block):
                self._check_end()
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                kind = next((k for magic, k in _OTHERS.items() if block.startswith(magic)), None)
                if at == 0 and kind is not None:
                    raise Damaged(f"no tar but {kind}; unpack it to a plain .tar") from error
                raise Damaged(f"unreadable header at byte {at} ({error})") from error
            num_bytes = _size(pax.get("size"), info.size, at)
            if info.type in _PAX_TYPES:
                records = self._payload(num_bytes, MAX_HEADER_BYTES, "an extended header")
                if info.type != tarfile.XGLTYPE:
                    pax = _pax_records(records or b"", at)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                text = self._payload(num_bytes, MAX_HEADER_BYTES, "a long name") or b""
                long_name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                self._payload(num_bytes, MAX_HEADER_BYTES, "a long link")
            else:
                name = pax.get("path") or long_name or info.name
                long_name, pax = None, {}
                try:
                    data = self._payload(num_bytes, MAX_MEMBER_BYTES, f"member {name!r}")
                except Damaged as damage:
                    damage.member = name
                    raise
                if info.type != tarfile.DIRTYPE:
                    yield Member(name, info.type in _FILE_TYPES, num_bytes, data)

    def _next_piece(self, num_bytes: int) -> bytes:
        piece = self._stream.read(num_bytes)
        self._hash.update(piece)
        self.num_bytes += len(piece)
        return piece

    def _pieces(self, num_bytes: int, what: str, most_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """`num_bytes` in all, at most `most_bytes` at a time."""
        missing = num_bytes
        while missing:
            piece = self._next_piece(min(missing, most_bytes))
            if not piece:
                at = self.num_bytes
                raise Damaged(f"ends at byte {at}, in {what}, before its end marker")
            missing -= len(piece)
            yield piece

    def _read(self, num_bytes: int, what: str) -> bytes:
        # In one piece where the stream gives it: joining would hold a large member twice.
        return b"".join(self._pieces(num_bytes, what, most_bytes=max(num_bytes, 1)))

    def _payload(self, num_bytes: int, limit: int, what: str) -> bytes | None:
        data = None
        if num_bytes > limit:  # a piece at a time, so that a false size costs no memory
            for _ in self._pieces(num_bytes, what):
                pass
        else:
            data = self._read(num_bytes, what)
        self._read(-num_bytes % BLOCK_BYTES, what)
        return data

    def _check_end(self) -> None:
        at = self.num_bytes
        if any(self._read(BLOCK_BYTES, "the end marker")):
            raise Damaged(f"half an end marker at byte {at}")
        while piece := self._next_piece(CHUNK_BYTES):
            if any(piece):
                raise Damaged(f"more data after the end marker at byte {at} (tars put together?)")


def skim(stream: BinaryIO) -> Iterator[str | None]:
    """Names of the members of a stream that can seek, by their headers alone; at the end None if
    they cannot be followed to an end marker. It leaves the stream where it was."""
    start = stream.tell()
    end = stream.seek(0, 2)
    stream.seek(start)
    long_name: str | None = None
    pax: dict[str, str] = {}
    try:
        while True:
            block = stream.read(BLOCK_BYTES)
            if len(block) == BLOCK_BYTES and not any(block):
                return
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            num_bytes = _size(pax.get("size"), info.size, 0)
            following = stream.tell() + -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
            if info.type in (*_PAX_TYPES, tarfile.GNUTYPE_LONGNAME) and (
                num_bytes <= MAX_HEADER_BYTES
            ):
                data = stream.read(num_bytes)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
                elif info.type != tarfile.XGLTYPE:
                    pax = _pax_records(data, 0)
            elif info.type not in (tarfile.GNUTYPE_LONGLINK, *_PAX_TYPES):
                name = pax.get("path") or long_name or info.name
                long_name, pax = None, {}
                if info.type != tarfile.DIRTYPE and following <= end:
                    yield name
            if following > end:
                yield None
                return
            stream.seek(following)
    except (tarfile.HeaderError, Damaged):
        yield None
    finally:
        stream.seek(start)


def _size(claim: str | None, header_bytes: int, at: int) -> int:
    try:
        num_bytes = header_bytes if claim is None else int(claim)
    except ValueError as error:
        raise Damaged(f"unreadable size {claim!r} at byte {at}") from error
    if num_bytes < 0:
        raise Damaged(f"negative size at byte {at}")
    return num_bytes


def _pax_records(data: bytes, at: int) -> dict[str, str]:
    """`<length> <name>=<value>\\n` records (POSIX.1-2001 pax)."""
    records = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length) <= len(data):
            raise Damaged(f"unreadable pax header at byte {at}")
        name, equals, value = data[len(length) + 1 : int(length)].partition(b"=")
        if not equals:
            raise Damaged(f"unreadable pax header at byte {at}")
        text = value.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        records[name.decode("utf-8", "replace")] = text
        data = data[int(length) :]
    return records
