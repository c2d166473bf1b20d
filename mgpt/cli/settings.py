"""What a configuration dataclass can be given: every field with its dotted path, type and words.

Reads dataclasses only; knows neither Hydra nor any stage. `mgpt <stage> --help`, the check for
unknown overrides and the quoting of text values all ask here, so they cannot disagree.

    >>> @dataclass(frozen=True)
    ... class Optim:
    ...     lr: float = 1e-4
    ...     '''Peak learning rate.'''
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     optim: Optim = field(default_factory=Optim)
    >>> [(s.path, s.default, s.doc) for s in settings_of(Config)]
    [('optim.lr', 0.0001, 'Peak learning rate.')]
    >>> type_at(Config, "optim.lr")
    <class 'float'>
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

MISSING = "???"  # OmegaConf's mark of a value that must be given
DERIVED = "derived"  # in a field's metadata: filled in by the stage, not by a person


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of a configuration: `path` is dotted, `default` is plain data or `MISSING`."""

    path: str
    kind: str
    default: Any
    doc: str


def settings_of(cls: type, prefix: str = "", example: Any = None) -> Iterator[Setting]:
    """Every leaf field of the dataclass tree, in the order of definition.

    `example`: an instance whose values are the defaults, where the field that holds `cls` has one.
    """
    hints, docs = hints_of(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        if DERIVED in field.metadata:
            continue
        kind, path = hints[field.name], f"{prefix}{field.name}"
        default = _default(field) if example is None else getattr(example, field.name)
        nested = _dataclass_in(kind)
        if nested is not None:
            inner = None if default is dataclasses.MISSING else default
            yield from settings_of(nested, f"{path}.", inner)
        else:
            plain = MISSING if default is dataclasses.MISSING else to_plain(default)
            yield Setting(path, describe(kind), plain, docs.get(field.name, ""))
            named = _dataclass_in(typing.get_args(kind)[1]) if _is_mapping(kind) else None
            if named is not None:
                yield from settings_of(named, f"{path}.<name>.")


def hints_of(cls: type) -> dict[str, Any]:
    """The field types of a dataclass, resolved."""
    return typing.get_type_hints(cls)


def type_at(cls: type, path: str) -> Any | None:
    """The type of the field at a dotted path, looking into dataclasses, mappings and unions.

    None when there is no such field. Below a `dict[str, T]` every key is known, and has type T.
    """
    kind: Any = cls
    for name in path.split("."):
        kind = step_into(kind, name)
        if kind is None:
            return None
    return kind


def default_at(cls: type, path: str) -> Any:
    """The default of the field at a dotted path as plain data; `MISSING` where it has none.

    An entry of a mapping has none; the fields of a dataclass below it have those of their class.
    """
    kind: Any = cls
    value: Any = dataclasses.MISSING
    for name in path.split("."):
        named = _dataclass_in(kind)
        if named is not None and name in field_names(named):
            holder = value if isinstance(value, named) else named
            value = getattr(value, name) if holder is value else _default_of(named, name)
        else:
            value = dataclasses.MISSING
        kind = step_into(kind, name)
    return MISSING if value is dataclasses.MISSING else to_plain(value)


def _default_of(cls: type, name: str) -> Any:
    return next(_default(field) for field in dataclasses.fields(cls) if field.name == name)


def step_into(kind: Any, name: str | int) -> Any | None:
    """The type of a field, of a mapping's entry or of a list's item; None if there is none."""
    for option in options_of(kind):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            found = hints_of(option).get(str(name)) if name in field_names(option) else None
            if found is not None:
                return found
        elif _is_mapping(option):
            return typing.get_args(option)[1]
        elif isinstance(name, int) and typing.get_origin(option) in (list, tuple):
            items = typing.get_args(option)
            return items[0] if len(items) == 1 or Ellipsis in items else items[name]
        elif option in (dict, Any):
            return Any
    return None


def _is_mapping(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def field_names(cls: Any) -> set[str]:
    """The names of a dataclass's fields."""
    return {field.name for field in dataclasses.fields(cls)}


def options_of(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a tuple of one for any other type."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def is_text(kind: Any) -> bool:
    """Whether a value of this type is text or a path, so that its characters mean themselves."""
    return any(
        option in (str, Path)
        or (
            typing.get_origin(option) is Literal
            and all(isinstance(value, str) for value in typing.get_args(option))
        )
        for option in options_of(kind)
    )


def takes_list(kind: Any) -> bool:
    """Whether the type, or one alternative of it, is a list or tuple."""
    return any(
        option in (list, tuple) or typing.get_origin(option) in (list, tuple, typing.Sequence)
        for option in options_of(kind)
    )


def describe(kind: Any) -> str:
    """A type in words a command line user knows: `int`, `text`, `list of int`, `a | b`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "null"
    if kind in (str, Path):
        return "text" if kind is str else "path"
    if origin is Literal:
        return " | ".join(str(value) for value in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(describe(option) for option in args)
    if origin in (list, tuple):
        inner = " x ".join(dict.fromkeys(describe(arg) for arg in args if arg is not Ellipsis))
        return f"list of {inner}"
    if origin is dict:
        return f"{describe(args[0])}: {describe(args[1])}"
    return getattr(kind, "__name__", str(kind))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def expand_home(value: Any) -> Any:
    """Text that starts with `~/` or `~user/`, in lists and mappings too, as the path it stands for.

    Shells expand it at the start of a word, and not all of them after `output=`.
    """
    if isinstance(value, str):
        return os.path.expanduser(value) if re.match(r"~[\w.-]*(/|$)", value) else value
    if isinstance(value, Mapping):
        return {key: expand_home(item) for key, item in value.items()}
    return [expand_home(item) for item in value] if isinstance(value, list) else value


def to_plain(value: Any) -> Any:
    """A configuration value as plain data for yaml and JSON: dataclasses are dicts, paths text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _dataclass_in(kind: Any) -> type | None:
    """The dataclass that a field holds, if it is exactly one and not optional."""
    return kind if dataclasses.is_dataclass(kind) and isinstance(kind, type) else None


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """What is said about each field: the string below it, or the docstring's `name: …` line. What
    a subclass says wins over its base."""
    docs: dict[str, str] = {}
    for klass in reversed([k for k in cls.__mro__ if dataclasses.is_dataclass(k)]):
        docs.update(_docs_in_docstring(klass))
        docs.update(_docs_below_fields(klass))
    return docs


def _docs_in_docstring(cls: type) -> dict[str, str]:
    """`name: words` lines, and for other names the sentence that has them in backticks."""
    names = "|".join(sorted(field_names(cls), key=len, reverse=True))
    text = inspect.cleandoc(cls.__doc__ or "")
    docs: dict[str, str] = {}
    for sentence in re.split(r"(?<=[.;])\s+", text):
        for name in re.findall(rf"`({names})`", sentence):
            docs.setdefault(name, " ".join(sentence.rstrip(";").split()))
    lines = re.finditer(rf"^\s*`?({names})`?: +(.+(?:\n {{4,}}.+)*)", text, re.MULTILINE)
    return {**docs, **{m[1]: " ".join(m[2].split()) for m in lines}} if names else {}


def _docs_below_fields(cls: type) -> dict[str, str]:
    """The string below each field that has one."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time: it has no source
        return {}
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    docs = {}
    for field, below in zip(node.body, node.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(below.value, ast.Constant)
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs
