"""Documents into rows: which documents of a window share a row of constant length.

Two packers run and the fuller plan wins. *Filling* closes one row after another: the longest
documents first, the last two chosen together so that their sum comes nearest to what is left
(best fit over pairs). It is strong on mixed lengths. *Balancing* deals the documents, longest
first, each to the emptiest of a given number of rows (Graham's LPT rule); it is strong where all
lengths are alike and a row holds a whole number of them. Nothing here knows what a document is.

    plan_rows([700, 400, 300, 200, 100], capacity=1000)     # [[0, 3], [1, 2, 4]]
"""

import heapq
from collections.abc import Sequence

import numpy as np

from mgpt.errors import DataError

ROW_MULTIPLE = 128  # attention kernels work in tiles of 128 positions


def plan_rows(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of document numbers, each row's lengths summing to at most `capacity` tokens.

    A pure function of its arguments; every document is in exactly one row. Time is near linear in
    the documents, so the caller bounds memory and latency by the window it hands over.

    Raises:
        DataError: a document that is longer than a row.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    if lengths_N.size == 0:
        return []
    assert lengths_N.min() > 0, "a document has at least one token"
    if lengths_N.max() > capacity:
        raise DataError(
            f"document {int(lengths_N.argmax())} has {int(lengths_N.max())} tokens, a row holds "
            f"{capacity}; raise row_tokens or lower the resolution"
        )
    order = np.argsort(-lengths_N, kind="stable")
    floor = -(-int(lengths_N.sum()) // capacity)
    longest_first, values = order.tolist(), lengths_N.tolist()
    balanced = _balance(longest_first, values, capacity, floor)
    if balanced is not None:
        return balanced
    best = _fill(lengths_N, order, capacity)
    fails = floor
    while len(best) - fails > 1:
        middle = (fails + len(best)) // 2
        balanced = _balance(longest_first, values, capacity, middle)
        if balanced is None:
            fails = middle
        else:
            best = balanced
    return best


def _balance(
    longest_first: list[int], lengths: list[int], capacity: int, num_rows: int
) -> list[list[int]] | None:
    """`num_rows` rows by the LPT rule, or None where a row would run over."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    emptiest = [(0, row) for row in range(num_rows)]
    for document in longest_first:
        load, row = emptiest[0]
        load += lengths[document]
        if load > capacity:
            return None
        rows[row].append(document)
        heapq.heapreplace(emptiest, (load, row))
    return [row for row in rows if row]


def _fill(lengths_N: np.ndarray, order: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows closed one by one, longest documents first, each finished by the best single or pair."""
    values, counts = np.unique(lengths_N, return_counts=True)
    ascending = order[::-1].tolist()
    ends = np.cumsum(counts).tolist()
    waiting = {
        value: ascending[end - count : end]
        for value, count, end in zip(values.tolist(), counts.tolist(), ends, strict=True)
    }
    rows = []
    while len(values):
        row: list[int] = []
        room = capacity
        while len(values) and values[0] <= room:
            fits = int(values.searchsorted(room, side="right"))
            chosen = [int(values[fits - 1])]
            if row and room <= 2 * values[-1]:
                chosen = _best_pair(values[:fits], waiting, room) or chosen
            for value in chosen:
                row.append(waiting[value].pop())
                room -= value
            empty = [value for value in chosen if not waiting[value]]
            if empty:
                values = np.delete(values, values.searchsorted(empty))
        rows.append(row)
    return rows


def _best_pair(values: np.ndarray, waiting: dict[int, list[int]], room: int) -> list[int] | None:
    """The two lengths whose sum is the largest within `room`; None if the longest alone is more.

    `values` ascend and each is at most `room`. Of equal sums the pair with the longer document.
    """
    longer = values[values.searchsorted((room + 1) // 2) :]
    if longer.size == 0:
        # Any two fit: take the two longest, which leave the least room.
        longest = int(values[-1])
        if len(waiting[longest]) > 1:
            return [longest, longest]
        return [longest, int(values[-2])] if values.size > 1 else None
    partner = values.searchsorted(room - longer, side="right") - 1
    sums = np.where(partner >= 0, longer + values[partner], 0)
    if 2 * int(longer[0]) == room and len(waiting[int(longer[0])]) == 1:
        sums[0] = longer[0] + values[partner[0] - 1] if partner[0] > 0 else 0
    best = sums.size - 1 - int(sums[::-1].argmax())
    if sums[best] < values[-1] or sums[best] == 0:
        return None
    return [int(longer[best]), int(sums[best] - longer[best])]


def fill_ratio(lengths: Sequence[int] | np.ndarray, capacity: int, window: int) -> float:
    """Real tokens over row tokens when `lengths` are packed in order, `window` at a time."""
    lengths_N = np.asarray(lengths, dtype=np.int64)
    num_rows = sum(
        len(plan_rows(lengths_N[start : start + window], capacity))
        for start in range(0, lengths_N.size, window)
    )
    return float(lengths_N.sum() / (num_rows * capacity))


def choose_row_tokens(
    lengths: Sequence[int] | np.ndarray, most_tokens: int, window: int = 2048
) -> int:
    """The row length up to `most_tokens` that a sample of lengths fills best.

    Tries `most_tokens` itself and the lengths just above a whole number of mean documents, in
    multiples of `ROW_MULTIPLE`, on the first two windows; of equals within 0.1 % the longest.
    """
    sample_N = np.asarray(lengths, dtype=np.int64)[: 2 * window]
    longest, mean = int(sample_N.max()), float(sample_N.mean())
    if longest > most_tokens:
        raise DataError(
            f"the longest document has {longest} tokens, rows are limited to {most_tokens}; "
            "allow longer rows or lower the resolution"
        )
    whole = int(most_tokens / mean)
    above = [count * mean * 1.002 for count in range(max(1, whole - 3), whole + 1)]
    candidates = {most_tokens} | {
        int(-(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE) for tokens in above
    }
    ratios = {
        tokens: fill_ratio(sample_N, tokens, window)
        for tokens in candidates
        if longest <= tokens <= most_tokens
    }
    good = max(ratios.values()) - 0.001
    return max(tokens for tokens, ratio in ratios.items() if ratio >= good)
