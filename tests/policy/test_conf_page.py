"""The generated part of conf/README.md, recipes and fields, is what the code says.

`python tests/policy/test_conf_page.py` writes it after a change of a recipe or a field.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from mgpt.cli.help import plain_text, stage_settings
from mgpt.cli.settings import MISSING, Setting
from mgpt.cli.stage_table import STAGES, load_stage
from mgpt.stages.recipe import compose_recipe

CONF = Path(__file__).parents[2] / "conf"
PAGE = CONF / "README.md"
MARK = "<!-- Everything below is generated: python tests/policy/test_conf_page.py -->\n"

Defaults = dict[str, str]  # stage → default
Fields = dict[tuple[str, str, str], Defaults]  # (path, type, meaning) → defaults


def table(*rows: tuple[str, ...]) -> Iterator[str]:
    """A markdown table, the head first."""
    head, *body = rows
    for row in (head, ("---",) * len(head), *body):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def head_comment(file: Path) -> str:
    """The first sentences of a recipe's yaml, its comment."""
    lines = file.read_text().splitlines()[1:]
    comment = [line[2:] for line in lines[: next(n for n, x in enumerate(lines) if x[:1] != "#")]]
    return " ".join(comment)


def recipes() -> Iterator[str]:
    rows = [("recipe", "stages", "model", "backend", "machines", "about")]
    for file in sorted((CONF / "recipe").glob("*.yaml")):
        tree = compose_recipe([f"recipe={file.stem}"]).tree
        entries = [tree[name] for name in tree["order"]]
        stages = ", ".join(dict.fromkeys(entry["stage"] for entry in entries))
        nodes = tree.get("nodes")
        machines = (
            f"{nodes} x {tree['parallel']['procs']} {tree['device']}" if nodes else "this one"
        )
        size, backend = tree["model"]["size"], tree["parallel"]["name"]
        rows.append((f"`{file.stem}`", stages, size, backend, machines, head_comment(file)))
    yield from ("", "## Recipes", "", *table(*rows))


def all_settings() -> dict[str, list[Setting]]:
    """The fields of every stage."""
    return {name: list(stage_settings(name, load_stage(name).Config)) for name in STAGES}


def identity(setting: Setting) -> tuple[str, str, str]:
    """What makes a field of two stages the same one."""
    return setting.path, setting.kind, setting.doc


def sections(settings: dict[str, list[Setting]]) -> dict[str, Fields]:
    """Fields by heading: groups of fields that several stages share, and those of one stage."""
    users = Counter(identity(setting) for found in settings.values() for setting in found)
    of_config = defaultdict(list)
    for stage in settings:
        of_config[load_stage(stage).Config].append(stage)
    own: dict[str, Fields] = defaultdict(lambda: defaultdict(dict))
    shared: dict[str, Fields] = defaultdict(lambda: defaultdict(dict))
    for stage, found in settings.items():
        alike = of_config[load_stage(stage).Config]
        for setting in found:
            group, dot, _ = setting.path.partition(".")
            is_shared = dot and users[identity(setting)] > 1
            place = shared[group] if is_shared else own["mgpt " + ", ".join(alike)]
            default = "required" if setting.default == MISSING else plain_text(setting.default)
            place[identity(setting)][stage] = default
    return {**shared, **own}


def default_text(defaults: Defaults) -> str:
    """One default, or each with the stages that have it."""
    stages_of = defaultdict(list)
    for stage, default in defaults.items():
        stages_of[default].append(stage)
    if len(stages_of) == 1:
        return "required" if "required" in stages_of else f"`{next(iter(stages_of))}`"
    return "; ".join(f"`{value}` ({', '.join(stages)})" for value, stages in stages_of.items())


def fields() -> Iterator[str]:
    yield from ("", "## Fields", "")
    yield "Fields that several stages share are listed once, under their first word."
    for heading, found in sections(all_settings()).items():
        yield from ("", f"### {heading}", "")
        stages = list(dict.fromkeys(stage for defaults in found.values() for stage in defaults))
        if not heading.startswith("mgpt "):
            yield from (f"Of {', '.join(stages)}.", "")
        rows = [("field", "default", "type", "meaning")]
        for (path, kind, doc), defaults in found.items():
            some = "" if len(defaults) == len(stages) else f" (only {', '.join(defaults)})"
            rows.append((f"`{path}`", default_text(defaults), kind, doc + some))
        yield from table(*rows)


def generated() -> str:
    return "\n".join([*recipes(), *fields()]) + "\n"


def test_the_page_is_what_the_code_says() -> None:
    written = PAGE.read_text().partition(MARK)[2]
    assert written == generated(), "conf/README.md is out of date: run python " + __file__


def test_every_field_is_on_the_page() -> None:
    text = PAGE.read_text()
    paths = {setting.path for found in all_settings().values() for setting in found}
    assert not {path for path in paths if f"| `{path}` |" not in text}


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + generated())
