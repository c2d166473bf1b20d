"""Whether finished raw shards are still what they were, without reading them at each start.

`units.json` in the output has the size and modification time (ETag of an object) of every raw
shard that is finished. One whose time alone differs is read once and compared with the sha256 in
its manifest, so that a copy or a `touch` is no change.

    units = Units.read(output)
    units.check("00000", path, manifest, written_s)    # DataError with both values if it changed
    units.keep(output)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from mgpt.data.shards import Manifest, canonical_json
from mgpt.errors import DataError
from mgpt.files.remote import RemotePath
from mgpt.files.storage import Location, digest, write_whole
from mgpt.files.walk import FileStamp, stamp_of

UNITS_FILE = "units.json"


@dataclass
class Units:
    """Stamps of finished raw shards, by name."""

    stamps: dict[str, FileStamp] = field(default_factory=dict)
    _kept: dict[str, FileStamp] = field(default_factory=dict)

    @classmethod
    def read(cls, output: Location) -> Units:
        """Those of an output; none if an older version or an unfinished job left none."""
        try:
            entries = json.loads((output / UNITS_FILE).read_bytes())
            stamps = {str(name): FileStamp(*entry) for name, entry in entries.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            stamps = {}
        return cls(dict(stamps), stamps)

    def check(self, unit: str, path: Location, manifest: Manifest, written_s: float) -> None:
        """Compares a raw shard with the manifest of what it became.

        Args:
            written_s: when the manifest was written, in seconds since 1970.

        Raises:
            DataError: its size or its content is another.
        """
        now = stamp_of(path)
        remedy = (
            f"restore it, delete {unit}.json and {unit}.tar in every folder of the output to "
            "tokenize it again, or give another output folder"
        )
        num_bytes = manifest.raw["bytes"]
        if now is None or now.num_bytes != num_bytes:
            found = "gone" if now is None else f"{now.num_bytes} bytes"
            raise DataError(f"{path}: {found}, but {num_bytes} when it was tokenised; {remedy}")
        if not self._may_differ(unit, path, now, written_s):
            self.stamps[unit] = now
            return
        sha256 = digest(path)
        if sha256 != manifest.raw["sha256"]:
            raise DataError(
                f"{path}: sha256 {sha256[:16]}, but {manifest.raw['sha256'][:16]} when it was "
                f"tokenised; {remedy}"
            )
        self.stamps[unit] = now

    def _may_differ(self, unit: str, path: Location, now: FileStamp, written_s: float) -> bool:
        if unit in self.stamps:
            return not self.stamps[unit].is_like(now)
        # Finished by a job that was stopped: a raw shard older than its manifest was read as it is.
        is_local = not isinstance(path, RemotePath)
        return is_local and int(now.version) > written_s * 1e9

    def keep(self, output: Location) -> None:
        """Writes the stamps if any is new."""
        if self.stamps != self._kept:
            entries = {name: [one.num_bytes, one.version] for name, one in self.stamps.items()}
            write_whole(output / UNITS_FILE, canonical_json(entries) + b"\n")
            self._kept = dict(self.stamps)
