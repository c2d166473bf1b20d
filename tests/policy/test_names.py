"""What stands in a table is named nowhere else: decoders and backends."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt.parallel.backend import BACKENDS

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "mgpt").rglob("*.py"), *(ROOT / "data_pipeline").rglob("*.py")])
DECODERS = {"Transformer", "TransformerConfig", "ParallelBlocks"}
# Released layouts are those of one decoder, which their converters make.
KNOW_DECODERS = ("mgpt/models/", "mgpt/weights/")
KNOW_BACKENDS = ("mgpt/parallel/",)


def names(tree: ast.AST) -> Iterator[str]:
    """Identifiers and imported names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def texts(tree: ast.AST) -> Iterator[str]:
    """String constants, whole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_tables_are_asked(file: Path) -> None:
    place, tree = str(file.relative_to(ROOT)), ast.parse(file.read_text())
    if not place.startswith(KNOW_DECODERS):
        assert not DECODERS & set(names(tree)), "ask mgpt.models.table"
    if not place.startswith(KNOW_BACKENDS):
        assert not BACKENDS.keys() & set(texts(tree)), "ask mgpt.parallel.backend"
