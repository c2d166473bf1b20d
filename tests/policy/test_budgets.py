"""Sizes of files and functions, and names that say nothing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for folder in ("mgpt", "data_pipeline", "launch", "conf", "tests")
    for file in (ROOT / folder).rglob("*.py")
)
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_TRAINER_LINES = 500, 80, 450
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_sizes(file: Path) -> None:
    text = file.read_text()
    limit = MAX_TRAINER_LINES if file.name == "trainer.py" else MAX_FILE_LINES
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_every_name_says_something() -> None:
    for file in FILES:
        assert not EMPTY_NAMES & {part.lower() for part in file.with_suffix("").parts[-3:]}, file


def test_every_module_of_the_library_says_what_it_does() -> None:
    for file in FILES:
        if file.is_relative_to(ROOT / "tests"):
            continue
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"
