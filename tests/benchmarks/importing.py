"""Peak memory and time of an import, from shards of a chosen size, in a process of its own.

    python tests/benchmarks/importing.py --gigabytes 1.5
    python tests/benchmarks/importing.py --size 34b     # its tensors, one layer of them: 3.5 GB

Writes weights as a transformers folder and as Meta's four shards, imports each, and reads the
process's own peak (VmHWM) less what planning had left. The bound of the design is the largest shard
plus 2 GB; what a whole load would take is shown beside it.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from corpora import conditions, show

sys.path.append(str(Path(__file__).parents[1] / "weights"))
from peak_memory import write_peak
from released_layouts import repeated_state, write_meta, write_transformers

from mgpt.models.sizes import SIZES
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


def config(size: str | None, gigabytes: float) -> TransformerConfig:
    """One layer of a named size, or as many of `WIDE` as the weights should have gigabytes."""
    if size is not None:
        return replace(SIZES[size], layers=1)
    layer = WIDE.hidden * (3 * WIDE.ffn + 2 * WIDE.hidden + 2 * WIDE.kv_heads * WIDE.head_dim)
    embeddings = 2 * WIDE.hidden * WIDE.vocab_size
    return replace(WIDE, layers=max(1, round((gigabytes * 1e9 / 2 - embeddings) / layer)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--size", choices=("7b", "34b"))
    arguments = parser.parse_args()
    cfg = config(arguments.size, arguments.gigabytes)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        state = repeated_state(cfg)
        whole = sum(t.numel() * 2 for t in state.values())
        write_transformers(root / "transformers", cfg, state, files=8)
        write_meta(root / "Meta", cfg, state, shards=cfg.qk_norm_groups)
        del state
        for source in ("transformers", "Meta"):
            files = [*(root / source).glob("*.safetensors"), *(root / source).glob("*.pth")]
            began = time.monotonic()
            peak = write_peak("import", root / source, root / "out")
            row = {
                "layout": f"{source}, {len(files)} file(s)",
                "weights_MB": round(whole / 1e6),
                "largest_file_MB": round(max(path.stat().st_size for path in files) / 1e6),
                "grown_by_MB": round(peak.grown_bytes / 1e6),
                "peak_MB": round(peak.whole_bytes / 1e6),
                "seconds": round(time.monotonic() - began),
            }
            rows.append(row)
    show(rows, conditions(torch=torch.__version__))


if __name__ == "__main__":
    main()
