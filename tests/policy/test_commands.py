"""Every command line that a reader is shown, in README, help and docstrings, is accepted as it is.

Each is resolved down to the stage's dataclass, with nothing run, so that a renamed stage, field or
choice fails here and not at the reader's.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt.cli.stage_table import STAGES, compose_stage, configure, load_stage

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PLACEHOLDERS: set[str] = set()
"""Command lines that stand for others and are no commands themselves."""


def command_lines(text: str) -> Iterator[str]:
    """Lines that begin with a command, those that a backslash continues joined."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        words = shlex.split(line, comments=True) if re.match(r"\s*(mgpt|\./)", line) else []
        if words and (words[0] != "mgpt" or (words[1:2] and words[1] in STAGES)):
            yield shlex.join(words)


def bash_blocks(text: str) -> str:
    return "\n".join(re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.M | re.S))


def shown() -> dict[str, str]:
    """Command line → where it is shown."""
    found = dict.fromkeys(command_lines(bash_blocks(README)), "README")
    for name, stage in STAGES.items():
        examples = list(command_lines("\n".join(stage.doc)))
        assert any(line.startswith(f"mgpt {name} ") for line in examples), f"{name} shows none"
        found |= dict.fromkeys(examples, stage.module)
    return {line: where for line, where in found.items() if line not in PLACEHOLDERS}


SHOWN = shown()


def test_the_readme_is_read() -> None:
    lines = list(command_lines(bash_blocks(README)))
    assert any(line.startswith("mgpt pipeline recipe=") for line in lines)
    assert any(line.startswith("mgpt generate ") for line in lines), "a continued line"
    assert "./launch/quickstart.sh" in lines, "a comment is no argument"


@pytest.mark.parametrize("line", SHOWN)
def test_it_is_accepted(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *words = shlex.split(line)
    if command != "mgpt":
        assert (ROOT / command).exists(), f"{SHOWN[line]} shows {line}"
        return
    monkeypatch.chdir(tmp_path)
    name, *overrides = words
    module = load_stage(name)
    configure(module, compose_stage(name, module, overrides))
    assert not list(tmp_path.iterdir()), "resolving a configuration writes nothing"


def test_the_readme_names_every_stage_and_no_other() -> None:
    rows = re.findall(r"^\| `mgpt (\w+)`", README, re.M)
    assert sorted(rows) == sorted(STAGES)
