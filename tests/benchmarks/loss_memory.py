"""Memory of loss and z-loss: ours in chunks, beside cross-entropy over all logits at once.

    python tests/benchmarks/loss_memory.py

Two measures. *Counted* are the bytes of all tensors alive at the worst moment of forward and
backward, from shapes alone (the meta device, where ours takes the sizes it has on a GPU); hidden
states and weights are there before and not counted. *Process* is the growth of a process that does
it on this CPU in bf16. Any path ends with the gradients of hidden states and weights: they are the
floor, the plain path over it is the largest ratio there can be, and a ratio is given with and
without them. Gradients are compared with float64 on fewer tokens, in as many chunks as there ever
are, and both with a plain path in the same type.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from corpora import conditions, show
from torch import Tensor

from mgpt.models import head_loss
from mgpt.models.head_loss import HeadLoss
from mgpt.plan.live_bytes import LiveBytes

GOAL = 6.0
Z_LOSS = 1e-5


def ours(hidden_ND: Tensor, head: HeadLoss, labels_N: Tensor) -> None:
    """Forward and backward in chunks."""
    head.trained_sums(hidden_ND, labels_N, Z_LOSS)[0].backward()


def plain(hidden_ND: Tensor, head: HeadLoss, labels_N: Tensor) -> None:
    """The same sums from fp32 logits of all tokens."""
    logits_NV = (hidden_ND @ head.weight.T).to(torch.promote_types(hidden_ND.dtype, torch.float32))
    nll = F.cross_entropy(logits_NV, labels_N, reduction="sum")
    (nll + Z_LOSS * logits_NV.logsumexp(-1).square().sum()).backward()


PATHS = {"ours": ours, "plain": plain}


def make(
    tokens: int, hidden: int, vocab_size: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, HeadLoss, Tensor]:
    """Hidden states of the size a norm leaves, a head as it is initialised, and labels."""
    with torch.device(device):
        head = HeadLoss(hidden, vocab_size).to(dtype)
        hidden_ND = torch.empty(tokens, hidden, dtype=dtype)
        labels_N = torch.empty(tokens, dtype=torch.int64)
    if device != "meta":
        generator = torch.Generator(device).manual_seed(0)
        torch.nn.init.normal_(head.weight, std=hidden**-0.5, generator=generator)
        hidden_ND.normal_(generator=generator)
        labels_N.random_(0, vocab_size, generator=generator)
    return hidden_ND.requires_grad_(), head, labels_N


def counted_mb(path: str, tokens: int, hidden: int, vocab_size: int, dtype: torch.dtype) -> float:
    """The most bytes alive at once beside the inputs, in 1e6, from shapes alone."""
    given = make(tokens, hidden, vocab_size, dtype, "meta")
    with LiveBytes([given[0], given[1].weight, given[2]]) as counter:
        PATHS[path](*given)
    return counter.peak / 1e6


def grown_mb(path: str, tokens: int, hidden: int, vocab_size: int) -> float:
    """What a fresh process grows by when it does this on the CPU in bf16."""
    command = [sys.executable, __file__, "--grow", path]
    command += [f"--{name}={value}" for name, value in (("tokens", tokens), ("hidden", hidden))]
    command += [f"--vocab-size={vocab_size}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    return float(json.loads(done.stdout.splitlines()[-1]))


def grow(path: str, tokens: int, hidden: int, vocab_size: int) -> None:
    """In a process of its own: prints by how many megabytes its peak rises."""
    few = make(8, hidden, 64, torch.bfloat16, "cpu")
    PATHS[path](*few)
    given = make(tokens, hidden, vocab_size, torch.bfloat16, "cpu")
    before = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    PATHS[path](*given)
    print(_status_mb("VmHWM") - before)


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024 / 1e6


def gradient_errors(
    tokens: int, hidden: int, vocab_size: int, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, float]:
    """Relative distance of each path's gradients from float64 ones of the same numbers."""
    given = make(tokens, hidden, vocab_size, dtype, device)
    exact = HeadLoss(hidden, vocab_size).to(device).double()
    with torch.no_grad():
        exact.weight.copy_(given[1].weight)
    truth = given[0].detach().double().requires_grad_()
    plain(truth, exact, given[2])
    errors = {}
    for name, path in PATHS.items():
        given[0].grad = given[1].weight.grad = None
        with mock.patch.dict(head_loss._CHUNK_LOGITS, cpu=1, cuda=1):
            path(*given)
        pairs = ((given[0].grad, truth.grad), (given[1].weight.grad, exact.weight.grad))
        errors[name] = max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
    return errors


def rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a width and type."""
    table = []
    for hidden in given.widths:
        for dtype in (torch.bfloat16, torch.float32):
            size = (given.tokens, hidden, given.vocab_size)
            mb = {name: counted_mb(name, *size, dtype) for name in PATHS}
            floor = (given.tokens + given.vocab_size) * hidden * dtype.itemsize / 1e6
            errors = gradient_errors(given.checked, hidden, given.checked_vocabulary, dtype)
            grown = {name: grown_mb(name, *size) for name in PATHS if dtype == torch.bfloat16}
            table.append(
                {
                    "width": hidden,
                    "type": str(dtype).removeprefix("torch."),
                    "plain_mb": round(mb["plain"]),
                    "ours_mb": round(mb["ours"]),
                    "gradients_mb": round(floor),
                    "ratio": round(mb["plain"] / mb["ours"], 1),
                    "largest_ratio": round(mb["plain"] / floor, 1),
                    "ratio_beyond_gradients": round(
                        (mb["plain"] - floor) / (mb["ours"] - floor), 1
                    ),
                    "goal": GOAL,
                    "process_plain_mb": round(grown["plain"]) if grown else None,
                    "process_ours_mb": round(grown["ours"]) if grown else None,
                    "gradient_error": f"{errors['ours']:.1e}",
                    "plain_gradient_error": f"{errors['plain']:.1e}",
                }
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--checked", type=int, default=96, help="tokens compared with float64")
    parser.add_argument("--checked-vocabulary", type=int, default=8192)
    parser.add_argument("--hidden", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--grow", choices=PATHS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.grow:
        grow(given.grow, given.tokens, given.hidden, given.vocab_size)
        return
    show(rows(given), conditions(torch=torch.__version__, tokens=given.tokens))


if __name__ == "__main__":
    main()
