"""Synthetic corpora for the benchmarks of data, and the printing of their tables.

Pictures take random buckets of a resolution and random codes; captions are drawn words of about
the length of a sentence or three. So sizes and texts are as in a real corpus, and codes do not
compress, as real ones hardly do.

    vocab = make_vocabulary(folder)
    write_corpus(folder / "512", 512, num_samples=2000, shards=2)
"""

import functools
import json
import os
import pickle
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mgpt.data.dataset import TokenisedDataset
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.images.buckets import bucket_sizes
from mgpt.tasks.registry import SampleView, task
from mgpt.tokens.chat import Tokens, tokenise
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary

LATENT_PX, NUM_CODES = 16, 8192
IGNORED = -100
TASK = "text_to_image"


@functools.cache
def _lexicon() -> list[str]:
    syllables = [c + v for c in "bcdfghklmnprstvw" for v in ("a", "e", "i", "o", "u", "an", "er")]
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(3000)]


def drawn_words(rng: np.random.Generator, num_words: int) -> list[str]:
    """Words of two to four syllables, few of them often and many seldom, as in captions."""
    words = _lexicon()
    ranks = np.minimum(rng.zipf(1.3, num_words), len(words)) - 1
    return [words[rank] for rank in ranks]


def make_vocabulary(folder: Path) -> Vocabulary:
    """SentencePiece of 4,000 pieces over drawn captions, and 8,192 picture codes."""
    rng = np.random.default_rng(1)
    texts = [" ".join(drawn_words(rng, 40)) + "." for _ in range(2000)]
    texts.append("Generate an image of 0123456789x according to the following prompt:")
    folder.mkdir(parents=True, exist_ok=True)
    return scratch_vocabulary(
        SentencePieceText(train_sentencepiece(texts, folder / "text.model", 4000)),
        NUM_CODES,
        max_grids=128,
    )


_bucket_sizes = functools.cache(functools.partial(bucket_sizes, grid_px=2 * LATENT_PX))


def draw_sample(rng: np.random.Generator, number: int, px: int) -> TokenisedSample:
    """A picture of a random bucket with a caption of 15 to 45 words and its geometry."""
    sizes = _bucket_sizes(px)
    width, height = sizes[rng.integers(len(sizes))]
    crop = {"source_width": width * 2, "source_height": height * 2 + 17}
    crop |= {"resized_width": width, "resized_height": height + 9}
    crop |= {"x": 0, "y": int(rng.integers(9)), "width": width, "height": height}
    caption = " ".join(drawn_words(rng, int(rng.integers(15, 46)))) + "."
    shape = (height // LATENT_PX, width // LATENT_PX)
    codes_HW = rng.integers(0, NUM_CODES, shape, dtype=np.uint16)
    meta = {"caption": caption, "geometry": {"image": crop}}
    return TokenisedSample(f"{number:09d}", meta, {"image": codes_HW})


def write_corpus(folder: Path, px: int, num_samples: int, shards: int) -> None:
    """Tokenised shards of drawn samples, as `mgpt tokenize` writes them."""
    rng = np.random.default_rng(px)
    for shard in range(shards):
        name = f"{shard:05d}"
        with ShardWriter(folder, name) as writer:
            for number in range(num_samples // shards):
                writer.add(draw_sample(rng, number, px))
            raw = {"name": name, "sha256": "0" * 64, "bytes": 0, "inputs": num_samples // shards}
            writer.close(
                {
                    "raw": raw | {"damaged": None, "ignored": {}},
                    "rejected": [],
                    "resolution_px": px,
                    "latent_px": LATENT_PX,
                    "num_codes": NUM_CODES,
                    "vq_fingerprint": "0" * 16,
                    "settings_fingerprint": "0" * 16,
                }
            )


def document(sample: TokenisedSample, vocab: Vocabulary) -> Tokens:
    """The sample as the text-to-image conversation that training makes of it."""
    shapes = {name: codes_HW.shape for name, codes_HW in sample.codes.items()}
    view = SampleView(sample.meta, shapes, LATENT_PX)
    return tokenise(task(TASK).build(view, 0), sample.codes, vocab)


def write_pickles(folder: Path, dataset: TokenisedDataset, vocab: Vocabulary) -> tuple[int, int]:
    """One pickle a sample with lists of ids and labels, the published layout; (bytes, tokens)."""
    folder.mkdir(parents=True)
    num_bytes = num_tokens = 0
    for index in range(len(dataset)):
        tokens = document(dataset.sample(index), vocab)
        labels = np.where(tokens.trained, tokens.ids, IGNORED).tolist()
        record = {"token": tokens.ids.tolist(), "label": labels, "id": index}
        path = folder / f"{index:09d}.pkl"
        path.write_bytes(pickle.dumps(record))
        num_bytes += path.stat().st_size
        num_tokens += len(labels)
    return num_bytes, num_tokens


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def conditions(**more: Any) -> dict[str, Any]:
    """What a number depends on beside the code."""
    return {
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        **more,
    }


def show(rows: list[dict[str, Any]], given: dict[str, Any]) -> None:
    """The rows as a table, and as JSON with their conditions."""
    for line in table(rows):
        print(line)
    print(json.dumps({"conditions": given, "results": rows}))


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a table in Markdown, one row each, under the names of the first one's values."""
    yield "| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |"
    yield "|" + "---|" * len(rows[0])
    for row in rows:
        yield "| " + " | ".join("" if v is None else f"{v}" for v in row.values()) + " |"
