"""The layout of training state: written, read, and refused where it does not fit."""

import json
from pathlib import Path

import pytest
import torch

from mgpt.errors import CheckpointError, MachineError
from mgpt.parallel.dist import World
from mgpt.parallel.snapshot import Snapshot
from mgpt.parallel.state import read_state, stored_weights, weights_checksum

TENSORS = {
    "model.norm.weight": torch.arange(8.0),
    "model.q_norm.weight": torch.randn(1, 16),
    "exp_avg.norm.weight": torch.full((8,), 0.5),
}


def empty() -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Snapshot.take(TENSORS.items(), 17, World(), copy=False).write(tmp_path / "state")
    return tmp_path / "state"


def test_what_is_written_is_read(folder: Path) -> None:
    got = empty()
    assert read_state(folder, got, World()).num_updates == 17
    for name, tensor in TENSORS.items():
        assert torch.equal(got[name], tensor)


def test_weights_alone(folder: Path) -> None:
    weights = {name: read() for name, _, _, read in stored_weights(folder)}
    assert weights.keys() == {"norm.weight", "q_norm.weight"}
    assert torch.equal(weights["norm.weight"], TENSORS["model.norm.weight"])


def test_no_pickle_is_written(folder: Path) -> None:
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / "updates.json").read_text()) == {"num_updates": 17}


def test_everything_that_does_not_fit_is_named(folder: Path) -> None:
    targets = empty()
    targets["model.norm.weight"] = torch.empty(9)
    targets["model.head.weight"] = torch.empty(3)
    targets["exp_avg.other.weight"] = targets.pop("exp_avg.norm.weight")
    with pytest.raises(CheckpointError) as error:
        read_state(folder, targets, World())
    message = str(error.value)
    assert "model.norm.weight is [8], the model has [9]" in message
    assert "model.head.weight is missing" in message
    assert "exp_avg.norm.weight is not in this model" in message


def test_a_file_cut_short(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="could not be read"):
        read_state(folder, empty(), World())


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(MachineError, match="cannot be written"):
        Snapshot.take(TENSORS.items(), 1, World(), copy=False).write(tmp_path / "state")


def test_a_checksum_does_not_depend_on_the_split() -> None:
    whole = weights_checksum([("a", torch.arange(10.0))], World())
    padded = weights_checksum([("a", torch.cat([torch.arange(10.0), torch.zeros(3)]))], World())
    assert whole == padded != weights_checksum([("a", torch.arange(10.0) + 1)], World())


def test_another_optimizers_state_is_named(folder: Path) -> None:
    targets = empty()
    targets["momentum.norm.weight"] = targets.pop("exp_avg.norm.weight")
    with pytest.raises(CheckpointError) as error:
        read_state(folder, targets, World())
    message = str(error.value)
    assert "holds the optimizer state exp_avg, this run's optimizer keeps momentum" in message
    assert "optim.kind" in message and "is missing" not in message


def test_averaged_weights_may_be_missing_or_too_many(folder: Path, tmp_path: Path) -> None:
    targets = {**empty(), "ema.norm.weight": torch.full((8,), 3.0)}
    assert read_state(folder, targets, World()).has_averages is False
    assert torch.equal(targets["ema.norm.weight"], torch.full((8,), 3.0)), "left as it was"

    averaged = {**TENSORS, "ema.norm.weight": torch.ones(8)}
    Snapshot.take(averaged.items(), 17, World(), copy=False).write(tmp_path / "averaged")
    assert read_state(tmp_path / "averaged", targets, World()).has_averages is True
    assert torch.equal(targets["ema.norm.weight"], torch.ones(8))
    assert read_state(tmp_path / "averaged", empty(), World()).num_updates == 17
