"""Resumed = uninterrupted, bit for bit, with dropout on: weights, moments and record."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import Run, make_corpus, metrics_of, run_ranks


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(("backend", "size"), [("single", 1), ("fsdp2", 2), ("zero3", 2)])
def test_resumed_is_uninterrupted(tmp_path: Path, corpus: str, backend: str, size: int) -> None:
    whole = Run(corpus, str(tmp_path / "whole"), backend=backend, steps=6, dropout=0.2)
    step_3 = tmp_path / "whole" / "step_00000003"
    resumed = Run(
        corpus,
        str(tmp_path / "resumed"),
        backend=backend,
        steps=6,
        dropout=0.2,
        continue_from=str(step_3),
    )
    run_ranks([whole, resumed], size)

    assert metrics_of(tmp_path / "resumed") == metrics_of(tmp_path / "whole")[3:]
    states = [tmp_path / kind / "step_00000006" / "state" for kind in ("whole", "resumed")]
    names = sorted(path.name for path in states[0].glob("*.safetensors"))
    assert len(names) == size, "one file a rank"
    for name in names:
        want, got = (load_file(state / name) for state in states)
        assert want.keys() == got.keys() and len(want) > 60
        for key in want:
            assert torch.equal(want[key], got[key]), key
    counts = [(state / "updates.json").read_text() for state in states]
    assert counts[0] == counts[1] == '{"num_updates": 6}\n'


def test_resumed_on_another_number_of_ranks(tmp_path: Path, corpus: str) -> None:
    run_ranks([Run(corpus, str(tmp_path / "whole"), steps=6)])
    step_3 = str(tmp_path / "whole" / "step_00000003")
    more = Run(corpus, str(tmp_path / "more"), backend="fsdp2", steps=6, continue_from=step_3)
    run_ranks([more], 3)
    want, got = (
        torch.tensor([row["loss"] for row in metrics_of(tmp_path / kind)[-3:]])
        for kind in ("whole", "more")
    )
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
