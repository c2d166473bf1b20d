"""How full packed rows are and how fast rows are planned, as a table and as JSON.

    python tests/benchmarks/packing.py --window 2048 --most 32768

Packed are `tests/vectors/lengths.npz` (tokens of each document), or the `lengths_<name>.npy` of a
folder, at the row length that `choose_row_tokens` picks and at the fixed ones. Times are CPU
seconds of one process; `ceiling` is what rounding each window up to whole rows allows.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from corpora import conditions, show

from mgpt.data.packing import choose_row_tokens, plan_rows

# Share of real tokens, and the row length it is asked at; None for the one that is picked.
GOALS: dict[str, tuple[float, int | None]] = {
    "mixed": (0.995, 16_384),
    "512": (0.985, None),
    "768": (0.965, None),
    "1024": (0.945, None),
    "thirds": (0.985, None),
}
VECTORS = Path(__file__).parents[1] / "vectors" / "lengths.npz"


def read_lengths(folder: Path | None) -> dict[str, np.ndarray]:
    """Sets of lengths by name."""
    if folder is None:
        with np.load(VECTORS, allow_pickle=False) as sets:
            return {name: sets[name].astype(np.int64) for name in sorted(sets.files)}
    return {
        path.stem.removeprefix("lengths_"): np.load(path, allow_pickle=False).astype(np.int64)
        for path in sorted(folder.glob("lengths_*.npy"))
    }


def measure(lengths_N: np.ndarray, row_tokens: int, window: int) -> dict[str, float]:
    """Fill ratio, ceiling and planning time of whole windows of `lengths_N`."""
    lengths_N = lengths_N[: max(1, len(lengths_N) // window) * window]
    num_rows = least_rows = 0
    started = time.process_time()
    for start in range(0, len(lengths_N), window):
        chunk_N = lengths_N[start : start + window]
        num_rows += len(plan_rows(chunk_N, row_tokens))
        least_rows += -(-int(chunk_N.sum()) // row_tokens)
    elapsed_s = time.process_time() - started
    total = int(lengths_N.sum())
    return {
        "row_tokens": row_tokens,
        "fill": round(total / (num_rows * row_tokens), 5),
        "ceiling": round(total / (least_rows * row_tokens), 5),
        "cpu_seconds_per_million": round(elapsed_s / len(lengths_N) * 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="holds lengths_<name>.npy")
    parser.add_argument("--window", type=int, default=2048, help="documents planned at once")
    parser.add_argument("--most", type=int, default=32_768, help="longest row, tokens")
    parser.add_argument("--rows", type=int, nargs="*", default=[16_384], help="fixed row lengths")
    arguments = parser.parse_args()
    results = []
    for name, lengths_N in read_lengths(arguments.folder).items():
        picked = choose_row_tokens(lengths_N, arguments.most, arguments.window)
        for row_tokens in sorted({picked, *arguments.rows}):
            goal, at = GOALS.get(name, (None, None))
            results.append(
                {
                    "lengths": name,
                    "picked": "yes" if row_tokens == picked else "",
                    **measure(lengths_N, row_tokens, arguments.window),
                    "goal": goal if row_tokens == (at or picked) else None,
                }
            )
    show(results, conditions(window_documents=arguments.window))


if __name__ == "__main__":
    main()
