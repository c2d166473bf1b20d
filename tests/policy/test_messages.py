"""Every setting that an error message names exists: `field=` and `group.field` are no dead ends.

Read from the texts of all `raise` statements, and of what is printed before a process is ended.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt.cli.compose import group_choices
from mgpt.cli.settings import settings_of
from mgpt.cli.stage_table import STAGES, load_stage
from mgpt.launching.launcher import Launcher

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "mgpt").rglob("*.py"), *(ROOT / "data_pipeline").rglob("*.py")])
SPEAKERS = {"_say", "say", "print"}
NO_SETTING = {"model_parallel_size", "tie_word_embeddings", "model.params", "name", "value", "key"}
"""What stands before `=` in a message and is of another program's file, or a form and no name."""


def known_settings() -> tuple[set[str], set[str]]:
    """Dotted paths of every stage's fields with all their endings, and the first parts of paths."""
    paths: set[str] = set()
    for name in STAGES:
        module = load_stage(name)
        paths |= {setting.path for setting in settings_of(module.Config)}
        paths |= {group for group, _ in group_choices(name)}
    paths |= {f"launcher.{setting.path}" for setting in settings_of(Launcher)}
    endings = set()
    for path in paths:
        parts = path.split(".")
        endings |= {".".join(parts[start:]) for start in range(len(parts))}
        endings |= {".".join(parts[:stop]) for stop in range(1, len(parts))}
    return endings, {path.partition(".")[0] for path in paths if "." in path}


KNOWN, ROOTS = known_settings()


def messages(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what a file raises or says; values stand as <name>."""
    for node in ast.walk(ast.parse(file.read_text())):
        is_raise = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        called = node.func if isinstance(node, ast.Call) else None
        is_said = getattr(called, "id", getattr(called, "attr", None)) in SPEAKERS
        if is_raise or is_said:
            for part in ast.walk(node):
                if isinstance(part, ast.JoinedStr):
                    yield (
                        node.lineno,
                        "".join(
                            piece.value if isinstance(piece, ast.Constant) else "<name>"
                            for piece in part.values
                        ),
                    )
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield node.lineno, part.value


def named(text: str) -> Iterator[str]:
    """The settings that a text names."""
    word = r"(?:[a-z_][a-z0-9_]*|<name>)"
    for match in re.finditer(rf"(?<![\w.<>/$-])({word}(?:\.{word})*)=(?!=)", text):
        yield match[1]
    for match in re.finditer(rf"(?<![\w.<>/$=-])({word}(?:\.{word})+)(?![\w(/])", text):
        if match[1].partition(".")[0] in ROOTS:
            yield match[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_messages_name_settings_that_exist(file: Path) -> None:
    unknown = [
        (line, name)
        for line, text in messages(file)
        for name in named(text)
        if name not in KNOWN and not name.startswith("<name>") and name not in NO_SETTING
    ]
    assert not unknown, f"{file.relative_to(ROOT)}: no stage has {unknown}"


def test_the_test_sees_what_it_should() -> None:
    told = "set train.guard.hang_s or redo=true; guard.hang_s=0; data.sources.<name>.path, a.b"
    want = {"train.guard.hang_s", "redo", "guard.hang_s", "data.sources.<name>.path"}
    assert {*named(told)} == want
    assert "guard.hang_s" in KNOWN and "train.guard.hang_s" not in KNOWN
