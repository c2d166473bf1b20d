"""Every measure of the engine that needs a GPU, in one go: a table last, and JSON beside it.

    python tests/benchmarks/gpu.py --output gpu.json

Made for one H200-class card and ten minutes: after `--minutes` no further measure begins. It needs
torch with its Triton, numpy, safetensors and Pillow beside this repository, and no network. A
measure that fails leaves its error in the table and the others go on. Without a GPU it says so and
ends with 2. `--small` runs the same code in toy sizes on any device, to see that it runs: its
figures mean nothing.

Each figure has its goal where there is one and its ceiling: what the card's data sheet, the
measured matrix product or the gradients' own size would allow. MFU counts no recomputed operation:
*causal* takes attention as 6 x layers x width x document length a token, *full* as twice that.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import gpu_kernels
import gpu_pictures
import gpu_training
import torch
from corpora import conditions, table
from gpu_setting import Figure, Measure, Setting, find_setting

MEASURES: dict[str, Measure] = {
    "matmul": gpu_kernels.matmul,
    "loss": gpu_kernels.loss,
    "attention": gpu_kernels.attention,
    "graphs": gpu_training.graphs,
    "training": gpu_training.training,
    "saving": gpu_training.saving,
    "pictures": gpu_pictures.speed,
    "codes": gpu_pictures.agreement,
}


def run(names: list[str], setting: Setting, minutes: float) -> list[Figure]:
    """All figures of the named measures, those of failed ones with the error as their note."""
    began = time.monotonic()
    figures: list[Figure] = []
    for name in names:
        cases = MEASURES[name](setting)
        for case, figure_of in cases:
            if time.monotonic() - began > 60 * minutes:
                figures.append(Figure(name, case, note="not begun: out of time"))
                continue
            print(f"{time.monotonic() - began:5.0f} s  {name}: {case}", flush=True)
            try:
                figures += [figure.of(name, case) for figure in figure_of()]
            except Exception as error:  # an error is a result here, and others are still to come
                note = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                figures.append(Figure(name, case, note=note, failed=True))
            gc.collect()
            if setting.on_gpu:
                torch.cuda.empty_cache()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--small", action="store_true", help="toy sizes, on any device")
    given = parser.parse_args()
    if not (torch.cuda.is_available() or given.small):
        print("no GPU here: nothing was measured", file=sys.stderr)
        sys.exit(2)
    setting = find_setting(given.small)
    figures = run(given.only, setting, given.minutes)
    facts = conditions(**setting.facts(), small=given.small)
    given.output.write_text(
        json.dumps({"conditions": facts, "results": [one._asdict() for one in figures]}, indent=1)
    )
    print(json.dumps(facts))
    print(*table([figure.row() for figure in figures]), sep="\n")
    sys.exit(any(figure.failed for figure in figures))


if __name__ == "__main__":
    main()
