"""Useful tokens a second of training, beside a plain transformers loop of the same model.

    python tests/benchmarks/throughput.py

Both train transformers' Chameleon in bf16 on the same documents, step by step in turn. *Plain* is
`ChameleonForConditionalGeneration` under autocast: documents padded to the longest of the batch,
full logits, its masking of image logits switched off by a vocabulary without images. It is given
no attention mask, as right padding under a causal mask needs none and a mask would slow it down.
*Ours* is the single backend with packed rows and z-loss, which the other has not. AdamW is in both.
A useful token is one of a document, not of padding; the prompt of each is not trained.

Each side has a process of its own, and only one works at a time. Lengths are those of real
documents (tests/vectors/lengths.npz), divided, so that the plain loop's logits fit into memory.
"""

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers
from corpora import conditions, show
from real_lengths import IGNORED, Document, draw_documents, pack, real_lengths
from torch import Tensor

from mgpt.models.transformer import Transformer, TransformerConfig, sharding_plan
from mgpt.optim.config import OptimConfig
from mgpt.parallel.backend import ParallelConfig, build_backend
from mgpt.parallel.dist import World

GOALS = {"mixed": 2.0, "equal": 1.3}
Step = Callable[[list[Document]], float]


def our_step(cfg: TransformerConfig, threads: int, row_tokens: int) -> Step:
    """Forward, backward and update of the single backend in bf16."""
    backend = build_backend(
        ParallelConfig(dtype="bfloat16", threads=threads),
        lambda: Transformer(cfg),
        OptimConfig(),
        World(),
        z_loss=1e-5,
        seed=0,
        sharding_plan=sharding_plan,
    )

    def step(batch: list[Document]) -> float:
        rows = pack(batch, row_tokens)
        trained = int((rows.labels_BT != IGNORED).sum())
        sums = backend.forward_backward(rows, 1.0 / trained, last=True)
        backend.step(1e-5, 4.0)
        return float(sums.nll_sum) / trained

    return step


def plain_model(cfg: TransformerConfig) -> transformers.ChameleonForConditionalGeneration:
    """transformers' model with our initial weights and the smallest image encoder it can have."""
    small_vq = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
    small_vq |= {"embed_dim": 2, "num_embeddings": 2, "latent_channels": 2}
    model = transformers.ChameleonForConditionalGeneration(
        transformers.ChameleonConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden,
            intermediate_size=cfg.ffn,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            vocabulary_map={"<image>": 0},
            vq_config=small_vq,
        )
    )
    ours = Transformer(cfg)
    ours.init_weights(0)
    weights = ours.state_dict()
    for name, tensor in weights.items():
        if "q_norm" in name or "k_norm" in name:
            heads = cfg.heads if "q_norm" in name else cfg.kv_heads
            weights[name] = tensor.repeat_interleave(heads // len(tensor), dim=0)
    model.load_state_dict(weights, strict=False)
    model.model.vqmodel = None
    return model.train()


def plain_step(cfg: TransformerConfig) -> Step:
    """The same update by a loop as one writes it around transformers' model."""
    model = plain_model(cfg)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.95), fused=True)

    def step(batch: list[Document]) -> float:
        ids_BT, labels_BT = (
            torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=padding)
            for column, padding in zip(zip(*batch, strict=True), (1, IGNORED), strict=True)
        )
        with torch.autocast("cpu", torch.bfloat16):
            # Its labels are the ids themselves; it shifts them.
            loss = model(ids_BT, labels=_unshifted(labels_BT), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 4.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def _unshifted(labels_BT: Tensor) -> Tensor:
    return torch.nn.functional.pad(labels_BT, (1, 0), value=IGNORED)[:, :-1]


def cpu_seconds() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def model_config(given: argparse.Namespace) -> TransformerConfig:
    """Chameleon's proportions at another width."""
    heads = max(1, given.hidden // 128)
    return TransformerConfig(
        hidden=given.hidden,
        ffn=-(-given.hidden * 11008 // 4096 // 64) * 64,
        layers=given.layers,
        heads=heads,
        kv_heads=heads,
        head_dim=given.hidden // heads,
        vocab_size=given.vocab_size,
    )


def lengths_of(given: argparse.Namespace) -> dict[str, list[int]]:
    """Both lists of lengths, of as many tokens."""
    mixed = real_lengths(given.documents, shorter=given.shorter)
    return {"mixed": mixed, "equal": [sum(mixed) // len(mixed)] * len(mixed)}


def _batches(documents: list[Any], of_a_batch: int) -> list[list[Any]]:
    return [documents[start : start + of_a_batch] for start in range(0, len(documents), of_a_batch)]


def serve(side: str, given: argparse.Namespace, requests: Connection) -> None:
    """A process of its own for each side: takes (list, batch) and sends what the step cost."""
    torch.set_num_threads(given.threads)
    cfg = model_config(given)
    step = our_step(cfg, given.threads, given.row_tokens) if side == "ours" else plain_step(cfg)
    batches = {
        name: _batches(draw_documents(lengths, cfg.vocab_size), given.batch_documents)
        for name, lengths in lengths_of(given).items()
    }
    requests.send("ready")
    while (asked := requests.recv()) is not None:
        name, index = asked
        began, used = time.perf_counter(), cpu_seconds()
        loss = step(batches[name][index])
        cost = (time.perf_counter() - began, cpu_seconds() - used)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        requests.send((*cost, loss, peak_mb))


def compare(given: argparse.Namespace, name: str, sides: dict[str, Connection]) -> dict[str, Any]:
    """One list of documents, step by step in turn: the sums over batches of each one's best."""
    lengths = lengths_of(given)[name]
    batches = _batches(lengths, given.batch_documents)
    best = {side: [(math.inf, math.inf)] * len(batches) for side in sides}
    losses, peaks = {}, {}
    for repeat in range(given.repeats + 1):
        for index in range(len(batches)):
            for side, requests in sides.items():
                requests.send((name, index))
                clock_s, cpu_s, loss, peaks[side] = requests.recv()
                losses.setdefault(side, loss)
                if repeat:  # the first round warms up
                    then = best[side][index]
                    best[side][index] = (min(then[0], clock_s), min(then[1], cpu_s))
    clock, cpu = (
        {side: sum(cost[which] for cost in costs) for side, costs in best.items()}
        for which in (0, 1)
    )
    tokens = sum(lengths)
    return {
        "lengths": name,
        "tokens": tokens,
        "padded_to": sum(len(batch) * max(batch) for batch in batches),
        "ours_tokens_a_second": round(tokens / clock["ours"]),
        "plain_tokens_a_second": round(tokens / clock["plain"]),
        "ratio": round(clock["plain"] / clock["ours"], 2),
        "ratio_of_cpu_seconds": round(cpu["plain"] / cpu["ours"], 2),
        "goal": GOALS[name],
        "first_losses": " / ".join(f"{losses[side]:.4f}" for side in sides),
        "peak_mb": " / ".join(f"{peaks[side]:.0f}" for side in sides),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--batch-documents", type=int, default=8)
    parser.add_argument("--shorter", type=int, default=8, help="divisor of the real lengths")
    parser.add_argument("--row-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    sides, workers = {}, []
    for side in ("ours", "plain"):
        sides[side], theirs = processes.Pipe()
        worker = processes.Process(target=serve, args=(side, given, theirs), daemon=True)
        worker.start()
        theirs.close()
        workers.append(worker)
        sides[side].recv()
    rows = [compare(given, name, sides) for name in GOALS]
    for requests, worker in zip(sides.values(), workers, strict=True):
        requests.send(None)
        worker.join()
    show(
        rows,
        conditions(
            **vars(given),
            torch=torch.__version__,
            transformers=transformers.__version__,
            cpu=torch.backends.cpu.get_cpu_capability(),
        ),
    )


if __name__ == "__main__":
    main()
