"""Peak memory and time of an export from a checkpoint, in a process of its own.

    python tests/benchmarks/exporting.py --gigabytes 2 --ranks 8

Writes the float32 weights of a checkpoint as so many ranks do, exports them, and reads the
process's own peak (VmHWM) less what planning had left.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from corpora import conditions, show
from importing import config

sys.path += [str(Path(__file__).parents[1] / room) for room in ("stages", "weights")]
from peak_memory import write_peak
from step_folders import write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--ranks", type=int, default=8)
    arguments = parser.parse_args()
    cfg = config(None, arguments.gigabytes / 2)  # which counts two bytes a weight
    with tempfile.TemporaryDirectory() as temporary:
        step = write_checkpoint(Path(temporary) / "run", cfg, arguments.ranks)
        files = list((step / "state").glob("*.safetensors"))
        began = time.monotonic()
        peak = write_peak("export", step, Path(temporary) / "out")
        row = {
            "weights_MB": round(sum(path.stat().st_size for path in files) / 1e6),
            "files": len(files),
            "largest_tensor_MB": round(4 * cfg.vocab_size * cfg.hidden / 1e6),
            "grown_by_MB": round(peak.grown_bytes / 1e6),
            "peak_MB": round(peak.whole_bytes / 1e6),
            "seconds": round(time.monotonic() - began),
        }
    show([row], conditions(torch=torch.__version__, layers=cfg.layers))


if __name__ == "__main__":
    main()
