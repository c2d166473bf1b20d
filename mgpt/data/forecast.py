"""What a run will draw, before it has: documents by a step, and the steps until the data end.

How many rows a window fills is known once it is packed and not before, so every window must be
packed for an exact answer: that is done up to `FORETOLD_DOCUMENTS` documents, ten seconds of work.
Beyond, each stretch of the mix is taken to fill as many rows a window as its first ones do.

    drawn, is_exact = foretell(loader, step=1000)     # {"scenes/caption": 4096, …}, True
    steps, is_exact = steps_of_data(loader)           # 12, True; None where a source has no cap
"""

from collections.abc import Callable
from copy import copy

from mgpt.data.loader import Position, RowLoader, Start
from mgpt.data.mixer import Mixer
from mgpt.data.source import DataConfig, weights_after

FORETOLD_DOCUMENTS = 1_000_000
LOOKED_AT = 4  # windows that stand for those after them


def foretell(loader: RowLoader, step: int) -> tuple[dict[str, int], bool]:
    """`loader.drawn` of a step that may be far ahead, and whether that is exact."""
    about = foretell_about(loader, step)
    if sum(about.values()) > FORETOLD_DOCUMENTS:
        return about, False
    return loader.from_start().drawn(step), True


def foretell_about(loader: RowLoader, step: int) -> dict[str, int]:
    """`drawn`, from the first windows of each stretch."""
    config = loader.config
    mixer, window, reached = _from_start(loader.mixer, config), 0, 0
    for change in [*sorted(at for at in config.changes if at < step), step]:
        rows = _rows_a_window(mixer, window)
        if rows is None:
            break
        window += round((change - reached) * loader.step_rows / rows)
        if change < step:
            mixer.change(window, weights_after(config, mixer.components, change))
        reached = change
    given = zip(mixer.components, mixer.given_before(window), strict=True)
    return {part.name: count for part, count in given}


def steps_of_data(loader: RowLoader) -> tuple[int | None, bool]:
    """Steps until every source has reached its cap of epochs, and whether that is exact; None where
    one has no cap."""
    ahead = loader.from_start()
    return _steps_of(ahead.mixer, loader.config, ahead.change_mix, ahead.started)


def steps_of_mix(mixer: Mixer, config: DataConfig) -> tuple[int | None, bool]:
    """`steps_of_data` of a mixer and what it was made from."""
    mixer = _from_start(mixer, config)

    def change(step: int, window: int) -> None:
        mixer.change(window, weights_after(config, mixer.components, step))

    return _steps_of(mixer, config, change, Start(0, Position(0, 0)))


def _steps_of(
    mixer: Mixer, config: DataConfig, change: Callable[[int, int], None], start: Start
) -> tuple[int | None, bool]:
    """From where a run is started; `change(step, window)` makes the mix that of a later step."""
    caps = [part.cap for part in mixer.components]
    if None in caps:
        return None, True
    documents = sum(cap for cap in caps if cap is not None)
    if documents > FORETOLD_DOCUMENTS:
        rows = _rows_a_window(mixer, 0)
        assert rows is not None, "a component has a sample"
        windows = documents / mixer.window_documents
        return max(1, round(rows * windows / config.step_rows)), False
    # Rows before a window, had all steps been full ones.
    window, num_rows = start.position.window, start.step * config.step_rows - start.position.row
    changes = sorted(config.changes.keys() - {step for step, _ in start.changed})
    while mixer.num_windows is None or window < mixer.num_windows:
        while changes and changes[0] * config.step_rows <= num_rows:
            change(changes.pop(0), window)
        num_rows += len(mixer.window(window).rows)
        window += 1
    return -(-num_rows // config.step_rows), True


def _from_start(mixer: Mixer, config: DataConfig) -> Mixer:
    """A copy with the mix of the first step."""
    mixer = copy(mixer)
    mixer.change(0, weights_after(config, mixer.components, 0))
    return mixer


def _rows_a_window(mixer: Mixer, first: int) -> float | None:
    """Mean rows of some windows from `first` on; None where the data have ended there."""
    last = mixer.num_windows
    numbers = range(first, first + LOOKED_AT if last is None else last)[:LOOKED_AT]
    if not numbers:
        return None
    return sum(len(mixer.window(number).rows) for number in numbers) / len(numbers)
