"""How full packed rows are and how fast rows are planned, as a table and as JSON.

    python tests/benchmarks/packing.py path/to/lengths --window 2048 --most 32768

The folder holds `lengths_<name>.npy` (tokens of each document). Each set is packed at the row
length that `choose_row_tokens` picks and at the fixed ones. Times are CPU seconds of one process
on the machine at hand; `ceiling` is what rounding each window up to whole rows allows.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from mgpt.data.packing import choose_row_tokens, plan_rows


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
    parser.add_argument("folder", type=Path, help="holds lengths_<name>.npy")
    parser.add_argument("--window", type=int, default=2048, help="documents planned at once")
    parser.add_argument("--most", type=int, default=32_768, help="longest row, tokens")
    parser.add_argument("--rows", type=int, nargs="*", default=[16_384], help="fixed row lengths")
    arguments = parser.parse_args()
    results = []
    for path in sorted(arguments.folder.glob("lengths_*.npy")):
        lengths_N = np.load(path, allow_pickle=False).astype(np.int64)
        picked = choose_row_tokens(lengths_N, arguments.most, arguments.window)
        for row_tokens in sorted({picked, *arguments.rows}):
            results.append(
                {
                    "lengths": path.stem.removeprefix("lengths_"),
                    "picked": row_tokens == picked,
                    **measure(lengths_N, row_tokens, arguments.window),
                }
            )
    print("| lengths | row tokens | picked | filled | ceiling | CPU s per million documents |")
    print("|---|---|---|---|---|---|")
    for result in results:
        picked = "yes" if result["picked"] else ""
        print(
            f"| {result['lengths']} | {result['row_tokens']:,} | {picked}"
            f" | {result['fill']:.2%} | {result['ceiling']:.2%}"
            f" | {result['cpu_seconds_per_million']:.1f} |"
        )
    conditions = {
        "window_documents": arguments.window,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps({"conditions": conditions, "results": results}))


if __name__ == "__main__":
    main()
