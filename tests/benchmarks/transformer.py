"""Speed of the transformer on this machine: training rows, and pictures decoded with guidance.

    OMP_NUM_THREADS=1 python tests/benchmarks/transformer.py --dtype bfloat16

Prints one JSON object with its conditions. Training is forward and backward of one micro-batch of
random ids at the quickstart size, in packed rows of documents of 80 to 125 tokens with three
quarters of the tokens trained; neither optimiser nor data are in it. Decoding is in fp32: pictures
of 8 x 8 latents after prompts of about 20 tokens, both branches of guidance counted as one picture.
"""

import argparse
import json
import platform
import random
import time
from dataclasses import replace
from pathlib import Path

import torch

from mgpt.infer.engine import Engine
from mgpt.infer.sampling import Guidance, SamplingConfig
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer
from mgpt.tokens.vocab import scratch_vocabulary


class _NoText:
    """512 pieces that stand for nothing: only their number counts here."""

    FILE = "none"
    num_pieces = 512
    fingerprint = "none"
    controls: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, pieces: list[int]) -> str:
        return ""

    def save(self, folder: Path) -> None:
        pass


def training_tokens_per_s(dtype: torch.dtype, rows: int, row_tokens: int, repeats: int) -> float:
    """Tokens a second of forward and backward; the best of `repeats`."""
    model = Transformer(SIZES["quickstart"])
    model.init_weights(0)
    model.to(dtype).train()
    drawn = random.Random(0)
    positions: list[list[int]] = []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < row_tokens:
            row += range(min(drawn.randint(80, 125), row_tokens - len(row)))
        positions.append(row)
    positions_BT = torch.tensor(positions)
    ids_BT = torch.randint(2048, positions_BT.shape)
    labels_BT = ids_BT.roll(-1, 1)
    labels_BT[torch.rand(labels_BT.shape) < 0.25] = -100
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        sums = model.training_sums(ids_BT, positions_BT, labels_BT, z_loss=1e-5)
        (sums.loss_sum / labels_BT.numel()).backward()
        best = min(best, time.perf_counter() - start)
    return positions_BT.numel() / best


def pictures_per_s(pictures: int) -> float:
    """Pictures a second of one batched, guided call."""
    vocab = scratch_vocabulary(_NoText(), num_codes=1024, max_grids=16)
    model = Transformer(replace(SIZES["quickstart"], vocab_size=vocab.size))
    model.init_weights(0)
    drawn = random.Random(0)
    prompts = [
        [vocab.bos, *drawn.choices(range(vocab.text_start, vocab.size), k=drawn.randint(10, 30))]
        for _ in range(pictures)
    ]
    cfg = SamplingConfig(modality="image", guidance=Guidance(3.0))
    keys = [str(index) for index in range(pictures)]
    start = time.perf_counter()
    Engine(model, vocab).generate(prompts, cfg, keys, [(4, 4)] * pictures)
    return pictures / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, default=4, help="rows of the micro-batch")
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    trained = training_tokens_per_s(
        getattr(torch, args.dtype), args.rows, args.row_tokens, args.repeats
    )
    figures = {
        "training_tokens_per_s": round(trained),
        "training_dtype": args.dtype,
        "rows": args.rows,
        "row_tokens": args.row_tokens,
        "pictures_per_s": round(pictures_per_s(args.pictures), 2),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
