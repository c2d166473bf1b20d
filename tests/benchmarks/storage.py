"""Bytes on disk a token of training: tokenised shards with index and manifest, and pickled lists.

*With lengths* adds what training keeps of each sample for one task: counts, and its text as ids.

    python tests/benchmarks/storage.py --samples 2000

A token is one of the text-to-image document that training makes of a sample. 2.0 is the floor of
uint16 ids alone; pickled lists of ids and labels, one file a sample, are the published layout.
"""

import argparse
import tempfile
from pathlib import Path

from corpora import (
    TASK,
    conditions,
    folder_bytes,
    make_vocabulary,
    show,
    write_corpus,
    write_pickles,
)

from mgpt.data.dataset import open_dataset
from mgpt.data.lengths import load_lengths

GOALS = {512: 3.8, 768: 2.9, 1024: 2.6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        vocab = make_vocabulary(root / "text")
        for px, goal in GOALS.items():
            write_corpus(root / str(px), px, arguments.samples, shards=2)
            dataset = open_dataset(root / str(px))
            pickled, tokens = write_pickles(root / f"pickles{px}", dataset, vocab)
            shards = folder_bytes(root / str(px))
            load_lengths(dataset, vocab, [TASK])
            with_lengths = folder_bytes(root / str(px))
            rows.append(
                {
                    "px": px,
                    "tokens_a_sample": round(tokens / len(dataset)),
                    "shards_bytes_a_token": round(shards / tokens, 2),
                    "goal": goal,
                    "with_lengths": round(with_lengths / tokens, 2),
                    "floor": 2.0,
                    "pickled_lists": round(pickled / tokens, 2),
                    "pickles_over_shards": round(pickled / shards, 2),
                }
            )
    show(rows, conditions(samples=arguments.samples))


if __name__ == "__main__":
    main()
