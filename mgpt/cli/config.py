"""From the command line and `conf/` to frozen dataclasses, with every mistake in one message.

The one door to Hydra: `compose` merges a stage's dataclass defaults, its yaml, the groups it names
and the overrides; `from_hydra` turns the result into the dataclass. Neither writes a file, changes
a folder or touches a device. Knows no stage and no component.

    >>> node = OmegaConf.create({"lr": 1, "betas": [0.9, 0.95]})
    >>> @dataclass(frozen=True)
    ... class Optim:
    ...     lr: float
    ...     betas: tuple[float, float]
    >>> from_hydra(Optim, node)
    Optim(lr=1.0, betas=(0.9, 0.95))

Hydra's `@hydra.main` is not used: it stops at the first unknown override, wraps every error, and
writes folders and logs of its own; its compose function is the same grammar without them.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mgpt.cli.settings import (
    MISSING,
    describe,
    expand_home,
    field_names,
    hints_of,
    is_text,
    options_of,
    settings_of,
    takes_list,
    to_plain,
    type_at,
)
from mgpt.errors import ConfigError

CONFIG_MODULE = "mgpt.conf"
_HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # 1e-4, which yaml 1.1 takes for text
_INVALID = object()  # stands for a value whose mistake is already on the list


@dataclasses.dataclass(frozen=True)
class Schema:
    """What may be overridden: `type_of(dotted path)` (None = unknown), and the names to suggest."""

    type_of: Callable[[str], Any | None]
    names: Sequence[str]
    defaults: Mapping[str, Any]


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


@dataclasses.dataclass(frozen=True)
class Composed:
    """A composed configuration and the choice made in each group, `{"parallel": "fsdp2"}`."""

    node: DictConfig
    choices: Mapping[str, str]

    def yaml(self) -> str:
        """The resolved configuration as yaml."""
        return OmegaConf.to_yaml(self.node, resolve=True)


def select(node: DictConfig, path: str) -> Any:
    """The plain value at a dotted path; `???` where it must be given."""
    parent, _, name = path.rpartition(".")
    mapping = OmegaConf.select(node, parent) if parent else node
    if OmegaConf.is_missing(mapping, name):
        return MISSING
    value = OmegaConf.select(node, path)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def compose(config_name: str, schema: Schema, overrides: Sequence[str] = ()) -> Composed:
    """Defaults of the dataclass < `conf/<config_name>.yaml` and its groups < overrides.

    Overrides are `key=value`, `~key` to remove one entry of a mapping, or `group=choice`; values
    of text fields need no quotes. Raises ConfigError that lists every unknown or malformed one.
    """
    words, values = _read_overrides(overrides, schema, _groups(config_name))
    with _hydra():
        try:
            composed = hydra_compose(config_name, overrides=words, return_hydra_config=True)
            choices = _choices(composed)
            del_hydra = OmegaConf.masked_copy(composed, [str(k) for k in composed if k != "hydra"])
            node = OmegaConf.merge(OmegaConf.create(to_plain(schema.defaults)), del_hydra)
            assert isinstance(node, DictConfig)
            node = _settled(node, values, overrides)
        except _HYDRA_ERRORS as error:
            raise ConfigError(f"conf/{config_name}.yaml: {error}") from error
    return Composed(node, choices)


def compose_over(
    config_name: str, schema: Schema, file: Path, overrides: Sequence[str] = ()
) -> Composed:
    """A configuration that is resolved already, as an output folder's config.yaml, with overrides.

    `group=choice` puts the values of the choice's yaml over those of the file; the others stay.
    Raises ConfigError for a file that is missing or no mapping, and as `compose` does.
    """
    node, groups = read_mapping(file, "--config", literal=True), _groups(config_name)
    words, values = _read_overrides(overrides, schema, groups)
    chosen = {key: group.chosen for key, group in groups.items()}
    for word in words:
        key, _, choice = word.partition("=")
        path, _, package = key.partition("@")
        name = choice.strip("'")
        chosen[path.rpartition("/")[2]] = name
        own = compose(f"{path}/{name}", Schema(lambda path: None, [], {})).node
        own = OmegaConf.select(own, path.replace("/", ".")) or own
        package = package or path.replace("/", ".")
        _merge(node, "" if package == "_global_" else package, own)
    return Composed(_settled(node, values, overrides), chosen)


def read_mapping(file: Path, given_as: str, literal: bool = False) -> DictConfig:
    """A yaml file that a user names; `literal`: `${` in its text means itself.

    Raises ConfigError for one that is missing, unreadable or no mapping.
    """
    try:
        text = file.expanduser().read_text()
        node = OmegaConf.create(_escaped(yaml.safe_load(text)) if literal else text)
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ConfigError(f"{given_as} {file}: {why}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{given_as} {file}: holds no fields; a yaml mapping belongs there")
    return node


def _escaped(tree: Any) -> Any:
    """Plain data whose texts OmegaConf takes as they are."""
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return _escape_interpolation(tree) if isinstance(tree, str) else tree


def _escape_interpolation(text: str) -> str:
    # A run of backslashes is doubled only where it meets what a backslash would escape.
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", text)


def add_choice(group: str, name: str, node: DictConfig) -> None:
    """Makes `<group>=<name>` a choice in this process, beside those of `conf/<group>`."""
    ConfigStore.instance().store(name=name, node=node, group=group, package="_global_")
    _groups.cache_clear()


def _merge(node: DictConfig, path: str, values: Any) -> None:
    target = OmegaConf.select(node, path) if path else node
    OmegaConf.update(node, path, values) if target is None else target.merge_with(values)


def _settled(
    node: DictConfig, values: Sequence[tuple[str, Any]], overrides: Sequence[str]
) -> DictConfig:
    """The configuration with the overridden fields, without what `~path` removes, resolved.

    Its texts are escaped, so that `${` in one means itself however often the result is resolved.
    """
    for path, value in values:
        OmegaConf.update(node, path, value, force_add=True)
    for path in [word[1:] for word in overrides if word.startswith("~")]:
        _remove(node, path)
    settled = OmegaConf.create(_escaped(OmegaConf.to_container(node, resolve=True)))
    assert isinstance(settled, DictConfig)
    return settled


def group_choices(config_name: str) -> list[tuple[str, tuple[str, list[str]]]]:
    """Each group of a stage with the choice it makes by default and all there are."""
    groups = _groups(config_name)
    return [(name, (group.chosen, group.choices)) for name, group in groups.items()]


@dataclasses.dataclass(frozen=True)
class _Group:
    """A group in a defaults list: its full key, the choice made there, and all there are."""

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


class _hydra:
    """Hydra's global state, set up for one call and cleared again."""

    def __enter__(self) -> None:
        GlobalHydra.instance().clear()
        initialize_config_module(CONFIG_MODULE, version_base="1.3").__enter__()

    def __exit__(self, *_: object) -> None:
        GlobalHydra.instance().clear()


def _remove(node: Any, path: str) -> None:
    """Takes an entry of a mapping out. Raises ConfigError where there is none."""
    parent, _, name = path.rpartition(".")
    mapping = OmegaConf.select(node, parent) if parent else node
    if not isinstance(mapping, DictConfig) or name not in mapping:
        raise ConfigError(f"~{path}: there is no such entry to remove")
    del mapping[name]


def _choices(composed: DictConfig) -> dict[str, str]:
    chosen = OmegaConf.to_container(composed.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    return {str(k): str(v) for k, v in chosen.items() if not str(k).startswith("hydra/")}


@cache
def _groups(config_name: str) -> dict[str, _Group]:
    """Short name of each group in the stage's defaults list → the group."""
    groups = {}
    with _hydra():
        try:
            composed = hydra_compose(config_name, return_hydra_config=True)
        except _HYDRA_ERRORS as error:
            raise ConfigError(f"conf/{config_name}.yaml: {error}") from error
        loader = GlobalHydra.instance().config_loader()
        for key, chosen in _choices(composed).items():
            path = key.partition("@")[0]
            group = _Group(key, chosen, loader.get_group_options(path))
            groups[path.rpartition("/")[2]] = group
    return groups


def _read_overrides(
    overrides: Sequence[str], schema: Schema, groups: Mapping[str, _Group]
) -> tuple[list[str], list[tuple[str, Any]]]:
    """Group choices in Hydra's grammar, and (path, value) of fields, in order.

    Values are parsed by Hydra; paths are not, since its grammar has no place for a key such as
    `1:1`. All mistakes come in one ConfigError.
    """
    parser = OverridesParser.create()
    words: list[str] = []
    values: list[tuple[str, Any]] = []
    problems: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+")
        removal = key.startswith("~")
        kind = schema.type_of(key.lstrip("~"))
        if not equals and not removal:
            problems.append(f"{override!r} is not an override; write key=value")
        elif key in groups:
            group = groups[key]
            px_field = f"{key}_px"
            if value.isdigit() and group.nearest(int(value)) and schema.type_of(px_field):
                values.append((px_field, int(value)))
                value = group.nearest(int(value))
            if value not in group.choices:
                problems.append(f"{key}={value}: {key} is one of {', '.join(group.choices)}")
            words.append(f"{group.key}={quote(value, str)}")
        elif kind is None:
            hint = nearest(key.lstrip("~"), [*schema.names, *groups])
            problems.append(f"{key.lstrip('~')}: no such field{hint}")
        elif not removal:
            try:
                parsed = parser.parse_override(f"x={quote(value, kind)}").value()
                values.append((key, expand_home(parsed)))
            except HydraException as error:
                problems.append(f"{override}: {str(error).splitlines()[0]}; put it in quotes")
    if problems:
        raise ConfigError("\n  ".join(["the configuration has mistakes:", *problems]))
    return words, values


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing when no known name is near."""
    known = list(dict.fromkeys(known))
    by_leaf = [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]]
    close = dict.fromkeys([*by_leaf[:3], *difflib.get_close_matches(word, known, n=3, cutoff=0.6)])
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def quote(value: str, kind: Any) -> str:
    """A value as Hydra must see it for a field of this type.

    Text is put in quotes with `${` escaped, so that commas, apostrophes, parentheses, `=`, braces
    and digits mean themselves; lists, values already in quotes, and `null` for an optional field
    stay as they are.
    """
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    listed = takes_list(kind) and value.startswith("[") and value.endswith("]")
    null = value == "null" and type(None) in options_of(kind)
    if not is_text(kind) or quoted or listed or null or _other_option(value, kind):
        return value
    value = _escape_interpolation(value)
    value = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    value = re.sub(r"(\\+)$", lambda m: m[1] * 2, value)
    return f"'{value}'"


def _other_option(value: str, kind: Any) -> bool:
    """Whether the value is a number or truth value that a non-text alternative of the type takes:
    `procs=2` for `"auto" | int`."""
    options = options_of(kind)
    as_number = bool(re.fullmatch(r"[+-]?\d+", value)) and int in options
    as_float = bool(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value)) and float in options
    return as_number or as_float or (value in ("true", "false") and bool in options)


def from_hydra(cls: type, node: DictConfig | Mapping[str, Any]) -> Any:
    """An instance of the frozen dataclass `cls` from a composed configuration.

    Raises one ConfigError that lists every unknown field, missing value, wrong type and
    `ValueError` of a `__post_init__`, each with its dotted path.
    """
    tree = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    problems: list[str] = []
    instance = _dataclass(cls, tree, "", problems)
    if problems:
        raise ConfigError("\n  ".join(["the configuration has mistakes:", *problems]))
    return instance


def _dataclass(cls: type, tree: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(tree, Mapping):
        return _wrong(path, tree, f"fields of {cls.__name__}", problems)
    before = len(problems)
    names, hints, values = field_names(cls), hints_of(cls), {}
    for key in tree:
        if key not in names:
            hint = nearest(str(key), names)
            problems.append(f"{path}{key}: no such field{hint}")
    for field in dataclasses.fields(cls):
        place = f"{path}{field.name}"
        if field.name in tree:
            values[field.name] = convert(hints[field.name], tree[field.name], place, problems)
        elif field.default is field.default_factory is dataclasses.MISSING:
            problems.append(f"{place}: missing; give {place}=…")
    if len(problems) > before:
        return _INVALID
    try:
        return cls(**values)
    except (ValueError, ConfigError) as error:
        problems.append(f"{path.rstrip('.') + ': ' if path else ''}{error}")
        return _INVALID


def convert(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as type `kind`; a mistake is added to `problems` with its path."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, str) and value == MISSING:
        problems.append(f"{path}: missing; give {path}=…")
        return _INVALID
    if kind is Any:
        return value
    if len(options_of(kind)) > 1:
        return _union(kind, value, path, problems)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, f"{path}.", problems)
    if origin is Literal:
        return value if value in args else _wrong(path, value, describe(kind), problems)
    if origin in (list, tuple) or kind in (list, tuple):
        return _sequence(kind, value, path, problems)
    if origin is dict or kind is dict:
        return _mapping(args or (str, Any), value, path, problems)
    return _scalar(kind, value, path, problems)


def _scalar(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if kind is type(None) and value is None:
        return None
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (str, Path) and isinstance(value, str):
        return kind(expand_home(value))
    return _wrong(path, value, describe(kind), problems)


def _union(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    options = options_of(kind)
    if value is None and type(None) in options:
        return None
    attempts: list[list[str]] = []
    for option in options:
        found: list[str] = []
        result = convert(option, value, path, found)
        if not found:
            return result
        attempts.append(found)
    given = [attempt for option, attempt in zip(options, attempts) if option is not type(None)]
    if len(given) == 1:  # an optional field: the one alternative's own words say it best
        problems.extend(given[0])
        return _INVALID
    return _wrong(path, value, describe(kind), problems)


def _sequence(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, (list, tuple, ListConfig)):
        return _wrong(path, value, describe(kind), problems)
    container = typing.get_origin(kind) or kind
    args = typing.get_args(kind) or (Any,)
    if container is tuple and Ellipsis not in args and typing.get_args(kind):
        if len(value) != len(args):
            problems.append(f"{path}: {len(value)} values where {len(args)} belong: {value}")
            return _INVALID
        kinds = list(args)
    else:
        kinds = [args[0]] * len(value)
    items = [convert(k, v, f"{path}[{i}]", problems) for i, (k, v) in enumerate(zip(kinds, value))]
    return container(items)


def _mapping(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        return _wrong(path, value, f"{describe(args[0])}: {describe(args[1])}", problems)
    if typing.get_origin(args[0]) is Literal:
        for key in value:
            convert(args[0], key, f"a key of {path}", problems)
    keys = {k: int(k) if args[0] is int and str(k).lstrip("-").isdigit() else k for k in value}
    return {keys[k]: convert(args[1], v, f"{path}.{k}", problems) for k, v in value.items()}


def _wrong(path: str, value: Any, wanted: str, problems: list[str]) -> Any:
    got = "null" if value is None else f"{value!r} ({type(value).__name__})"
    problems.append(f"{path.rstrip('.') or 'the configuration'}: {got} where {wanted} belongs")
    return _INVALID
