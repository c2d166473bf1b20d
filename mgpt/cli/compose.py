"""From the command line and `conf/` to a resolved configuration: the one door to Hydra.

Composition merges a stage's dataclass defaults, its yaml, the groups it names and the overrides,
and resolves what refers to other fields. It writes no file, changes no folder and touches no
device. Knows no stage and no component.

    >>> compose("pack", schema_of(PackConfig), ["source=photos", "output=raw"]).tree["output"]
    'raw'

Hydra's `@hydra.main` is not used: it stops at the first unknown override, wraps every error, and
writes folders and logs of its own; its compose function is the same grammar without them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mgpt.cli.config import Composed, mistakes, nearest, read_config, unreadable
from mgpt.cli.settings import (
    expand_home,
    is_text,
    options_of,
    settings_of,
    takes_list,
    type_at,
)
from mgpt.errors import ConfigError

CONFIG_MODULE = "mgpt.conf"
_HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)


@dataclasses.dataclass(frozen=True)
class Schema:
    """What may be overridden: `type_of(dotted path)` (None = unknown), and the names to suggest."""

    type_of: Callable[[str], Any | None]
    names: Sequence[str]
    defaults: Mapping[str, Any]


NO_FIELDS = Schema(lambda path: None, [], {})


def schema_of(cls: type) -> Schema:
    """The schema of one configuration dataclass."""
    tree: dict[str, Any] = {}
    names = [setting.path for setting in settings_of(cls)]
    for setting in settings_of(cls):
        if "<name>" in setting.path:
            continue
        *parents, leaf = setting.path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = setting.default
    return Schema(lambda path: type_at(cls, path), names, tree)


def compose(
    config_name: str,
    schema: Schema,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Composed:
    """Defaults of the dataclass < `conf/<config_name>.yaml` and its groups < `values` < overrides.

    Overrides are `key=value`, `~key` to remove one entry of a mapping, or `group=choice`; values
    of text fields need no quotes. `values` is a tree of plain data whose text means itself.
    Raises ConfigError that lists every unknown or malformed override.
    """
    given = _read_overrides(overrides, schema, _defaults(config_name).groups)
    defaults = _defaults(config_name, tuple(given.choices))
    with _as_mistake_of(f"conf/{config_name}.yaml"):
        node = OmegaConf.merge(dict(schema.defaults), defaults.node, _escaped(values or {}))
        assert isinstance(node, DictConfig)
        tree = given.put_into(node)
    return Composed(tree, {name: group.chosen for name, group in defaults.groups.items()})


def compose_over(
    config_name: str, schema: Schema, file: Path, overrides: Sequence[str] = ()
) -> Composed:
    """A configuration that is resolved already, as an output folder's config.yaml, with overrides.

    `group=choice` puts the values of the choice's yaml over those of the file; the others stay.
    Raises ConfigError for a file that is missing or no mapping, and as `compose` does.
    """
    node, groups = OmegaConf.create(_escaped(read_config(file))), _defaults(config_name).groups
    given = _read_overrides(overrides, schema, groups)
    for word in given.choices:
        key, _, choice = word.partition("=")
        path, _, package = key.partition("@")
        package = package or path.replace("/", ".")
        name = f"{path}/{choice.strip(_QUOTE)}"
        own = OmegaConf.create(_escaped(compose(name, NO_FIELDS).tree))
        own = OmegaConf.select(own, path.replace("/", ".")) or own
        _merge(node, "" if package == "_global_" else package, own)
    with _as_mistake_of(f"--config {file}"):
        return Composed(given.put_into(node))


def _merge(node: DictConfig, path: str, values: Any) -> None:
    target = OmegaConf.select(node, path) if path else node
    OmegaConf.update(node, path, values) if target is None else target.merge_with(values)


def add_choice(group: str, name: str, file: Path) -> None:
    """Makes a yaml file of the user's `<group>=<name>` in this process, beside `conf/<group>`.

    Raises ConfigError for one that is missing, unreadable or no mapping.
    """
    try:
        node = OmegaConf.create(file.expanduser().read_text())
    except (OSError, ValueError, *_HYDRA_ERRORS) as error:
        raise unreadable(file, group, error) from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{group} {file}: holds no fields; a yaml mapping belongs there")
    ConfigStore.instance().store(name=name, node=node, group=group, package="_global_")
    _defaults.cache_clear()


def group_choices(config_name: str) -> list[tuple[str, tuple[str, list[str]]]]:
    """Each group of a stage with the choice it makes by default and all there are."""
    groups = _defaults(config_name).groups
    return [(name, (group.chosen, group.choices)) for name, group in groups.items()]


# ------------------------------------------------------------------ Hydra's part


@dataclasses.dataclass(frozen=True)
class _Group:
    """A group in a defaults list: its full key, the choice made, and all there are."""

    key: str
    chosen: str
    choices: list[str]

    def nearest(self, number: int) -> str:
        """Of choices that are numbers, the largest that is not above `number`, else the smallest;
        empty for a group of names."""
        if not all(choice.isdigit() for choice in self.choices):
            return ""
        numbers = sorted(map(int, self.choices))
        return str(max((one for one in numbers if one <= number), default=numbers[0]))


@dataclasses.dataclass(frozen=True)
class _Defaults:
    """What `conf/` says for a stage: its yaml merged with its groups, by the short names of these.
    Not to be changed: it is shared by all who compose the same."""

    node: DictConfig
    groups: dict[str, _Group]


@cache
def _defaults(config_name: str, choices: tuple[str, ...] = ()) -> _Defaults:
    GlobalHydra.instance().clear()
    with (
        _as_mistake_of(f"conf/{config_name}.yaml"),
        initialize_config_module(CONFIG_MODULE, version_base="1.3"),
    ):
        composed = hydra_compose(config_name, list(choices), return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        groups = {}
        for key, chosen in composed.hydra.runtime.choices.items():
            path = key.partition("@")[0]
            if not path.startswith("hydra/"):
                options = loader.get_group_options(path)
                groups[path.rpartition("/")[2]] = _Group(key, str(chosen), options)
    node = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return _Defaults(node, groups)


@contextmanager
def _as_mistake_of(source: str) -> Iterator[None]:
    try:
        yield
    except _HYDRA_ERRORS as error:
        raise ConfigError(f"{source}: {error}") from error


# ------------------------------------------------------------------ overrides


@dataclasses.dataclass(frozen=True)
class _Overrides:
    """Overrides, read: group choices in Hydra's grammar, fields by path, and paths to remove."""

    choices: list[str]
    fields: list[tuple[str, Any]]
    removed: list[str]

    def put_into(self, node: DictConfig) -> dict[str, Any]:
        """The configuration with the overridden fields, without what is removed, as plain data."""
        for path, value in self.fields:
            OmegaConf.update(node, path, value, force_add=True)
        for path in self.removed:
            parent, _, name = path.rpartition(".")
            mapping = OmegaConf.select(node, parent) if parent else node
            if not isinstance(mapping, DictConfig) or name not in mapping:
                raise ConfigError(f"~{path}: there is no such entry to remove")
            del mapping[name]
        tree = OmegaConf.to_container(node, resolve=True)
        assert isinstance(tree, dict)
        return expand_home(tree)


_QUOTE = "'"


def _read_overrides(
    overrides: Sequence[str], schema: Schema, groups: Mapping[str, _Group]
) -> _Overrides:
    """Values are parsed by Hydra; paths are not, since its grammar has no place for a key such as
    `1:1`. All mistakes come in one ConfigError.
    """
    read = _Overrides([], [], [])
    problems: list[str] = []
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        path = key.lstrip("~")
        kind = schema.type_of(path)
        if not equals and key == path:
            problems.append(f"{override!r} is not an override; write key=value")
        elif key in groups:
            group = groups[key]
            if value.isdigit() and group.nearest(int(value)) and schema.type_of(f"{key}_px"):
                read.fields.append((f"{key}_px", int(value)))
                value = group.nearest(int(value))
            if value not in group.choices:
                problems.append(f"{key}={value}: {key} is one of {', '.join(group.choices)}")
            read.choices.append(f"{group.key}={_QUOTE}{value}{_QUOTE}")
        elif kind is None:
            problems.append(f"{path}: no such field{nearest(path, [*schema.names, *groups])}")
        elif key != path:
            read.removed.append(path)
        else:
            try:
                read.fields.append((path, parse_value(value, kind)))
            except HydraException as error:
                problems.append(f"{override}: {str(error).splitlines()[0]}; put it in quotes")
    if problems:
        raise mistakes(problems)
    return read


def parse_value(text: str, kind: Any) -> Any:
    """What is written after `=` for a field of this type, for a node of OmegaConf.

    Text means itself, whatever characters it has. Numbers and lists, values in quotes, and `null`
    for an optional field are Hydra's grammar, and may refer to other fields with `${`. Raises
    HydraException for what is not in it.
    """
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    listed = takes_list(kind) and text.startswith("[") and text.endswith("]")
    null = text == "null" and type(None) in options_of(kind)
    if is_text(kind) and not (quoted or listed or null or _is_number(text, kind)):
        return _escaped(text)
    return OverridesParser.create().parse_override(f"x={text}").value()


def _is_number(text: str, kind: Any) -> bool:
    """Whether the text is a number or truth value that another alternative of the type takes:
    `procs=2` for `"auto" | int`."""
    options = options_of(kind)
    as_number = bool(re.fullmatch(r"[+-]?\d+", text)) and int in options
    as_float = bool(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text)) and float in options
    return as_number or as_float or (text in ("true", "false") and bool in options)


def _escaped(tree: Any) -> Any:
    """Plain data whose text OmegaConf takes as it is: `${` refers to nothing."""
    if isinstance(tree, Mapping):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    # A run of backslashes is doubled only where it meets what a backslash would escape.
    return (
        re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", tree) if isinstance(tree, str) else tree
    )
