"""Rows stay dense, follow their sequences, and prompts go through in bounded calls."""

import pytest
import torch

from mgpt.infer import branches as branches_module
from mgpt.infer.branches import BranchTable
from mgpt.models.transformer import Transformer


def _alone(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1]


@torch.inference_mode()
def test_a_closed_row_is_taken_by_the_last_with_its_context(model: Transformer):
    table = BranchTable(model, max_rows=4)
    contexts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    branches = [table.open(ids) for ids in contexts]
    for row, hidden_D in enumerate(table.forward()):
        torch.testing.assert_close(hidden_D, _alone(model, contexts[row]))
    table.close(branches[0])
    assert [branch.row for branch in branches[1:]] == [1, 0]
    for branch in branches[1:]:
        branch.pending.append(20)
    fresh = table.open([30, 31])
    hidden_RD = table.forward()
    torch.testing.assert_close(hidden_RD[0], _alone(model, [*contexts[2], 20]))
    torch.testing.assert_close(hidden_RD[1], _alone(model, [*contexts[1], 20]))
    torch.testing.assert_close(hidden_RD[fresh.row], _alone(model, [30, 31]))
    assert fresh.row == 2 and fresh.length == 2 and not fresh.pending


@torch.inference_mode()
def test_prompts_go_in_calls_of_bounded_size(model: Transformer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(branches_module, "_PREFILL_TOKENS", 20)
    table = BranchTable(model, max_rows=6)
    contexts = [[1], [2], [3] * 4, [4] * 9, [5] * 15, [6] * 30]
    for ids in contexts:
        table.open(ids)
    assert table._calls() == [(0, 2), (2, 4), (4, 5), (5, 6)]
    for hidden_D, ids in zip(table.forward(), contexts, strict=True):
        torch.testing.assert_close(hidden_D, _alone(model, ids))


def test_more_branches_than_rows_are_a_mistake(model: Transformer):
    table = BranchTable(model, max_rows=1)
    table.open([1])
    with pytest.raises(AssertionError):
        table.open([1])
