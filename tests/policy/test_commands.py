"""Every command line that a reader is shown, in README pages, help and docstrings, is accepted.

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
FOLDERS = ("conf", "data_pipeline", "launch", "mgpt", "tests")
PAGES = [ROOT / "README.md", *sorted(p for f in FOLDERS for p in (ROOT / f).rglob("README.md"))]
MAX_README_WORDS = 1_500
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
    found = {}
    for page in PAGES:
        lines = command_lines(bash_blocks(page.read_text()))
        found |= dict.fromkeys(lines, str(page.relative_to(ROOT)))
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


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MAX_README_WORDS


def test_a_link_leads_to_every_page() -> None:
    reached = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([\w./-]+)[^)]*\)", page.read_text())
    }
    assert reached >= set(PAGES[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_opens_with_a_question_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    if page.parent in {ROOT / folder for folder in FOLDERS} or page.parent.parent == ROOT / "mgpt":
        assert re.match(r"# .*\?\n", text), "the question its reader has"
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        file = page.parent / target if target else page
        assert file.exists(), f"{page}: {target}"
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:mgpt|data_pipeline|tests|conf|launch)/[\w/.-]+)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_readme_names_every_stage_and_no_other() -> None:
    rows = re.findall(r"^\| `mgpt (\w+)`", README, re.M)
    assert sorted(rows) == sorted(STAGES)
