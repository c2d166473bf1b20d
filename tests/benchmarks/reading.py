"""Reading samples in random order: tokenised shards against one pickle a sample, and LitData.

    python tests/benchmarks/reading.py --samples 1000
    python tests/benchmarks/reading.py --litdata path/to/its/python

*Codes* is a picture's codes as an array; of pickled lists, the ids of the document as one. *Ids
and labels* is the whole document written into a row of int64 that is there, as training fills its
rows: the text's ids from the outlines beside the lengths, the picture laid out; pickles hold both
as they were encoded before. *Encoded* is the same from the sample's JSON, without outlines. Times
are CPU seconds of one process, the best of `--repeats` alternating passes, files in the page cache,
so that a busy machine counts for little. LitData stands in an environment of its own (`pip install
--no-deps litdata`); it stores the codes and the JSON, and this script runs again there to read
them, drawn at random as ours and in order, which it is made for.
"""

import argparse
import json
import pickle
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROW_TOKENS = 8192


def best_us(reads: dict[str, Callable[[int], Any]], order: list[int], repeats: int) -> dict:
    """CPU microseconds a sample of each way to read, the best of alternating passes."""
    best = dict.fromkeys(reads, float("inf"))
    for _ in range(repeats):
        for name, read in reads.items():
            start = time.process_time()
            for index in order:
                read(index)
            best[name] = min(best[name], (time.process_time() - start) / len(order) * 1e6)
    return best


def pickle_readers(folder: Path) -> dict[str, Callable[[int], Any]]:
    """The published layout: lists of ids and of labels."""

    def load(index: int) -> dict[str, Any]:
        with open(folder / f"{index:09d}.pkl", "rb") as stream:
            return pickle.load(stream)

    row_ids, row_labels = np.empty((2, ROW_TOKENS), np.int64)

    def both(index: int) -> None:
        record = load(index)
        tokens = len(record["token"])
        row_ids[:tokens], row_labels[:tokens] = record["token"], record["label"]

    return {
        "pickle codes": lambda index: np.array(load(index)["token"], np.int64),
        "pickle ids and labels": both,
    }


def shard_readers(dataset: Any, vocab: Any) -> dict[str, Callable[[int], Any]]:
    """Ours; the first of them makes the lengths and outlines, which is not timed."""
    from corpora import IGNORED, TASK, document

    from mgpt.data.documents import Drawn, write_document
    from mgpt.data.lengths import TOKENS, load_lengths
    from mgpt.data.source import Component

    lengths = load_lengths(dataset, vocab, [TASK])[TASK]
    part = Component("measured", TASK, dataset, lengths, 1.0, None)
    tokens_N = lengths.counts_NVC[:, 0, TOKENS].tolist()

    row_ids, row_labels = np.empty((2, ROW_TOKENS), np.int64)

    def both(index: int) -> None:
        tokens = tokens_N[index]
        ids, labels = row_ids[:tokens], row_labels[:tokens]
        labels.fill(IGNORED)
        write_document(part, vocab, Drawn(index, 0, False), ids, labels)

    def encoded(index: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = document(dataset.sample(index), vocab)
        ids = tokens.ids.astype(np.int64)
        return ids, np.where(tokens.trained, ids, IGNORED)

    return {
        "shards codes": lambda index: dataset.codes(index)["image"],
        "shards ids and labels": both,
        "shards encoded": encoded,
        "shards sample": lambda index: dataset.sample(index),
    }


def measure(px: int, samples: int, repeats: int, litdata: str | None, root: Path) -> dict:
    """One row of the table."""
    from corpora import make_vocabulary, write_corpus, write_pickles

    from mgpt.data.dataset import open_dataset

    vocab = make_vocabulary(root / "text")
    write_corpus(root / str(px), px, samples, shards=2)
    dataset = open_dataset(root / str(px))
    write_pickles(root / f"pickles{px}", dataset, vocab)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    reads = {**pickle_readers(root / f"pickles{px}"), **shard_readers(dataset, vocab)}
    us = {name: round(value, 1) for name, value in best_us(reads, order, repeats).items()}
    row = {
        "px": px,
        **{f"{name} us": value for name, value in us.items()},
        "codes ratio": round(us["pickle codes"] / us["shards codes"], 1),
        "ids and labels ratio": round(us["pickle ids and labels"] / us["shards ids and labels"], 1),
    }
    if litdata is not None:
        given = [dataset.sample(index) for index in range(len(dataset))]
        arrays = {f"c{n}": sample.codes["image"] for n, sample in enumerate(given)}
        np.savez(root / f"{px}.npz", **arrays)
        (root / f"{px}.json").write_text(json.dumps([sample.meta for sample in given]))
        command = [litdata, __file__, "--inside", str(root / str(px)), "--repeats", str(repeats)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
        theirs = json.loads(told.stdout.splitlines()[-1])
        in_order = best_us({"": dataset.sample}, sorted(order), repeats)[""]
        for name, ours in (("drawn", us["shards sample"]), ("in_order", in_order)):
            row[f"litdata {name} us"] = round(theirs[f"{name}_us"], 1)
            row[f"litdata {name} ratio"] = round(theirs[f"{name}_us"] / ours, 1)
    return row


def read_litdata(stem: Path, repeats: int) -> None:
    """In LitData's environment: the same samples written by it, read by it in the same order."""
    import litdata

    folder = Path(f"{stem}.litdata")
    codes = np.load(f"{stem}.npz")
    metas = json.loads(Path(f"{stem}.json").read_text())
    writer = litdata.streaming.writer.BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, meta in enumerate(metas):
        writer[number] = {"codes": codes[f"c{number}"], "meta": json.dumps(meta)}
    writer.done()
    writer.merge(1)
    dataset = litdata.StreamingDataset(str(folder))

    def read(index: int) -> Any:
        sample = dataset[index]
        return sample["codes"], json.loads(sample["meta"])

    assert np.array_equal(read(3)[0], codes["c3"])
    order = np.random.default_rng(0).permutation(len(metas)).tolist()
    drawn_us = best_us({"litdata": read}, order, repeats)["litdata"]
    passes = []
    for _ in range(repeats):
        start = time.process_time()
        for sample in dataset:
            json.loads(sample["meta"])
        passes.append((time.process_time() - start) / len(metas) * 1e6)
    told = {"drawn_us": drawn_us, "in_order_us": min(passes), "version": litdata.__version__}
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--litdata", help="a Python that has LitData")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        read_litdata(arguments.inside, arguments.repeats)
        return
    from corpora import conditions, show

    with tempfile.TemporaryDirectory() as temporary:
        rows = [
            measure(px, arguments.samples, arguments.repeats, arguments.litdata, Path(temporary))
            for px in (512, 768, 1024)
        ]
    show(rows, conditions(samples=arguments.samples, repeats=arguments.repeats))


if __name__ == "__main__":
    main()
