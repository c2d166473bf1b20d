"""Averaged weights are taken where a checkpoint has some, said once; a field takes the raw ones."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from step_folders import values, write_checkpoint

from mgpt.errors import CheckpointError
from mgpt.lifecycle.weights import MODEL, Weights
from mgpt.models.tensor_files import lazy
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.stages.transformers_export import plan_export

CFG = TransformerConfig(hidden=16, ffn=24, layers=1, heads=2, kv_heads=1, head_dim=8, vocab_size=50)
NAME = "lm_head.weight"


def average(name: str, shape: torch.Size) -> Tensor:
    return values(name, shape) + 0.5


def head(weights: Weights) -> Tensor:
    return next(tensor.read() for tensor in weights.stored() if tensor.name == NAME)


@pytest.fixture
def step(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run", CFG, 2, average=average)


def test_a_checkpoints_averages_are_taken_and_said(step: Path) -> None:
    for given in (step, step.parent):
        weights = Weights.find(given)
        assert len(weights.stored()) == len(Transformer(CFG).state_dict())
        assert torch.equal(head(weights), average(NAME, torch.Size((50, 16))))
        (note,) = weights.notes()
        assert str(step) in note and "averaged=false" in note


def test_raw_weights_on_request(step: Path) -> None:
    raw = Weights.find(step.parent, averaged=False)
    assert torch.equal(head(raw), values(NAME, torch.Size((50, 16)))) and raw.notes() == []


def test_a_checkpoint_without_averages_gives_its_weights(tmp_path: Path) -> None:
    weights = Weights.find(write_checkpoint(tmp_path / "plain", CFG, 1))
    assert torch.equal(head(weights), values(NAME, torch.Size((50, 16)))) and weights.notes() == []


def test_raw_weights_of_a_finished_run_are_its_checkpoints(step: Path) -> None:
    """Its model folder has the averaged ones."""
    from mgpt.models.folder import write_model

    tensors = [lazy(name, torch.zeros(p.shape)) for name, p in Transformer(CFG).named_parameters()]
    write_model(step.parent / MODEL, CFG, tensors, "0" * 16)
    assert not Weights.find(step.parent).is_checkpoint
    assert torch.equal(
        head(Weights.find(step.parent, averaged=False)), values(NAME, torch.Size((50, 16)))
    )
    assert Weights.find(step.parent / MODEL, averaged=False).folder == step.parent / MODEL


@pytest.mark.parametrize("averaged", [True, False])
def test_an_export_has_them_and_says_so(step: Path, tmp_path: Path, averaged: bool) -> None:
    planned = plan_export(step, averaged=averaged)
    assert any("averaged weights of" in note for note in planned.notes) is averaged
    planned.write(tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")[NAME]
    want = (average if averaged else values)(NAME, exported.shape)
    assert torch.equal(exported, want)


def test_a_damaged_header_is_still_named(step: Path) -> None:
    file = sorted((step / "state").glob("*.safetensors"))[0]
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=file.name):
        Weights.find(step).stored()
