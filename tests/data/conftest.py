"""A small tokenised corpus with real shards, and a real vocabulary."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mgpt.data.shards import Manifest, ShardWriter, TokenisedSample
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary

NUM_CODES = 64
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    texts = [f"a {colour} cube of size {size}" for colour in COLOURS for size in range(20)]
    model = train_sentencepiece(texts, tmp_path_factory.mktemp("text") / "text.model", 300)
    return scratch_vocabulary(SentencePieceText(model), NUM_CODES, max_grids=8)


def manifest_extra(name: str, **changes: object) -> dict[str, object]:
    return {
        "raw": {"name": name, "sha256": "0" * 64, "inputs": 0, "damaged": False},
        "rejected": [],
        "resolution_px": 64,
        "latent_px": 8,
        "num_codes": NUM_CODES,
        "vq_fingerprint": "0123456789abcdef",
        "settings_fingerprint": "fedcba9876543210",
        **changes,
    }


def make_sample(shard: str, number: int) -> TokenisedSample:
    rng = np.random.default_rng([int(shard), number])
    height, width = 2 * rng.integers(1, 5, 2)
    meta = {"caption": f"a {COLOURS[number % 4]} cube " * int(rng.integers(1, 4))}
    codes = {
        field: rng.integers(0, NUM_CODES, (height, width), dtype=np.uint16)
        for field in ("image", "depth")
    }
    return TokenisedSample(f"{number:05d}.v1", meta, codes)


def write_shard(
    folder: Path, name: str, samples: list[TokenisedSample], **changes: object
) -> Manifest:
    with ShardWriter(folder, name) as writer:
        for sample in samples:
            writer.add(sample)
        return writer.close(manifest_extra(name, **changes))


@pytest.fixture
def write() -> Callable[..., Manifest]:
    return write_shard


@pytest.fixture
def sample() -> Callable[[str, int], TokenisedSample]:
    return make_sample


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two shards of 30 and 20 samples."""
    for name, count in (("00000", 30), ("00001", 20)):
        write_shard(tmp_path / "64", name, [make_sample(name, n) for n in range(count)])
    return tmp_path / "64"
