"""Peak memory and time of an import, from shards of a chosen size, in a process of its own.

    python tests/benchmarks/importing.py --gigabytes 1.5

Writes random weights as a transformers folder and as Meta's four shards, imports each, and reads
the process's own peak (VmHWM) less what planning had left. The bound of the design is the largest
shard plus 2 GB; what a whole load would take is shown beside it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from corpora import conditions, show

sys.path.append(str(Path(__file__).parents[1] / "models"))
from released_layouts import random_state, write_meta, write_transformers

from mgpt.models.transformer_config import TransformerConfig

WIDE = TransformerConfig(
    hidden=2048,
    ffn=5632,
    layers=1,
    heads=16,
    kv_heads=8,
    head_dim=128,
    vocab_size=65536,
    norm_placement="post",
    qk_norm_groups=4,
)
CHILD = """
import sys
from pathlib import Path
from mgpt.stages.released import plan_import

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

planned = plan_import(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
planned.write(Path(sys.argv[2]))
print(kilobytes("VmHWM") - before, kilobytes("VmHWM"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.5)
    arguments = parser.parse_args()
    layer = WIDE.hidden * (3 * WIDE.ffn + 2 * WIDE.hidden + 2 * WIDE.kv_heads * WIDE.head_dim)
    embeddings = 2 * WIDE.hidden * WIDE.vocab_size
    layers = max(1, round((arguments.gigabytes * 1e9 / 2 - embeddings) / layer))
    cfg = replace(WIDE, layers=layers)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        state = random_state(cfg, torch.bfloat16)
        whole = sum(t.numel() * 2 for t in state.values())
        write_transformers(root / "transformers", cfg, state, files=8)
        write_meta(root / "Meta, 4 shards", cfg, state)
        del state
        for source in ("transformers", "Meta, 4 shards"):
            files = [*(root / source).glob("*.safetensors"), *(root / source).glob("*.pth")]
            largest = max(path.stat().st_size for path in files)
            began = time.monotonic()
            command = [sys.executable, "-c", CHILD, str(root / source), str(root / "out")]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            took_s = time.monotonic() - began
            grown, peak = (int(word) * 1024 / 1e6 for word in run.stdout.split())
            row = {
                "layout": source,
                "weights_MB": round(whole / 1e6),
                "largest_shard_MB": round(largest / 1e6),
                "grown_by_MB": round(grown),
                "peak_MB": round(peak),
                "seconds": round(took_s),
            }
            rows.append(row)
    show(rows, conditions(torch=torch.__version__))


if __name__ == "__main__":
    main()
