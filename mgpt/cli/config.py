"""A resolved configuration: its file, and from plain data to a stage's frozen dataclass.

Pydantic validates the dataclasses as they are, strictly and from JSON: no text becomes a number and
no truth value an integer, while lists become tuples and integers floats. Knows no stage and not
Hydra, so a process that is given a resolved file (a rank, a pipeline's child) starts without it.

    >>> @dataclass(frozen=True)
    ... class Optim:
    ...     lr: float
    ...     betas: tuple[float, float]
    >>> validate(Optim, {"lr": 1, "betas": [0.9, 0.95]})
    Optim(lr=1.0, betas=(0.9, 0.95))
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mgpt.cli.settings import (
    MISSING,
    describe,
    expand_home,
    field_names,
    options_of,
    step_into,
    to_plain,
)
from mgpt.errors import ConfigError

_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # 1e-4, which yaml 1.1 takes for text


@dataclasses.dataclass(frozen=True)
class Composed:
    """A composed configuration and the choice made in each group, `{"parallel": "fsdp2"}`; no
    choices are left in one that was read from a file."""

    tree: dict[str, Any]
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)


def config_text(config: Any) -> str:
    """A configuration, a dataclass or plain data, as the yaml that `--config` reads."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def read_config(file: Path) -> dict[str, Any]:
    """The mapping in a yaml file that a user names; its text means itself.

    Raises ConfigError if the file is missing, unreadable, or holds no mapping.
    """
    try:
        tree = yaml.safe_load(file.expanduser().read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise unreadable(file, "--config", error) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"--config {file}: holds no fields; a yaml mapping belongs there")
    return tree


def unreadable(file: Path, given_as: str, error: Exception) -> ConfigError:
    """What to tell the user about a yaml file that cannot be read."""
    why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
    return ConfigError(f"{given_as} {file}: {why}")


def validate(cls: type, tree: Any) -> Any:
    """An instance of the dataclass `cls` from plain data.

    Raises one ConfigError that lists every unknown field, missing value, wrong type and
    `ValueError` of a `__post_init__`, each with its dotted path.
    """
    missing: list[str] = []
    tree = json.loads(json.dumps(expand_home(_without_missing(tree, "", missing)), default=str))
    errors: list[ErrorDetails] = []
    try:
        instance = _validated(cls, tree)
    except ValidationError as error:
        errors = error.errors()
    problems = [_missing(path) for path in missing] + [_problem(cls, tree, one) for one in errors]
    if problems:
        raise mistakes(dict.fromkeys(problems))
    return instance


def mistakes(problems: Iterable[str]) -> ConfigError:
    """One error of all that is wrong with a configuration."""
    return ConfigError("\n  ".join(["the configuration has mistakes:", *problems]))


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing when no known name is near."""
    known = list(dict.fromkeys(known))
    by_leaf = [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]]
    close = dict.fromkeys([*by_leaf[:3], *difflib.get_close_matches(word, known, n=3, cutoff=0.6)])
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _validated(cls: type, tree: Any) -> Any:
    """The instance. Numbers that yaml 1.1 reads as text are replaced in `tree`."""

    def parse() -> Any:
        return _adapter(cls).validate_json(json.dumps(tree), strict=True, extra="forbid")

    try:
        return parse()
    except ValidationError as error:
        numbers = [
            one["loc"]
            for one in error.errors()
            if one["type"] == "float_type" and _SCIENTIFIC.fullmatch(str(one["input"]))
        ]
        if not numbers:
            raise
    for loc in numbers:
        value = tree
        for step in loc:
            if isinstance(value, str):  # the rest of the path names an alternative of a union
                break
            holder, last, value = value, step, value[step]
        holder[last] = float(value)
    return parse()


def _without_missing(tree: Any, path: str, missing: list[str]) -> Any:
    """Nested mappings without the values that must still be given; adds the paths of these."""
    if not isinstance(tree, Mapping):
        return tree
    missing += [f"{path}{key}" for key, value in tree.items() if value == MISSING]
    return {
        key: _without_missing(value, f"{path}{key}.", missing)
        for key, value in tree.items()
        if value != MISSING
    }


def _problem(cls: type, tree: Any, error: ErrorDetails) -> str:
    """An error of pydantic's in the words of a command line: path, value, what is allowed.

    In a union pydantic has an error for each alternative, and the alternative's name in the path;
    the message is about the union as a whole.
    """
    kind: Any = cls
    value, path = tree, ""
    holder, holder_path, last = kind, path, ""
    for step in error["loc"]:
        if step == "[key]":
            return _wrong(f"a key of {holder_path}", last, typing.get_args(holder)[0])
        only = _only(kind)
        if only is None:
            return _wrong(path, value, kind)
        if isinstance(step, int) and step >= len(value):
            return _other_length(path, value, only)
        holder, holder_path, last = only, path, str(step)
        kind = step_into(only, step)
        path = f"{path}[{step}]" if isinstance(step, int) else f"{path}.{step}".lstrip(".")
        value = value.get(step) if isinstance(value, dict) else value[step]
    if error["type"] == "missing":
        return _missing(path)
    if error["type"] == "unexpected_keyword_argument":
        return f"{path}: no such field{nearest(last, field_names(holder))}"
    if error["type"] == "too_long":
        return _other_length(path, value, _only(kind))
    if "error" in error.get("ctx", {}):  # of a __post_init__
        return f"{path}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    return _wrong(path, value, _only(kind))


def _only(kind: Any) -> Any | None:
    """The type, or what an optional one holds; None for a union of several."""
    options = [option for option in options_of(kind) if option is not NoneType]
    return options[0] if len(options) == 1 else None


def _missing(path: str) -> str:
    return f"{path}: missing; give {path}=…"


def _other_length(path: str, value: Any, kind: Any) -> str:
    return f"{path}: {len(value)} values where {len(typing.get_args(kind))} belong: {value}"


def _wrong(path: str, value: Any, kind: Any) -> str:
    got = "null" if value is None else f"{value!r} ({type(value).__name__})"
    is_dataclass = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    wanted = f"fields of {kind.__name__}" if is_dataclass else describe(kind)
    return f"{path or 'the configuration'}: {got} where {wanted} belongs"
