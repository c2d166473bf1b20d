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
from types import ModuleType

from mgpt.cli.config import compose, group_choices, schema_of, select
from mgpt.cli.settings import MISSING, Setting, settings_of
from mgpt.cli.stage_table import Stage


def stage_help(name: str, stage: Stage, module: ModuleType) -> str:
    """What it does, what it reads and writes, its groups, its fields with defaults, an example."""
    lines = [
        f"mgpt {name}: {stage.what}",
        "",
        f"  reads   {stage.input}",
        f"  writes  {stage.output}",
        "",
        *_paragraphs(module.__doc__ or ""),
        "",
        "example",
        f"  mgpt {name} {stage.example}",
    ]
    groups = group_choices(name)
    if groups:
        lines += ["", "groups (group=choice)"]
        lines += [
            f"  {group:<12} {chosen} of {', '.join(all_)}"
            f"{', or any other number' if all(one.isdigit() for one in all_) else ''}"
            for group, (chosen, all_) in groups
        ]
    lines += ["", "fields (field=value; * must be given)", *_fields(_settings(name, module.Config))]
    if hasattr(module, "help_lines"):
        lines += ["", *module.help_lines()]
    return "\n".join(lines)


def _paragraphs(doc: str) -> list[str]:
    """The module's words up to its example."""
    words = doc.split("\n\n    ")[0].strip()
    return [f"  {line}".rstrip() for line in words.splitlines()]


def _settings(name: str, cls: type) -> Iterator[Setting]:
    """The fields, with the values that the stage's yaml gives as their defaults."""
    node = compose(name, schema_of(cls)).node
    for setting in settings_of(cls):
        given = setting.default if "<name>" in setting.path else select(node, setting.path)
        yield replace(setting, default=given)


def _fields(settings: Iterable[Setting]) -> list[str]:
    width = shutil.get_terminal_size((100, 24)).columns
    lines = []
    for setting in settings:
        required = setting.default == MISSING
        default = "" if required else f" = {_plain(setting.default)}"
        lines.append(f"{'* ' if required else '  '}{setting.path}{default}    ({setting.kind})")
        lines += textwrap.wrap(
            setting.doc, max(width - 2, 60), initial_indent=" " * 8, subsequent_indent=" " * 8
        )
    return lines


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_plain(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else "''" if value == "" else str(value)
