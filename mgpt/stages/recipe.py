"""A recipe read: ordered entries, each a stage with its configuration, weights handed on.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from mgpt.cli.compose import (
    NO_FIELDS,
    Schema,
    add_choice,
    compose,
    group_choices,
    parse_value,
    schema_of,
)
from mgpt.cli.config import Composed, nearest
from mgpt.cli.settings import MISSING, is_text, settings_of, type_at
from mgpt.cli.stage_table import STAGES, TRAINING, configure, load_stage
from mgpt.errors import ConfigError
from mgpt.parallel.backend import ParallelConfig
from mgpt.stages.build import ModelConfig
from mgpt.tracking.tracker import TrackingConfig

SHARED_GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "tracking": TrackingConfig,
}
_OF_YOUR_OWN = "a file of your own"  # the choice of recipe= that stands for one


@dataclass(frozen=True)
class Entry:
    """One stage of a pipeline, with its resolved configuration."""

    name: str
    stage: str
    config: Any

    @property
    def module(self) -> Any:
        return load_stage(self.stage)


def compose_recipe(overrides: Sequence[str]) -> Composed:
    """The recipe with the overrides in it. Raises ConfigError that lists every mistake."""
    overrides, own_name = _with_own_file(overrides)
    chosen = [word for word in overrides if word.startswith("recipe=")]
    bare = compose("pipeline", NO_FIELDS, chosen).tree
    _check_entries(bare)
    stages = {name: _stage_of(bare, name) for name in bare["order"]}
    rungs = {name: [str(rung) for rung in bare[name].get("rungs", [])] for name in stages}
    configs = {name: load_stage(stage).Config for name, stage in stages.items()}
    # The recipe's own values, such as output and vq, which entries refer to.
    own = {key: type(value) for key, value in bare.items() if not isinstance(value, (dict, list))}

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
    return Composed(composed.tree, {**composed.choices, "recipe": own_name})


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
            add_choice("recipe", _OF_YOUR_OWN, path)
            words[index] = f"recipe={_OF_YOUR_OWN}"
    return words, name


def _check_entries(tree: Mapping[str, Any]) -> None:
    """Raises ConfigError for a recipe without what every recipe has."""
    order = tree.get("order")
    if not isinstance(order, list) or not order:
        raise ConfigError("the recipe has no `order`; list the names of its entries there")
    lacking = [name for name in order if not isinstance(tree.get(name), dict)]
    if lacking:
        raise ConfigError(
            f"the recipe's order names {', '.join(map(str, lacking))}, which it has no fields of; "
            "give each entry a mapping with its `stage`"
        )
    if not tree.get("output"):
        raise ConfigError("the recipe has no `output`, the folder of the whole pipeline")


def _stage_of(tree: Mapping[str, Any], name: str) -> str:
    stage = tree[name].get("stage", MISSING)
    if stage not in STAGES or stage == "pipeline":
        hint = nearest(str(stage), STAGES)
        raise ConfigError(f"recipe entry {name}: stage={stage!r} is no stage{hint}")
    if not hasattr(load_stage(stage), "inputs"):
        raise ConfigError(
            f"recipe entry {name}: mgpt {stage} keeps no record of what is complete, so a "
            "pipeline cannot resume after it; run it as a command of its own"
        )
    return str(stage)


def read_recipe(composed: Composed, group: str = "") -> list[Entry]:
    """The entries in order, rungs expanded, each checked against its stage.

    `group` names the tracker's group. Raises one ConfigError with the mistakes of all entries.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    last_trained: str | None = None
    shared = _Shared.of(composed, group)
    for name, stage, values in _expanded(composed.tree):
        values = {"output": f"{composed.tree['output']}/{name}", **values}
        for field, needed_by in (("init_from", TRAINING), ("ckpt", ("generate", "evaluate"))):
            if stage in needed_by and last_trained is not None:
                values.setdefault(field, last_trained)
        try:
            config = configure(load_stage(stage), _compose_entry(stage, values, shared))
        except ConfigError as error:
            problems.append(f"{name}: {error}")
            continue
        entries.append(Entry(name, stage, config))
        if stage in TRAINING:
            last_trained = str(values["output"])
    if problems:
        raise ConfigError("\n".join(["the recipe has mistakes:", *problems]))
    return entries


def _expanded(tree: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, stage, fields) of every entry, one a rung where it has rungs."""
    expanded: list[tuple[str, str, dict[str, Any]]] = []
    for name in tree["order"]:
        values = {str(key): value for key, value in tree[name].items()}
        stage, rungs = str(values.pop("stage")), [str(rung) for rung in values.pop("rungs", [])]
        own = {rung: values.pop(rung, None) or {} for rung in rungs}
        for rung in rungs:
            fields = {"resolution": rung, **_merged(values, own[rung])}
            expanded.append((f"{name}/{rung}", stage, fields))
        if not rungs:
            expanded.append((name, stage, values))
    return expanded


@dataclass(frozen=True)
class _Shared:
    """What a pipeline says for all stages: choices of groups, and fields."""

    choices: dict[str, str]
    fields: dict[str, Any]

    @classmethod
    def of(cls, composed: Composed, group: str) -> _Shared:
        tree, choices, fields = composed.tree, {}, {}
        for name in SHARED_GROUPS:
            choices[name] = composed.choices[name]
            chosen = compose(f"{name}/{choices[name]}", NO_FIELDS).tree[name]
            given = {key: v for key, v in tree[name].items() if chosen.get(key, MISSING) != v}
            fields[name] = given
        if group and not tree["tracking"].get("group"):
            fields["tracking"]["group"] = group
        fields["seed"] = tree["seed"]
        return cls(choices, fields | ({"redo": True} if tree["redo"] else {}))


def _compose_entry(stage: str, values: Mapping[str, Any], shared: _Shared) -> Composed:
    """The configuration of an entry: its own fields, and the pipeline's where it has none."""
    schema, groups = schema_of(load_stage(stage).Config), dict(group_choices(stage))
    chosen = {
        key: str(value)
        for key, value in values.items()
        if key in groups and not isinstance(value, dict)
    }
    own = {key: value for key, value in values.items() if key not in chosen}
    known = {
        key: value
        for key, value in shared.fields.items()
        if key not in chosen
        and (key in groups if key in SHARED_GROUPS else schema.type_of(key) is not None)
    }
    choices = {key: value for key, value in shared.choices.items() if key in groups} | chosen
    return compose(
        stage,
        schema,
        [f"{key}={value}" for key, value in choices.items()],
        _as_typed(_merged(known, own), "", schema),
    )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of plain data, joined; values of `above` win."""
    joined = dict(below)
    for key, value in above.items():
        inner = joined.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        joined[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return joined


def _as_typed(value: Any, path: str, schema: Schema) -> Any:
    """A recipe's values by the types of their fields, as if written after `=`: `title: 2024` is a
    text, `steps: "20"` a number."""
    if isinstance(value, dict):
        return {k: _as_typed(v, f"{path}.{k}".lstrip("."), schema) for k, v in value.items()}
    kind = schema.type_of(path)
    is_scalar = isinstance(value, (str, bool, int, float))
    if kind in (None, Any) or not is_scalar or isinstance(value, str) == is_text(kind):
        return value
    word = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        return parse_value(word, kind)
    except HydraException:
        return value
