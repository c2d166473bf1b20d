"""A checkpoint of many ranks exports as it is, and nobody holds the model whole."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "weights")]
from peak_memory import write_peak
from step_folders import values, write_checkpoint

from mgpt.errors import CheckpointError
from mgpt.lifecycle.weights import Weights
from mgpt.models.transformer import TransformerConfig
from mgpt.stages.transformers_export import plan_export

SMALL = TransformerConfig(
    hidden=16, ffn=24, layers=2, heads=2, kv_heads=1, head_dim=8, vocab_size=50
)
# Ten blocks of 23 MB and two embeddings of 12 MB: 250 MB of float32.
WIDE = TransformerConfig(
    hidden=768, ffn=1536, layers=10, heads=12, kv_heads=12, head_dim=64, vocab_size=4096
)


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_pieces_become_whole_tensors(tmp_path: Path, ranks: int) -> None:
    step = write_checkpoint(tmp_path / "run", SMALL, ranks)
    assert len(list((step / "state").glob("*.safetensors"))) == ranks
    for given in (step, tmp_path / "run"):
        for tensor in Weights.find(given).stored():
            assert torch.equal(tensor.read(), values(tensor.name, torch.Size(tensor.shape)))
    plan_export(step, dtype=torch.bfloat16).write(tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(exported[name], values(name, exported[name].shape).bfloat16())


def test_a_damaged_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    step = write_checkpoint(tmp_path / "run", SMALL, 2)
    file = sorted((step / "state").glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=file.name):
        plan_export(step)


def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    step = write_checkpoint(tmp_path / "run", WIDE, 4)
    peak = write_peak("export", step, tmp_path / "exported")
    largest = 4 * WIDE.vocab_size * WIDE.hidden
    whole = sum(path.stat().st_size for path in (step / "state").glob("*.safetensors"))
    assert whole > 15 * largest
    assert peak.grown_bytes < 4 * largest + 30e6
