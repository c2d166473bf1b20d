"""What two starts of a stage were given, compared setting by setting.

A stage is its settings. An input among them counts by what it holds (`mgpt.lifecycle.identity`),
not by its path. A field that a record does not have is at its default, so a version of mgpt with
more fields still recognises what an older one made.

    then, now = Made(record["config"], record["inputs"]), Made(to_plain(cfg), inputs)
    [str(one) for one in differences(then, now, Config)]     # ['optim.lr 0.0001 → 0.0003']
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mgpt.cli.settings import MISSING, default_at, type_at
from mgpt.lifecycle.identity import is_missing, is_same_input
from mgpt.nested import leaves

AUTO = "auto"
# Where the output is, how it is followed and how many processes make it: never what it is.
ALWAYS_FREE = ("output", "redo", "tracking", "workers", "decoders")
_SHOWN = 6


@dataclass(frozen=True)
class Changeable:
    """What a stage may be given differently from one start to the next in the same folder.

    Every name is a dotted path that stands for all below it; `*` stands for any characters.
    """

    free: tuple[str, ...] = ()
    """Settings that do not decide what is made."""
    resumed: tuple[str, ...] = ()
    """Settings that an unfinished stage may be resumed with."""
    extends: tuple[str, ...] = ()
    """Those among `resumed` that give a finished stage more to do; numbers, when raised."""
    starts: tuple[str, ...] = ()
    """Inputs that are only read at the first start: a stage with a checkpoint no longer needs them,
    nor what they hold now."""
    checkpoint: Callable[[Path], Mapping[str, str] | None] | None = None
    """For a stage that saves checkpoints: None where the folder has none yet, else the identity of
    inputs as the newest one has it, by the path of the setting."""


@dataclass(frozen=True)
class Made:
    """A configuration as plain data, and the identity of every input that it names."""

    config: Mapping[str, Any]
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """A setting with another value, or an input that holds something else."""

    path: str
    then: Any
    now: Any
    then_input: str | None = None
    now_input: str | None = None

    @property
    def is_another_path(self) -> bool:
        """Whether an input was given by another name; none at all, or one where nothing is, names
        no other input."""
        if self.now is None or is_missing(str(self.now), self.now_input or ""):
            return False
        return self.then is None or Path(self.then).resolve() != Path(self.now).resolve()

    @property
    def is_lowered(self) -> bool:
        """Whether a number has become a smaller one; 0 leaves it to another setting."""
        pair = self.then, self.now
        return all(isinstance(one, (int, float)) for one in pair) and 0 < self.now < self.then

    def __str__(self) -> str:
        if self.then == self.now and self.then_input != self.now_input:
            return f"{self.path} {self.now} held {self.then_input}, now holds {self.now_input}"
        return f"{self.path} {_word(self.then)} → {_word(self.now)}"


def differences(then: Made, now: Made, cls: type, free: Sequence[str] = ()) -> list[Difference]:
    """Every setting that differs, but for those that are `free` or left to the stage (auto)."""
    found = _differences(then.config, now.config, then, now, cls, "")
    return [one for one in found if not is_one_of(one.path, (*ALWAYS_FREE, *free))]


def listed(found: Sequence[object]) -> str:
    """The first few differences, for a message."""
    more = len(found) - _SHOWN
    return ", ".join(map(str, found[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def fingerprint_of(stage: str, made: Made, cls: type, free: Sequence[str] = ()) -> str:
    """16 hex digits over the settings that are not at their default, inputs by what they hold."""
    values = {
        path: _by_content(value, made.inputs)
        for path, value in leaves(made.config)
        if not is_one_of(path, (*ALWAYS_FREE, *free)) and value != default_at(cls, path)
    }
    text = json.dumps({"stage": stage, "settings": values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_one_of(path: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted path is, or lies below, one of some patterns."""
    return any(fnmatchcase(path, one) or fnmatchcase(path, f"{one}.*") for one in patterns)


def _differences(
    then: Any, now: Any, made_then: Made, made_now: Made, cls: type, path: str
) -> Iterator[Difference]:
    if isinstance(then, Mapping) or isinstance(now, Mapping):
        below_then = then if isinstance(then, Mapping) else {}
        below_now = now if isinstance(now, Mapping) else {}
        for name in dict.fromkeys([*below_then, *below_now]):
            inner = f"{path}.{name}" if path else str(name)
            a, b = below_then.get(name, MISSING), below_now.get(name, MISSING)
            if b is MISSING and type_at(cls, inner) is None:
                continue  # a field of another version
            a = default_at(cls, inner) if a is MISSING else a
            b = default_at(cls, inner) if b is MISSING else b
            yield from _differences(a, b, made_then, made_now, cls, inner)
        return
    inputs = made_then.inputs, made_now.inputs
    if not _is_same(then, now, *inputs):
        held = [one.get(value) if isinstance(value, str) else None
                for one, value in zip(inputs, (then, now))]  # fmt: skip
        yield Difference(path, then, now, *held)


def _is_same(
    then: Any, now: Any, then_inputs: Mapping[str, str], now_inputs: Mapping[str, str]
) -> bool:
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(
            _is_same(a, b, then_inputs, now_inputs) for a, b in zip(then, now)
        )
    if AUTO in (then, now):
        return True
    if isinstance(then, str) and isinstance(now, str):
        held, holds = then_inputs.get(then), now_inputs.get(now)
        if held is not None and holds is not None:
            is_gone = then == now and is_missing(now, holds)
            return is_gone or is_same_input(held, holds, now)
    return then == now


def _by_content(value: Any, inputs: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_by_content(item, inputs) for item in value]
    return inputs.get(value, value) if isinstance(value, str) else value


def _word(value: Any) -> str:
    return "absent" if value is MISSING or value == MISSING else str(value)
