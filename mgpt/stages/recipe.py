"""A recipe read: ordered entries, each a stage with its overrides, weights handed on.

A recipe is a yaml of the group `recipe`, or a file anywhere (`recipe=my/recipe.yaml`). `order`
names the entries, and each entry is a mapping of its `stage` and that stage's fields. What an entry
leaves out is filled in:

- `output`: `<pipeline's output>/<entry>`;
- the groups model, parallel and tracking, seed and redo: the pipeline's own;
- `init_from` of a training stage: the training entry before it; `ckpt`: the last one;
- an entry with `rungs: ["32", "64"]` is one stage a rung, named `<entry>/32`; fields under a
  rung's name are for that rung, and `resolution` is the rung.

    composed = compose_recipe(["recipe=quickstart", "fp_sft.64.steps=20"])
    [entry.name for entry in read_recipe(composed)]       # ['pack', …, 'fp_sft/64', …]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mgpt.cli.config import (
    Composed,
    Schema,
    add_choice,
    compose,
    group_choices,
    nearest,
    quote,
    read_mapping,
    schema_of,
)
from mgpt.cli.settings import MISSING, settings_of, type_at
from mgpt.cli.stage_table import STAGES, compose_stage, configure, load_stage
from mgpt.errors import ConfigError
from mgpt.lifecycle.folder import flatten
from mgpt.parallel.backend import ParallelConfig
from mgpt.stages.build import ModelConfig
from mgpt.tracking.tracker import TrackingConfig

TRAINING = ("pretrain", "fp_sft", "omni_sft")
SHARED_GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "tracking": TrackingConfig,
}
_PLAIN_WORD = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Entry:
    """One stage of a pipeline: its command is `mgpt <stage> <overrides>`."""

    name: str
    stage: str
    overrides: tuple[str, ...]
    config: Any

    @property
    def module(self) -> ModuleType:
        return load_stage(self.stage)


def compose_recipe(overrides: Sequence[str]) -> Composed:
    """The recipe with the overrides in it. Raises ConfigError that lists every mistake."""
    overrides, own_name = _with_own_file(overrides)
    chosen = [word for word in overrides if word.startswith("recipe=")]
    bare = compose("pipeline", Schema(lambda path: None, [], {}), chosen)
    _check_entries(bare.node)
    stages = {name: _stage_of(bare.node, name) for name in bare.node.order}
    rungs = {name: [str(r) for r in bare.node[name].get("rungs", [])] for name in stages}
    configs = {name: load_stage(stage).Config for name, stage in stages.items()}
    own = {  # the recipe's own values, such as output and vq, which entries refer to
        str(key): type(bare.node[key])
        for key in bare.node
        if not OmegaConf.is_config(bare.node[key])
    }

    def type_of(path: str) -> Any | None:
        head, _, rest = path.partition(".")
        if head in own and not rest:
            return own[head]
        if head in SHARED_GROUPS:
            return type_at(SHARED_GROUPS[head], rest) if rest else None
        if head not in configs:
            return None
        rung, _, below = rest.partition(".")
        rest = below if rung in rungs[head] else rest
        return type_at(configs[head], rest) if rest else None

    names = [*own]
    names += [f"{g}.{s.path}" for g, cls in SHARED_GROUPS.items() for s in settings_of(cls)]
    names += [f"{name}.{s.path}" for name, cls in configs.items() for s in settings_of(cls)]
    composed = compose("pipeline", Schema(type_of, names, {}), overrides)
    if own_name is None:
        return composed
    return Composed(composed.node, {**composed.choices, "recipe": own_name})


def _with_own_file(overrides: Sequence[str]) -> tuple[list[str], str | None]:
    """The overrides with `recipe=FILE` as a choice of the group, and that recipe's name.

    The name is None for a recipe of `conf/recipe`. Raises ConfigError for a file that is missing.
    """
    words, name = list(overrides), None
    for index, word in enumerate(words):
        key, _, value = word.partition("=")
        path = Path(value.strip("'\""))
        if key == "recipe" and (path.suffix in (".yaml", ".yml") or len(path.parts) > 1):
            name = path.stem
            add_choice("recipe", f"{name} of your own", read_mapping(path, "recipe"))
            words[index] = f"recipe={name} of your own"
    return words, name


def _check_entries(node: DictConfig) -> None:
    """Raises ConfigError for a recipe without what every recipe has."""
    if not OmegaConf.is_list(node.get("order")) or not node.order:
        raise ConfigError("the recipe has no `order`; list the names of its entries there")
    lacking = [name for name in node.order if not OmegaConf.is_dict(node.get(name))]
    if lacking:
        raise ConfigError(
            f"the recipe's order names {', '.join(map(str, lacking))}, which it has no fields of; "
            "give each entry a mapping with its `stage`"
        )
    if not node.get("output"):
        raise ConfigError("the recipe has no `output`, the folder of the whole pipeline")


def _stage_of(node: DictConfig, name: str) -> str:
    stage = node.get(name, {}).get("stage", MISSING)
    if stage not in STAGES or stage == "pipeline":
        hint = nearest(str(stage), STAGES)
        raise ConfigError(f"recipe entry {name}: stage={stage!r} is no stage{hint}")
    if not hasattr(load_stage(stage), "inputs"):
        raise ConfigError(
            f"recipe entry {name}: mgpt {stage} keeps no record of what is complete, so a "
            "pipeline cannot go on after it; run it as a command of its own"
        )
    return str(stage)


def read_recipe(composed: Composed, group: str = "") -> list[Entry]:
    """The entries in order, rungs expanded, each checked against its stage.

    `group` names the tracker's group. Raises one ConfigError with the mistakes of all entries.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    last_trained: str | None = None
    shared = _shared_overrides(composed, group)
    for name, stage, values in _expanded(composed.node):
        values = {"output": f"{composed.node.output}/{name}", **values}
        schema = schema_of(load_stage(stage).Config)
        for field, needed_by in (("init_from", TRAINING), ("ckpt", ("generate", "evaluate"))):
            if stage in needed_by and last_trained is not None:
                values.setdefault(field, last_trained)
        overrides = _overrides(stage, values, shared, schema)
        try:
            config = configure(
                load_stage(stage), compose_stage(stage, load_stage(stage), overrides)
            )
        except ConfigError as error:
            problems.append(f"{name}: {error}")
            continue
        entries.append(Entry(name, stage, tuple(overrides), config))
        if stage in TRAINING:
            last_trained = str(values["output"])
    if problems:
        raise ConfigError("\n".join(["the recipe has mistakes:", *problems]))
    return entries


def _expanded(node: DictConfig) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, stage, fields) of every entry, one a rung where it has rungs."""
    expanded: list[tuple[str, str, dict[str, Any]]] = []
    for name in node.order:
        tree = OmegaConf.to_container(node[name], resolve=True)
        assert isinstance(tree, dict)
        values = {str(key): value for key, value in tree.items()}
        stage, rungs = str(values.pop("stage")), [str(rung) for rung in values.pop("rungs", [])]
        own = {rung: values.pop(rung, None) or {} for rung in rungs}
        for rung in rungs:
            merged = OmegaConf.merge(values, own[rung])
            fields = OmegaConf.to_container(merged)
            assert isinstance(fields, dict)
            expanded.append((f"{name}/{rung}", stage, {"resolution": rung, **fields}))  # type: ignore[dict-item]
        if not rungs:
            expanded.append((name, stage, values))
    return expanded


def _shared_overrides(composed: Composed, group: str) -> dict[str, list[str]]:
    """First part of the key → the pipeline's own overrides for stages that have it."""
    node = composed.node
    shared: dict[str, list[str]] = {}
    for name in SHARED_GROUPS:
        choice = composed.choices[name]
        plain = compose(f"{name}/{choice}", Schema(lambda path: None, [], {}), []).node
        base = dict(flatten(OmegaConf.to_container(plain[name], resolve=True)))
        now = dict(flatten(OmegaConf.to_container(node[name], resolve=True)))
        changed = {key: value for key, value in now.items() if base.get(key, MISSING) != value}
        shared[name] = [f"{name}={choice}"]
        shared[name] += [f"{name}.{key}={_word(value)}" for key, value in changed.items()]
    if group and not node.tracking.get("group"):
        shared["tracking"].append(f"tracking.group={group}")
    shared["seed"] = [f"seed={node.seed}"]
    shared["redo"] = ["redo=true"] if node.redo else []
    return shared


def _overrides(
    stage: str, values: Mapping[str, Any], shared: Mapping[str, list[str]], schema: Schema
) -> list[str]:
    """The entry's fields as command line words; its own before the pipeline's."""
    groups = dict(group_choices(stage))
    words: list[str] = []
    for key, value in values.items():
        if key in groups and not isinstance(value, dict):
            words.append(f"{key}={value}")
        elif value == {} or value == []:
            continue
        else:
            words += [f"{path}={_word(leaf)}" for path, leaf in _leaves(key, value)]
    for key, own in shared.items():
        known = key in groups if key in SHARED_GROUPS else schema.type_of(key) is not None
        is_chosen = isinstance(values.get(key), (str, int, bool))
        if known and not is_chosen:
            words = [*own, *words]
    return words


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    """Leaves of nested mappings; a list is a leaf."""
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for key, item in value.items() for leaf in _leaves(f"{path}.{key}", item)]


def _word(value: Any) -> str:
    """A value as a person would write it after `=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_item(item) for item in value)}]"
    return str(value)


def _item(item: Any) -> str:
    """An element of a list, quoted where it is no plain word: lists reach Hydra as they are."""
    if not isinstance(item, str):
        return _word(item)
    is_plain = _PLAIN_WORD.fullmatch(item) and item not in ("null", "true", "false")
    return item if is_plain else quote(item, str)
