"""From a checkpoint's loader state to the first batch, after any number of samples.

    python tests/benchmarks/resume.py --samples 10000000

The index is synthetic: that many entries with identities of their own that point at a few real
samples, so that shards need not be written for it. Timed are `load_state` and the first
`read_step` of one rank in a loader that is just made: planning the window, reading the documents,
laying out the rows. Opening the shards' indexes is not in it. The positions are measured in turn,
the best of `--repeats`, also in CPU time and against the start of the data. Beside them stands what
it takes to say before a run what it will draw, exactly (`--foretold` documents at most).
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from corpora import TASK, conditions, make_vocabulary, show, write_corpus

from mgpt.data import loader as loader_module
from mgpt.data.dataset import open_dataset
from mgpt.data.forecast import FORETOLD_DOCUMENTS, foretell, foretell_about
from mgpt.data.lengths import TaskLengths, load_lengths
from mgpt.data.loader import RowLoader
from mgpt.data.outlines import Outlines
from mgpt.data.source import Component, DataConfig, SourceConfig
from mgpt.tokens.chat import Outline
from mgpt.tokens.vocab import Vocabulary

REAL_SAMPLES = 500


class Repeated(Outlines):
    """The outlines of the real samples, over and over."""

    def __init__(self, real: Outlines) -> None:
        self._real = real

    def read(self, entry: int, variant: int) -> Outline:
        return self._real.read(entry % REAL_SAMPLES, variant)


def make_component(folder: Path, vocab: Vocabulary, num_samples: int) -> Component:
    """`num_samples` entries, each of a real sample and as long as it."""
    dataset = open_dataset(folder)
    real = load_lengths(dataset, vocab, [TASK])[TASK]
    place_N = np.arange(num_samples) % len(real)
    lengths = TaskLengths(
        real.samples_N[place_N],
        np.random.default_rng(0).integers(0, 2**63, num_samples, dtype=np.uint64),
        real.counts_NVC[place_N],
        Repeated(real.outlines),
    )
    return Component("synthetic", TASK, dataset, lengths, 1.0, None)


def first_batch_ms(loader: RowLoader, passed: int, config: DataConfig) -> tuple[float, float]:
    """(wall, CPU) milliseconds to the first batch after `passed` samples."""
    fresh = loader.state(0) | {"window": passed // config.window_documents, "step": passed}
    started, cpu = time.perf_counter(), time.process_time()
    loader.load_state(fresh)
    with mock.patch.object(loader_module, "PREFETCH_STEPS", 0):
        step = loader.read_step(passed, rank=0, world=1, micro_rows=config.step_rows)
    elapsed = time.perf_counter() - started, time.process_time() - cpu
    assert step.documents > 0
    return elapsed[0] * 1e3, elapsed[1] * 1e3


def foretelling_s(loader: RowLoader, documents: int) -> tuple[float, int]:
    """CPU seconds to say what a run will draw, exactly, and how many documents that were."""
    step = 1
    while sum(foretell_about(loader, 2 * step).values()) <= documents:
        step *= 2
    started = time.process_time()
    drawn, is_exact = foretell(loader, step)
    assert is_exact
    return round(time.process_time() - started, 1), sum(drawn.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--row-tokens", type=int, default=16_384)
    parser.add_argument("--step-rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--foretold", type=int, default=FORETOLD_DOCUMENTS, help="most documents of a foretold run"
    )
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        vocab = make_vocabulary(root / "text")
        write_corpus(root / "512", 512, REAL_SAMPLES, shards=1)
        component = make_component(root / "512", vocab, arguments.samples)
        config = DataConfig(
            {"synthetic": SourceConfig(str(root / "512"), {TASK: 1.0})},
            row_tokens=arguments.row_tokens,
            step_rows=arguments.step_rows,
        )
        positions = (0, 10_000, 1_000_000, 10_000_000, 100_000_000)
        times: dict[int, list[tuple[float, float]]] = {passed: [] for passed in positions}
        with mock.patch.object(loader_module, "open_components", lambda *_: [component]):
            for repeat in range(arguments.repeats):
                for passed in positions:  # in turn: other work on the machine is in each of them
                    loader = RowLoader(config, vocab, seed=0)
                    times[passed].append(first_batch_ms(loader, passed + 4096 * repeat, config))
                    loader.close()
            loader = RowLoader(replace(config, step_rows=1), vocab, seed=0)
            foretold_s, documents = foretelling_s(loader, arguments.foretold)
            loader.close()
        for passed, found in times.items():
            wall, cpu = (round(min(column), 1) for column in zip(*found, strict=True))
            ratio = round(cpu / min(both[1] for both in times[0]), 2)
            row = {"samples_passed": passed, "first_batch_wall_ms": wall, "cpu_ms": cpu}
            rows.append(row | {"cpu_to_that_at_0": ratio})
    show(
        rows,
        conditions(
            samples=arguments.samples,
            row_tokens=arguments.row_tokens,
            step_rows=arguments.step_rows,
            window_documents=config.window_documents,
            goal_ms=50,
            foretold_documents=documents,
            foretold_cpu_s=foretold_s,
        ),
    )


if __name__ == "__main__":
    main()
