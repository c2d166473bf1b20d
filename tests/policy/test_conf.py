"""Every yaml of conf/ is used and composes; every stage shows its help and its configuration."""

import importlib
from pathlib import Path

import pytest

from mgpt.cli import command
from mgpt.cli.compose import group_choices
from mgpt.cli.stage_table import STAGES, Stage, compose_stage, configure, load_stage
from mgpt.errors import ConfigError, MgptError
from mgpt.stages.recipe import compose_recipe, read_recipe

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
RECIPES = sorted(file.stem for file in (CONF / "recipe").glob("*.yaml"))
OF = {"submit": ["pipeline"]}  # what a command about another is given
STAGE_NAMES = [name for name in STAGES if name != "pipeline"]


def test_every_yaml_stands_where_it_is_found() -> None:
    reachable = {f"{name}.yaml" for name in STAGES}
    for name in STAGES:
        for group, (_, choices) in group_choices(name):
            folders = [group, f"{name}/{group}"]
            reachable |= {f"{folder}/{choice}.yaml" for folder in folders for choice in choices}
    found = {str(file.relative_to(CONF)) for file in CONF.rglob("*.yaml")}
    assert found <= reachable, found - reachable
    assert {f"{name}.yaml" for name in STAGES} <= found


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_every_choice_of_every_group_composes(name: str) -> None:
    module = load_stage(name)
    for group, (_, choices) in group_choices(name):
        for choice in choices:
            composed = compose_stage(name, module, [*OF.get(name, []), f"{group}={choice}"])
            try:
                configure(module, composed)
            except ConfigError as error:  # fields that a person must give, and nothing else
                problems = str(error).splitlines()[1:]
                assert all("missing; give" in problem for problem in problems), problems


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_accepted_by_its_stages(recipe: str, tmp_path: Path) -> None:
    composed = compose_recipe([f"recipe={recipe}", f"output={tmp_path}"])
    entries = read_recipe(composed)
    assert entries[-1].stage == "report" or recipe.endswith("gpu"), "a full-size one is one stage"


@pytest.mark.parametrize("name", list(STAGES))
def test_help_names_every_field(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"mgpt {name}" in shown and "output" in shown and "example" in shown


@pytest.mark.parametrize("name", list(STAGES))
def test_help_is_the_stage_s_own_docstring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage = STAGES[name]
    doc = stage.doc
    assert "\n".join(doc) in (importlib.import_module(stage.module).__doc__ or "")
    assert doc[0].startswith(f"mgpt {name}: ") and doc[0].endswith(".")
    reads, writes = (
        [number for number, line in enumerate(doc) if line.startswith(label)]
        for label in ("Reads: ", "Writes: ")
    )
    assert len(reads) == 1 and writes == [reads[0] + 1], "one line each, one below the other"
    assert doc[reads[0] - 1] == doc[writes[0] + 1] == "", "a paragraph of their own"
    assert (f"Reads: {stage.reads}", f"Writes: {stage.writes}") == (doc[reads[0]], doc[writes[0]])
    assert command.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"  reads   {stage.reads}\n  writes  {stage.writes}\n" in shown
    others = [line.strip() for line in doc[1:] if not line.startswith(("Reads: ", "Writes: "))]
    assert all(line in shown for line in others)


def test_stages_of_one_module_have_a_part_of_its_docstring_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_stages.py").write_text(
        'r"""Two stages.\n\nmgpt one: first.\n\nReads: a\nWrites: b\n\n    mgpt one x=1\n\n'
        'mgpt two: second.\n\nReads: c\nWrites: d\n"""\nraise ImportError("only read")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    one, two = (Stage(name, "two_stages") for name in ("one", "two"))
    assert (one.what, one.reads, one.writes) == ("first", "a", "b")
    assert (two.what, two.reads, two.writes) == ("second", "c", "d")


def test_help_lists_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, stage in STAGES.items():
        assert name in shown and stage.what in shown
        assert f"{stage.reads} → {stage.writes}\n" in shown


def test_help_does_not_contradict_the_stage(tmp_path: Path) -> None:
    """train_text was said to read raw shards, which it refuses."""
    assert STAGES["train_text"].reads == "tokenised shards"
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "00000.tar").write_bytes(b"")
    module = load_stage("train_text")
    words = [f"input={raw}", f"output={tmp_path / 'text'}", "tracking=disabled"]
    cfg = configure(module, compose_stage("train_text", module, words))
    with pytest.raises(MgptError, match="tokenised"):
        module.main(cfg)


def test_cfg_job_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["pack", "--cfg", "job", "source=photos", "output=it's (a), b"]) == 0
    shown = capsys.readouterr().out
    assert "output: it's (a), b" in shown and "mode: auto" in shown
