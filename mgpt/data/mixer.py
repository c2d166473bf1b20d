"""Which document comes when: the mix, the epochs, the variants, and the rows of each window.

The stream of documents is cut into windows. How many documents a component has given before any
window is a closed formula (its share of the weight times the windows passed, rounded), its n-th
document is entry perm(epoch, n mod size) of a keyed permutation, and variant and guidance drop are
keyed by sample and epoch. So any window can be made from its number alone, at once.

A component that reaches its cap of epochs stops at the end of that window, and the others share its
weight from the next window on; when all have stopped the data ends. From a given window on the
weights and the caps may be others (`change`).

    mixer = Mixer(components, seed=0, row_tokens=1024, window_documents=2048, guidance_drop=0.1)
    window = mixer.window(3)
    window.rows[0]                       # numbers of the documents that share the first row
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgpt.data.draws import below, draw_key, hash64, permute
from mgpt.data.lengths import CUT, TOKENS, TRAINED, TRAINED_AFTER_CUT
from mgpt.data.packing import plan_rows
from mgpt.data.source import Component

SHARE_BITS = 40  # shares are integers over 2^40, so that quotas are exact on every machine


@dataclass(frozen=True)
class Window:
    """The documents of one window, as columns, and the rows they are packed into.

    `component_N` places in the mixer's components, `entry_N` in the component's lengths; `tokens_N`
    and `trained_N` hold after the guidance drop. `rows` lists document numbers in training order.
    """

    component_N: np.ndarray
    entry_N: np.ndarray
    epoch_N: np.ndarray
    variant_N: np.ndarray
    dropped_N: np.ndarray
    tokens_N: np.ndarray
    trained_N: np.ndarray
    rows: list[list[int]]


@dataclass(frozen=True)
class Phase:
    """A stretch of windows over which the same components are active with the same shares."""

    first_window: int
    given: tuple[int, ...]
    shares: tuple[int, ...]
    caps: tuple[int | None, ...]


class Mixer:
    """The windows of a mix; a pure function of its arguments and the window's number."""

    def __init__(
        self,
        components: Sequence[Component],
        seed: int,
        row_tokens: int,
        window_documents: int,
        guidance_drop: float,
        train_on_inputs: bool = False,
    ) -> None:
        self.components = list(components)
        self.seed = seed
        self.row_tokens = row_tokens
        self.window_documents = window_documents
        self.guidance_drop = guidance_drop
        self.train_on_inputs = train_on_inputs
        self.phases: list[Phase] = []
        self.change(0, [part.weight for part in self.components])

    def change(
        self, window: int, weights: Sequence[float], caps: Sequence[int | None] | None = None
    ) -> None:
        """Give the components these weights from `window` on, and these caps; None: their own."""
        if caps is None:
            caps = [part.cap for part in self.components]
        earlier = [phase for phase in self.phases if phase.first_window < window]
        given = self._given(earlier[-1], window) if earlier else [0] * len(self.components)
        self.phases = earlier + self._plan_phases(window, given, weights, tuple(caps))

    @property
    def num_windows(self) -> int | None:
        """Windows until every component has reached its cap; None where one has no cap."""
        last = self.phases[-1]
        return None if any(last.shares) else last.first_window

    def given_before(self, window: int) -> list[int]:
        """Documents that each component has given before `window`; exact, in closed form."""
        phase = next(p for p in reversed(self.phases) if p.first_window <= window)
        return self._given(phase, window)

    def _given(self, phase: Phase, window: int) -> list[int]:
        passed = (window - phase.first_window) * self.window_documents
        return [
            _at_most(given + _quota(passed, share), cap)
            for given, share, cap in zip(phase.given, phase.shares, phase.caps, strict=True)
        ]

    def window(self, number: int) -> Window:
        """Documents and rows of a window; a window past the end of the data has none."""
        starts, stops = self.given_before(number), self.given_before(number + 1)
        parts = [
            self._draw(place, start, stop)
            for place, (start, stop) in enumerate(zip(starts, stops, strict=True))
        ]
        component_N, entry_N, epoch_N, variant_N, dropped_N, tokens_N, trained_N = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        rows = plan_rows(tokens_N, self.row_tokens)
        key = draw_key(self.seed, "row order", number)
        order = permute(key, np.arange(len(rows)), len(rows)).tolist()
        return Window(
            component_N=component_N,
            entry_N=entry_N,
            epoch_N=epoch_N,
            variant_N=variant_N,
            dropped_N=dropped_N,
            tokens_N=tokens_N,
            trained_N=trained_N,
            rows=[rows[place] for place in order],
        )

    def _draw(self, place: int, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Columns of the component's documents start..stop-1, in the order of `Window`."""
        part, size = self.components[place], len(self.components[place])
        ordinal_N = np.arange(start, stop)
        epoch_N, place_N = ordinal_N // size, ordinal_N % size
        first_epoch, last_epoch = start // size, -(-stop // size)
        order_keys = [
            draw_key(self.seed, "order", part.source, part.task, epoch)
            for epoch in range(first_epoch, last_epoch)
        ]
        keys_N = np.array(order_keys, dtype=np.uint64)[epoch_N - first_epoch]
        entry_N = permute(keys_N, place_N, size)
        identity_N = part.lengths.identities_N[entry_N]
        variant_key = draw_key(self.seed, "variant", part.task)
        num_variants = part.lengths.counts_NVC.shape[1]
        variant_N = hash64(variant_key, identity_N, epoch_N) % np.uint64(num_variants)
        counts_NC = part.lengths.counts_NVC[entry_N, variant_N.astype(np.int64)].astype(np.int64)
        guidance_key = draw_key(self.seed, "guidance", part.task)
        dropped_N = below(self.guidance_drop, hash64(guidance_key, identity_N, epoch_N))
        dropped_N &= counts_NC[:, CUT] > 0
        cut_N = np.where(dropped_N, counts_NC[:, CUT], 0)
        tokens_N = counts_NC[:, TOKENS] - cut_N
        if self.train_on_inputs:
            trained_N = tokens_N - 1  # all but the first, which no token comes before
        else:
            trained_N = np.where(dropped_N, counts_NC[:, TRAINED_AFTER_CUT], counts_NC[:, TRAINED])
        return (
            np.full(stop - start, place),
            entry_N,
            epoch_N,
            variant_N.astype(np.int64),
            dropped_N,
            tokens_N,
            trained_N,
        )

    def _plan_phases(
        self,
        first_window: int,
        given: list[int],
        weights: Sequence[float],
        caps: tuple[int | None, ...],
    ) -> list[Phase]:
        phases: list[Phase] = []
        while True:
            active = [cap is None or count < cap for cap, count in zip(caps, given, strict=True)]
            total = sum(weight for weight, on in zip(weights, active, strict=True) if on)
            shares = tuple(
                round(weight / total * 2**SHARE_BITS) if on and weight else 0
                for weight, on in zip(weights, active, strict=True)
            )
            phases.append(Phase(first_window, tuple(given), shares, caps))
            ends = [
                _windows_until(cap - count, share, self.window_documents)
                for cap, count, share in zip(caps, given, shares, strict=True)
                if share and cap is not None
            ]
            if not ends:
                break
            first_window += min(ends)
            given = self._given(phases[-1], first_window)
        return phases


def _quota(documents: int, share: int) -> int:
    """A component's part of the first `documents`: its share of them, rounded to nearest."""
    return (documents * share + (1 << SHARE_BITS - 1)) >> SHARE_BITS


def _windows_until(needed: int, share: int, window_documents: int) -> int:
    """The first number of windows after which the quota is at least `needed`, at least 1."""
    half = 1 << SHARE_BITS - 1
    documents = -(-((needed << SHARE_BITS) - half) // share)
    return max(1, -(-documents // window_documents))


def _at_most(count: int, cap: int | None) -> int:
    return count if cap is None else min(count, cap)
