"""Small tokenised corpora and a vocabulary for tests of the order of rows.

vocab = make_vocabulary(folder)
config = four_tasks(folder, step_rows=5)        # two sources of two tasks each
"""

from pathlib import Path
from typing import Any

import numpy as np

from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.data.source import DataConfig, SourceConfig
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary

NUM_CODES = 64
LATENT_PX = 8
MANIFEST = {
    "raw": {"name": "raw"},
    "resolution_px": 64,
    "latent_px": LATENT_PX,
    "num_codes": NUM_CODES,
    "vq_fingerprint": "0",
    "settings_fingerprint": "0",
}


def make_vocabulary(folder: Path, num_codes: int = NUM_CODES) -> Vocabulary:
    """300 pieces of text and sizes up to eight grids."""
    texts = [f"a red cube number {number}" for number in range(20)]
    model = train_sentencepiece(texts, folder / "text.model", 300)
    return scratch_vocabulary(SentencePieceText(model), num_codes, max_grids=8)


def write_corpus(folder: Path, num_samples: int, seed: int) -> None:
    """Captioned pictures of two to six latents a side with their depth, in two shards."""
    rng = np.random.default_rng(seed)
    for shard in range(2):
        with ShardWriter(folder, f"{shard:05d}") as writer:
            for number in range(num_samples // 2):
                shape = 2 * rng.integers(1, 4, 2)
                codes = {
                    field: rng.integers(0, NUM_CODES, shape, dtype=np.uint16)
                    for field in ("image", "depth")
                }
                meta = {"caption": f"a red cube number {number} " * int(rng.integers(1, 3))}
                writer.add(TokenisedSample(f"{shard}-{number}", meta, codes))
            writer.close(MANIFEST)


def four_tasks(root: Path, step_rows: int, **second: Any) -> DataConfig:
    """Sources of 60 and of 24 samples, two tasks each; windows of a few steps.

    Args:
        second: further fields of the smaller source.
    """
    write_corpus(root / "first", 60, seed=0)
    write_corpus(root / "second", 24, seed=1)
    sources = {
        "first": SourceConfig(str(root / "first"), {"text_to_image": 3.0, "caption": 1.0}),
        "second": SourceConfig(str(root / "second"), {"image_text": 1.0, "depth": 1.0}, **second),
    }
    return DataConfig(sources, 192, step_rows, guidance_drop=0.3, window_documents=40)
