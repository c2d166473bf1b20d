"""One training over 1, 2, 3, 4 and 2 ranks, and over all backends: the same rows, the same loss.

The long form (`-m long`) goes over all backends, and 500 steps over numbers of ranks.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from engine_runs import Attempt, elsewhere, outcome
from rank_runs import Run, make_corpus, metrics_of

from mgpt.data.loader import RowLoader, Rows, StepRows
from mgpt.parallel.backend import Backend
from mgpt.parallel.fsdp2 import Fsdp2Backend
from mgpt.parallel.single import SingleBackend
from mgpt.parallel.zero3 import Zero3Backend

Chain = list[tuple[str, int]]
FEW: Chain = [("fsdp2", 3), ("single", 1), ("fsdp2", 2)]
ALL: Chain = [("single", 1), ("fsdp2", 2), ("zero3", 3), ("fsdp2", 4), ("zero3", 2), ("single", 1)]
RANKS: Chain = [("single", 1), ("fsdp2", 2), ("fsdp2", 3), ("fsdp2", 4), ("fsdp2", 2)]
# What fp32 without dropout holds for ten steps after a change of ranks or backend, and for 500.
LOSS_BOUND, OF_STEPS, LATER_BOUND = 1e-6, 10, 2e-3


def hashes(rows: Rows) -> list[str | None]:
    """Of each row that holds something to train."""
    return [
        hashlib.sha256(b"".join(row.tobytes() for row in parts)).hexdigest()
        if (parts[1] >= 0).any()
        else None
        for parts in zip(rows.ids, rows.labels, rows.positions, strict=True)
    ]


def recording(folder: Path) -> None:
    """Leaves what each rank was given, and the weights that were saved and loaded."""

    def note(name: str, entry: Any) -> None:
        with open(folder / name, "a") as file:
            file.write(json.dumps(entry) + "\n")

    read_step = RowLoader.read_step

    def read(self: RowLoader, step: int, rank: int, world: int, micro_rows: int) -> StepRows:
        made = read_step(self, step, rank, world, micro_rows)
        given = [row for micro in made.micro for row in hashes(micro)]
        note("rows.jsonl", [[step, rank + world * place, row] for place, row in enumerate(given)])
        return made

    RowLoader.read_step = read  # type: ignore[method-assign]
    for backend in (SingleBackend, Fsdp2Backend, Zero3Backend):
        for name in ("load", "snapshot"):
            if name in vars(backend):
                setattr(backend, name, _weighed(getattr(backend, name), name, note))


def _weighed(real: Callable[..., Any], name: str, note: Callable[..., None]) -> Callable[..., Any]:
    def call(self: Backend, *args: Any, **options: Any) -> Any:
        made = real(self, *args, **options)
        checksum = self.weights_checksum()
        if self.dp_rank == 0:
            note(f"{name}.jsonl", checksum)
        return made

    return call


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(folder: Path) -> dict[tuple[int, int], str]:
    """(step, place in the step) → the row."""
    found: dict[tuple[int, int], str] = {}
    for line in read_lines(folder / "rows.jsonl"):
        for step, place, row in line:
            if row is not None:
                assert (step, place) not in found, "given twice"
                found[step, place] = row
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("chain_of", "steps_a_leg", "kind"),
    [
        (FEW, 3, "adamw"),
        pytest.param(ALL, 3, "adamw", marks=pytest.mark.long),
        pytest.param(RANKS, 100, "adamw", marks=pytest.mark.long),
        pytest.param(RANKS, 3, "muon", marks=pytest.mark.long),
    ],
)
def test_one_training_on_many_numbers_of_ranks(
    tmp_path: Path, chain_of: Chain, steps_a_leg: int, kind: str
) -> None:
    corpus, steps = make_corpus(tmp_path / "corpus"), steps_a_leg * len(chain_of)
    whole = Run(
        corpus, str(tmp_path / "whole"), steps=steps, save_every=steps, optim={"kind": kind}
    )
    with Attempt(whole, 1, functools.partial(recording, tmp_path / "whole")) as attempt:
        assert attempt.wait() == [0], attempt.logs()
    chain = elsewhere(whole, tmp_path / "chain")
    for backend, ranks in chain_of:
        leg = elsewhere(chain, tmp_path / "chain", backend=backend, signal_at=steps_a_leg)
        with Attempt(leg, ranks, functools.partial(recording, tmp_path / "chain")) as attempt:
            assert attempt.wait(900.0) == [0] * ranks, attempt.logs()
    assert outcome(chain)["step"] == steps

    assert rows_of(tmp_path / "chain") == rows_of(tmp_path / "whole")
    saved, loaded = (
        read_lines(tmp_path / "chain" / f"{name}.jsonl") for name in ("snapshot", "load")
    )
    assert loaded == saved[:-1] and len(set(saved)) == len(chain_of)
    want, got = (
        torch.tensor([row["loss"] for row in metrics_of(tmp_path / name)], dtype=torch.float64)
        for name in ("whole", "chain")
    )
    drift = (got - want).abs()
    within = steps_a_leg + OF_STEPS
    soon, ever = float(drift[:within].max()), float(drift.max())
    print(json.dumps({"drill": "elastic", "steps": steps, "drift": [soon, ever]}))
    assert soon <= LOSS_BOUND and ever <= LATER_BOUND
