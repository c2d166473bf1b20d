"""Pickles are read in two places only, released weights, with the restricted unpickler."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for room in ("mgpt", "data_pipeline") for path in (ROOT / room).rglob("*.py"))
READERS = {"mgpt/weights/meta.py", "mgpt/tokenizers/released_files.py"}
# What unpickles, or does where it is not told otherwise.
UNPICKLES = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load"}
NUMPY = {"np.load", "np.lib.format.read_array"}


def calls(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every call of a dotted name, with its keywords as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {str(k.arg): ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_unpickles(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for name, keywords in calls(path):
        if name in UNPICKLES:
            assert place in READERS and name == "torch.load", f"{place} calls {name}"
            assert keywords["weights_only"] == "True", place
        if name in NUMPY:
            assert keywords.get("allow_pickle") == "False", f"{place}: {name}"
        assert name != "yaml.load", place


def test_the_two_readers_are_there() -> None:
    assert {
        place for place in READERS if any(n == "torch.load" for n, _ in calls(ROOT / place))
    } == READERS
