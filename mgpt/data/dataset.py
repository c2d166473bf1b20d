"""All finished shards of one resolution's folder, read as one numbered list of samples.

dataset = open_dataset("output/512")
sample = dataset.sample(len(dataset) - 1)     # TokenisedSample, one seek and one read
dataset.identity(0)                           # ("00000", "000000012")
"""

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from mgpt.data.shards import Manifest, Shard, TokenisedSample, canonical_json, read_manifests
from mgpt.errors import DataError
from mgpt.files.storage import Location, locate

NOT_MANIFESTS = frozenset({"settings.json"})
OPEN_SHARDS = 128  # each holds two file descriptors; 1,024 is the usual limit of a process


class TokenisedDataset:
    """All finished shards of one resolution's folder, as one numbered list in shard order.

    Shards without a manifest are not finished and not seen. `fingerprint` covers every byte of
    every shard through the manifests' sha256. A sample of remote shards (s3://, gs://) is one
    ranged request. Safe to read from several threads.
    """

    def __init__(self, folder: str | Location) -> None:
        self.folder = locate(folder)
        names = shard_names(self.folder)
        if not names:
            raise DataError(
                f"{self.folder}: no finished shard here; give the folder of one resolution "
                "that mgpt tokenize wrote, such as output/512"
            )
        self.manifests = read_manifests(self.folder, names)
        first = self.manifests[0]
        for manifest in self.manifests[1:]:
            for name in ("resolution_px", "latent_px", "num_codes", "vq_fingerprint"):
                ours, theirs = getattr(first, name), getattr(manifest, name)
                if ours != theirs:
                    raise DataError(
                        f"{self.folder}: shard {first.shard} has {name} {ours}, shard "
                        f"{manifest.shard} has {theirs}; keep one VQ model and size a folder"
                    )
        self.resolution_px, self.latent_px = first.resolution_px, first.latent_px
        self.num_codes, self.vq_fingerprint = first.num_codes, first.vq_fingerprint
        self._ends = np.cumsum([manifest.samples for manifest in self.manifests]).tolist()
        self.fingerprint = shards_fingerprint(self.manifests)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def has_pictures(self) -> bool:
        """Whether any sample has codes: the VQ model of text alone has no meaning."""
        return any(manifest.fields for manifest in self.manifests)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def shard(self, number: int) -> Shard:
        """The shard at a place of `manifests`; the least recently used ones are closed."""
        with self._lock:
            shard = self._open.pop(number, None)
            if shard is None:
                manifest = self.manifests[number]
                shard = Shard(self.folder, manifest.shard, manifest)
            self._open[number] = shard
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def locate(self, index: int) -> tuple[Shard, int]:
        """The shard that holds sample `index` of the dataset, and its number there."""
        ends = self._ends
        assert 0 <= index < ends[-1], (index, len(self))
        number = bisect_right(ends, index)
        shard = self._open.get(number)
        # While there is room none is to be closed, and it does not matter which was used last.
        if shard is None or len(self._open) == OPEN_SHARDS:
            shard = self.shard(number)
        return shard, index - (ends[number - 1] if number else 0)

    def sample(self, index: int) -> TokenisedSample:
        """Sample `index` of the dataset; one seek and one read (see `Shard.sample`)."""
        shard, number = self.locate(index)
        return shard.sample(number)

    def codes(self, index: int, fields: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """The codes of sample `index` alone (see `Shard.codes`)."""
        shard, number = self.locate(index)
        return shard.codes(number, fields)

    def identity(self, index: int) -> tuple[str, str]:
        """(raw shard, key): what a sample is called in all outputs and draws."""
        shard, number = self.locate(index)
        return str(shard.manifest.raw["name"]), shard.key(number)


def shards_fingerprint(manifests: Iterable[Manifest]) -> str:
    """16 hex digits over every byte of the shards, by their manifests."""
    lines = [[one.shard, one.sha256, one.index_sha256] for one in manifests]
    return hashlib.sha256(canonical_json(lines)).hexdigest()[:16]


def shard_names(folder: Location) -> list[str]:
    """The finished shards of a `<px>` folder: those with a manifest, sorted."""
    return sorted(path.stem for path in folder.glob("*.json") if path.name not in NOT_MANIFESTS)


def resolution_folders(paths: Sequence[str | Location]) -> list[Location]:
    """The `<px>` folders at or in each path, smallest resolution first.

    Raises DataError where a path holds none.
    """
    folders: list[Location] = []
    for given in map(locate, paths):
        inside = [item for item in given.glob("*") if item.name.isdigit() and item.is_dir()]
        if given.name.isdigit() and not inside:
            inside = [given]
        if not inside:
            raise DataError(
                f"{given}: no tokenised shards here; give the output of mgpt tokenize, which holds "
                "a folder a resolution, or one of those"
            )
        folders += sorted(inside, key=lambda item: int(item.name))
    return folders


def open_dataset(folder: str | Location) -> TokenisedDataset:
    """The finished shards of a `<px>` folder.

    Raises:
        DataError: none there, an altered manifest, or shards of different VQ models.
    """
    return TokenisedDataset(folder)
