"""Sequences in a shared key-value cache: which row each has, and one forward for all of them.

A branch is one context of one answer: the conversation, or for guidance the image by itself. Rows
are always 0..n-1: a closed branch's place is taken by the last one, so that every forward is
dense. The table knows token ids only as numbers, nothing of grammar or sampling.

    >>> table = BranchTable(model, max_rows=64)
    >>> branch = table.open(prompt_ids)
    >>> hidden_RD = table.forward()  # the last position of every branch
    >>> branch.pending.append(next_id)
    >>> hidden_RD = table.forward()
    >>> table.close(branch)

Shape suffixes: R rows, B rows of one call, T new tokens, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mgpt.models.kv_cache import KvCache
from mgpt.models.table import DecoderModel

__all__ = ["Branch", "BranchTable"]

# New tokens of one call, padding included: bounds what prompts need besides the cache.
_PREFILL_TOKENS = 8192


@dataclass(eq=False)
class Branch:
    """One row: `length` tokens are in the cache, `pending` go there in the next forward."""

    row: int
    length: int = 0
    pending: list[int] = field(default_factory=list)


class BranchTable:
    """Up to `max_rows` branches over one cache."""

    def __init__(self, model: DecoderModel, max_rows: int):
        weight = model.embed.weight
        self._model = model
        self._device = weight.device
        self.max_rows = max_rows
        self._branches: list[Branch] = []
        self._cache = KvCache(model.cfg, max_rows, weight.dtype, weight.device)

    def open(self, ids: Sequence[int]) -> Branch:
        """A new branch with `ids` pending, in the last row."""
        assert len(self._branches) < self.max_rows and len(ids) > 0
        self._branches.append(Branch(row=len(self._branches), pending=list(ids)))
        return self._branches[-1]

    def close(self, branch: Branch) -> None:
        """Gives the branch's row to the last one."""
        last = self._branches.pop()
        if last is not branch:
            self._cache.move(last.row, branch.row)
            last.row = branch.row
            self._branches[branch.row] = last

    def forward(self) -> Tensor:
        """Runs every branch's pending tokens; the hidden state [R, D] of each one's last token.

        Branches with one pending token go through together; prompts, which stand behind them in
        the table or among them, in calls of similar length.
        """
        hidden_RD = None
        for start, stop in self._calls():
            part = self._forward_rows(start, stop)
            if hidden_RD is None:
                hidden_RD = part.new_empty(len(self._branches), part.shape[1])
            hidden_RD[start:stop] = part
        assert hidden_RD is not None, "no branch is open"
        return hidden_RD

    def _calls(self) -> list[tuple[int, int]]:
        """Consecutive rows that form one call: single tokens, or prompts of bounded size."""
        calls: list[tuple[int, int]] = []
        longest = 0
        for row, branch in enumerate(self._branches):
            size = len(branch.pending)
            assert size > 0, "every branch has a token to take in"
            longest = max(longest, size)
            start = calls[-1][0] if calls else row
            same_kind = bool(calls) and (size == 1) == (len(self._branches[start].pending) == 1)
            if same_kind and (size == 1 or (row + 1 - start) * longest <= _PREFILL_TOKENS):
                calls[-1] = (start, row + 1)
            else:
                calls.append((row, row + 1))
                longest = size
        return calls

    def _forward_rows(self, start: int, stop: int) -> Tensor:
        branches = self._branches[start:stop]
        width = max(len(branch.pending) for branch in branches)
        self._cache.reserve(max(branch.length for branch in branches) + width)
        ids_BT = torch.tensor([b.pending + [0] * (width - len(b.pending)) for b in branches])
        first_B1 = torch.tensor([[branch.length] for branch in branches])
        last_B = torch.tensor([len(branch.pending) - 1 for branch in branches])
        hidden_BTD = self._model(
            ids_BT.to(self._device),
            (first_B1 + torch.arange(width)).to(self._device),
            cache=self._cache.window(start, stop),
        )
        for branch in branches:
            branch.length += len(branch.pending)
            branch.pending.clear()
        return hidden_BTD[torch.arange(len(branches)), last_B.to(self._device)]
