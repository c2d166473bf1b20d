"""train=image_head: the image tokens' rows of the head move, alike on every backend; nothing else.

Weight decay is made strong, so that a frozen row that it touched would show at once.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import NUM_CODES, Run, make_corpus, metrics_of, run_ranks

from mgpt.tokens.vocab import IMAGE_START
from mgpt.train.step_folder import export_weights

BACKENDS = {"single": 1, "fsdp2": 2, "zero3": 2}
ROWS = (IMAGE_START, IMAGE_START + NUM_CODES)
LR, DECAY = 1e-3, 5.0
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head_rows")
    corpus = make_corpus(folder / "corpus")
    for backend, size in BACKENDS.items():
        settings = {"backend": backend, "steps": 4, "save_every": 1, "lr": LR, "head_rows": ROWS}
        plain = Run(corpus, str(folder / backend), weight_decay=DECAY, **settings)
        undecayed = Run(corpus, str(folder / "undecayed" / backend), weight_decay=0.0, **settings)
        low = {"dtype": "bfloat16", "recompute": "full", "dropout": 0.1}
        runs = [plain, undecayed, Run(corpus, str(folder / "low" / backend), **settings, **low)]
        if backend != "single":
            step = folder / "single" / "step_00000002"
            there = str(folder / "continued" / backend)
            more = {"weight_decay": DECAY, "continue_from": str(step)}
            runs.append(Run(corpus, there, **settings, **more))
        run_ranks(runs, size)
    return folder


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return export_weights(folder / f"step_{step:08d}")


def initial(folder: Path) -> dict[str, torch.Tensor]:
    from mgpt.models.transformer import Transformer, TransformerConfig

    sizes = {"hidden": 64, "ffn": 96, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16}
    vocab_size = len(weights(folder / "single", 1)[HEAD])
    model = Transformer(TransformerConfig(vocab_size=vocab_size, **sizes))
    model.init_weights(0)
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", ["", "low"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_else_moves_by_a_bit(folder: Path, backend: str, kind: str) -> None:
    before, after = initial(folder), weights(folder / kind / backend, 4)
    assert before.keys() == after.keys()
    for name in before:
        if name != HEAD:
            assert torch.equal(before[name], after[name]), name
    frozen = torch.ones(len(before[HEAD]), dtype=torch.bool)
    frozen[slice(*ROWS)] = False
    assert torch.equal(before[HEAD][frozen], after[HEAD][frozen])
    moved = (before[HEAD] != after[HEAD])[~frozen].any(1)
    assert bool(moved.all())


@pytest.mark.parametrize("kind", ["", "undecayed"])
@pytest.mark.parametrize("backend", ["fsdp2", "zero3"])
def test_backends_agree(folder: Path, backend: str, kind: str) -> None:
    single, other = (weights(folder / kind / name, 3)[HEAD] for name in ("single", backend))
    assert float((single - other).abs().max()) < 0.05 * LR
    for one, two in zip(*(metrics_of(folder / kind / name) for name in ("single", backend))):
        assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_trained_rows_are_decayed(folder: Path, backend: str) -> None:
    """One step of AdamW with decay is the same step without it, less lr * decay * weight."""
    before = initial(folder)[HEAD]
    decayed, plain = (weights(folder / kind / backend, 1)[HEAD] for kind in ("", "undecayed"))
    shrunk = before[slice(*ROWS)] * LR * DECAY
    torch.testing.assert_close((plain - decayed)[slice(*ROWS)], shrunk, atol=1e-6, rtol=0)
    assert float(shrunk.abs().max()) > 1e-4


@pytest.mark.parametrize("backend", ["fsdp2", "zero3"])
def test_going_on_on_another_backend(folder: Path, backend: str) -> None:
    want, got = (weights(folder / name, 4)[HEAD] for name in ("single", f"continued/{backend}"))
    assert float((want - got).abs().max()) < 0.05 * LR


def test_the_loss_falls(folder: Path) -> None:
    losses = [row["loss"] for row in metrics_of(folder / "undecayed" / "single")]
    assert losses[-1] < losses[0]
