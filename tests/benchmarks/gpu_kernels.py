"""GPU measures of single operations: the matrix product, the loss, attention over documents."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from gpu_setting import Case, Figure, Setting
from loss_memory import GOAL, PATHS, gradient_errors, make
from real_lengths import draw_documents, pack, row_lengths
from torch import Tensor

from mgpt.models.attention import Documents, attend_causal

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def matmul(setting: Setting) -> Iterator[Case]:
    """What the card does at its best: the measured ceiling of everything else."""

    def figures(dtype: torch.dtype) -> Iterable[Figure]:
        side = 128 if setting.small else 8192
        a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        tflops = 2 * side**3 / setting.seconds(lambda: a @ b, repeats=20) / 1e12
        sheet = setting.sheet
        of_sheet = {torch.bfloat16: "bf16_tflops", torch.float32: "fp32_tflops"}[dtype]
        yield Figure.new("speed", tflops, "TFLOP/s", ceiling=getattr(sheet, of_sheet, None))

    for dtype in (torch.bfloat16, torch.float32):
        yield str(dtype).removeprefix("torch."), partial(figures, dtype)


def loss(setting: Setting) -> Iterator[Case]:
    """Loss, z-loss and their gradients in bf16 at 7B's width."""

    def figures(tokens: int) -> Iterable[Figure]:
        hidden, vocab_size = (64, 512) if setting.small else (4096, 65_536)
        given = make(tokens, hidden, vocab_size, torch.bfloat16, str(setting.device))
        floor_mb = (tokens + vocab_size) * hidden * 2 / 1e6
        seconds, peaks = {}, {}
        for name, path in PATHS.items():

            def run(path: Callable[..., None] = path) -> None:
                given[0].grad = given[1].weight.grad = None
                path(*given)

            if name == "plain" and tokens > 8192:
                continue  # its logits alone would take a tenth of the card
            seconds[name] = setting.seconds(run)
            given[0].grad = given[1].weight.grad = None
            peaks[name] = setting.peak_mb(run)
            tflops = 6 * tokens * hidden * vocab_size / seconds[name] / 1e12
            yield Figure.new(f"{name}, speed", tflops, "TFLOP/s", ceiling=setting.bf16_tflops)
            if peaks[name] is not None:
                yield Figure.new(f"{name}, memory", peaks[name], "MB", ceiling=floor_mb)
        if len(peaks) == 2 and None not in peaks.values():
            ratio = peaks["plain"] / peaks["ours"]
            yield Figure.new("plain over ours, memory", ratio, "x", goal=GOAL)
            beyond = (peaks["plain"] - floor_mb) / (peaks["ours"] - floor_mb)
            yield Figure.new("the same beyond gradients", beyond, "x", goal=GOAL)

    def errors() -> Iterable[Figure]:
        size = (64, 64, 512) if setting.small else (512, 1024, 65_536)
        for dtype in (torch.bfloat16, torch.float32):
            found = gradient_errors(*size, dtype, str(setting.device))
            yield Figure.new(
                f"gradients, {str(dtype).removeprefix('torch.')}",
                found["ours"],
                "of float64's",
                ceiling=found["plain"],
                note="ceiling: a plain path's error",
            )

    for tokens in (64, 96) if setting.small else (4096, 16_384):
        yield f"{tokens} tokens", partial(figures, tokens)
    yield "gradients", errors


def attention(setting: Setting) -> Iterator[Case]:
    """A packed row at 7B's heads, forward and backward in bf16, by each way there is."""
    row_tokens, heads, head_dim = (256, 2, 16) if setting.small else (16_384, 32, 128)
    documents_of_row = row_lengths(row_tokens, "thirds", shorter=32 if setting.small else 1)
    positions_BT = pack(draw_documents(documents_of_row, 512), row_tokens).positions_BT
    starts = (positions_BT[0] == 0).nonzero().flatten().tolist()
    lengths = [end - start for start, end in itertools.pairwise([*starts, row_tokens])]
    positions_BT = positions_BT.to(setting.device)
    products = 3.5 * 2 * heads * head_dim * sum(length**2 for length in lengths)

    def tensors(dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator(setting.device).manual_seed(0)
        shape = (1, row_tokens, heads, head_dim)
        drawn = [torch.randn(shape, device=setting.device, generator=generator) for _ in range(4)]
        return [t.to(dtype).requires_grad_() for t in drawn]

    def passes(attend: Attend, dtype: torch.dtype) -> list[Tensor]:
        q, k, v, grad = tensors(dtype)
        out = attend(q, k, v)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.detach())]

    def figures(attend: Attend) -> Iterable[Figure]:
        q, k, v, grad = tensors(torch.bfloat16)

        def run() -> None:
            torch.autograd.grad(attend(q, k, v), (q, k, v), grad.detach())

        tflops = products / setting.seconds(run) / 1e12
        yield Figure.new("speed", tflops, "TFLOP/s", ceiling=setting.bf16_tflops)
        exact = passes(partial(by_document, lengths), torch.float32)
        found = passes(attend, torch.bfloat16)
        errors = [
            float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)
        ]
        yield Figure.new("result and gradients", max(errors), "of float32's, at worst")

    documents = Documents.from_positions(positions_BT)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if documents.order_N is None:
            return documents.attend(q, k, v)
        gathered = (t[:, documents.order_N] for t in (q, k, v))
        return documents.scatter(documents.attend(*gathered), (1, row_tokens))

    def making() -> Iterable[Figure]:
        seconds = setting.seconds(lambda: Documents.from_positions(positions_BT))
        yield Figure.new("once a batch", 1e3 * seconds, "ms")

    yield "ours", partial(figures, ours)
    yield "our mask", making
    yield "a call a document", partial(figures, partial(by_document, lengths))
    if setting.on_gpu:
        yield "PyTorch's varlen_attn", partial(figures, partial(by_varlen, lengths))


def by_document(lengths: list[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each document's attention by a call of its own."""
    parts = zip(*(t.split(lengths, 1) for t in (q, k, v)), strict=True)
    if q.is_cuda or q.dtype == torch.float32:
        return torch.cat([_causal(*part) for part in parts], 1)
    return torch.cat([attend_causal(*part) for part in parts], 1)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    swapped = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(*swapped, is_causal=True).transpose(1, 2)


def by_varlen(lengths: list[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All documents in one call of FlashAttention's form for them."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], device=q.device).cumsum(0).int()
    longest = max(lengths)
    out = varlen_attn(q[0], k[0], v[0], ends, ends, longest, longest, window_size=(-1, 0))
    return out[None]
