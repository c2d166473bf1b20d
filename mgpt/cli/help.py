"""The text of `mgpt <stage> --help`, from the stage's dataclasses and configuration groups.

>>> print(stage_help("pack", STAGES["pack"], load_stage("pack")))
mgpt pack: pictures and captions into raw shards
…
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from mgpt.cli.compose import compose, group_choices, schema_of
from mgpt.cli.settings import MISSING, Setting, settings_of
from mgpt.cli.stage_table import Stage


def stage_help(name: str, stage: Stage, module: Any) -> str:
    """What it does, what it reads and writes, its groups, its fields with defaults, an example."""
    lines = [
        f"mgpt {name}: {stage.what}",
        "",
        f"  reads   {stage.reads}",
        f"  writes  {stage.writes}",
        *_description(stage.doc[1:]),
    ]
    groups = group_choices(name)
    if groups:
        lines += ["", "groups (group=choice)"]
        lines += [
            f"  {group:<12} {chosen} of {', '.join(all_)}"
            f"{', or any other number' if all(one.isdigit() for one in all_) else ''}"
            for group, (chosen, all_) in groups
        ]
    lines += ["", "fields (field=value; * must be given)"]
    lines += _fields(stage_settings(name, module.Config))
    if hasattr(module, "help_lines"):
        lines += ["", *module.help_lines()]
    return "\n".join(lines)


def _description(doc: Iterable[str]) -> list[str]:
    """What else the docstring says, then its examples."""
    lines = [line for line in doc if not line.startswith(("Reads: ", "Writes: "))]
    text = "\n".join(line for line in lines if not line.startswith("    "))
    examples = [line[2:] for line in lines if line.startswith("    ")]
    parts = [part.strip().splitlines() for part in text.split("\n\n") if part.strip()]
    description = [line for part in parts for line in ["", *(f"  {line}" for line in part)]]
    return [*description, "", "example" if len(examples) == 1 else "examples", *examples]


def stage_settings(name: str, cls: type) -> Iterator[Setting]:
    """The fields, with the values that the stage's yaml gives as their defaults."""
    tree = compose(name, schema_of(cls)).tree
    for setting in settings_of(cls):
        value: Any = setting.default if "<name>" in setting.path else tree
        for name in () if "<name>" in setting.path else setting.path.split("."):
            value = value[name]
        yield replace(setting, default=value)


def _fields(settings: Iterable[Setting]) -> list[str]:
    width = shutil.get_terminal_size((100, 24)).columns
    lines = []
    for setting in settings:
        required = setting.default == MISSING
        default = "" if required else f" = {plain_text(setting.default)}"
        lines.append(f"{'* ' if required else '  '}{setting.path}{default}    ({setting.kind})")
        lines += textwrap.wrap(
            setting.doc, max(width - 2, 60), initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return lines


def plain_text(value: object) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(plain_text(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else "''" if value == "" else str(value)
