"""From overrides to dataclasses: quoting, types, and every mistake in one message."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data_pipeline.pack import Config as PackStage
from mgpt.cli import command
from mgpt.cli.config import compose, from_hydra, quote, schema_of
from mgpt.cli.settings import settings_of, type_at
from mgpt.errors import ConfigError


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-4  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be above 0")


@dataclass(frozen=True)
class Source:
    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class Config:
    """kind: what is made."""

    name: str
    kind: Literal["a", "b"] = "a"
    procs: int | Literal["auto"] = "auto"
    size: int | None = None
    sides: list[int] = field(default_factory=lambda: [1])
    input: str | list[str] = ""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.5))
    """The optimiser."""
    sources: dict[str, Source] = field(default_factory=dict)


def through_hydra(value: str, kind: Any) -> Any:
    """What OmegaConf resolves after a value has gone through quoting and Hydra's grammar."""
    parsed = OverridesParser.create().parse_override(f"++key={quote(value, kind)}").value()
    node = OmegaConf.create({"key": None})
    OmegaConf.update(node, "key", parsed)
    return OmegaConf.to_container(node, resolve=True)["key"]  # type: ignore[index,call-overload]


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=20))
@example("a, b (c) = {1..3} it's")
@example("s3://bucket/key?x=1&y=[2]")
@example("1024")
@example("null")
@example("${oc.env:HOME}")
@example("\\${a}\\")
@example("\\'")
@example("")
@settings(max_examples=300, deadline=None)
def test_text_means_itself(value: str) -> None:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return  # already quoted: left to Hydra
    assert through_hydra(value, str) == value


@pytest.mark.parametrize(
    ("value", "kind", "want"),
    [
        ("'a, b'", str, "a, b"),
        ("[32,64]", list[int], [32, 64]),
        ("[a.tar,b.tar]", str | list[str], ["a.tar", "b.tar"]),
        ("null", str | None, None),
        ("null", str, "null"),
        ("2", int | Literal["auto"], 2),
        ("auto", int | Literal["auto"], "auto"),
        ("1e-4", float, 1e-4),
        ("true", bool, True),
    ],
)
def test_values_by_type(value: str, kind: Any, want: Any) -> None:
    assert through_hydra(value, kind) == want


def test_a_tree_becomes_dataclasses() -> None:
    tree = {
        "name": "x",
        "procs": 2,
        "sides": [3, 4],
        "input": ["a", "b"],
        "optim": {"lr": 1, "betas": [0, 1]},
        "sources": {"s": {"path": "p"}},
    }
    want = Config(
        "x",
        procs=2,
        sides=[3, 4],
        input=["a", "b"],
        optim=Optim(1.0, (0.0, 1.0)),
        sources={"s": Source("p")},
    )
    assert from_hydra(Config, tree) == want


def test_every_mistake_is_in_one_message() -> None:
    tree = {
        "kind": "c",
        "procs": "many",
        "size": 1.5,
        "sides": "3",
        "optim": {"lr": -1.0, "betas": [0.9]},
        "sources": {"s": {"weight": True}},
        "nme": "x",
    }
    with pytest.raises(ConfigError) as caught:
        from_hydra(Config, tree)
    message = str(caught.value)
    for part in (
        "name: missing; give name=…",
        "nme: no such field; did you mean 'name'?",
        "kind: 'c' (str) where a | b belongs",
        "procs: 'many' (str) where int | auto belongs",
        "size: 1.5 (float) where int belongs",
        "sides: '3' (str) where list of int belongs",
        "optim.betas: 1 values where 2 belong",
        "sources.s.path: missing",
        "sources.s.weight: True (bool) where float belongs",
    ):
        assert part in message, message


def test_a_refusal_of_the_dataclass_has_its_path() -> None:
    with pytest.raises(ConfigError, match=r"optim: lr=-1\.0 must be above 0"):
        from_hydra(Config, {"name": "x", "optim": {"lr": -1.0}})


def test_settings_know_types_defaults_and_words() -> None:
    found = {setting.path: setting for setting in settings_of(Config)}
    assert found["name"].default == "???"
    assert found["kind"].doc == "what is made."
    assert (found["optim.lr"].default, found["optim.lr"].doc) == (0.5, "peak learning rate")
    assert found["sources.<name>.path"].default == "???"
    assert type_at(Config, "sources.any.weight") is float
    assert type_at(Config, "optim.nothing") is None


def test_unknown_overrides_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("pack", schema_of(PackStage), ["sorce=scenes", "worker=2", "tracking=none", "x"])
    message = str(caught.value)
    assert "sorce: no such field; did you mean 'source'?" in message
    assert "worker: no such field; did you mean 'workers'" in message
    assert "tracking=none: tracking is one of auto, disabled, offline, online" in message
    assert "'x' is not an override" in message


def test_an_entry_of_a_mapping_can_be_removed() -> None:
    schema = schema_of(PackStage)
    composed = compose("pack", schema, ["source=scenes", "~scenes.kind_weights.views"])
    assert set(composed.node.scenes.kind_weights) == {"objects", "mannequin"}
    with pytest.raises(ConfigError, match="no such entry"):
        compose("pack", schema, ["~scenes.kind_weights.nothing"])


def test_groups_choose_and_fields_win(tmp_path: Path) -> None:
    from mgpt.stages.pretrain import Config as PretrainStage

    words = ["model=7b", "parallel=zero3", "parallel.procs=3", "model.max_positions=8192"]
    node = compose("pretrain", schema_of(PretrainStage), words).node
    assert (node.model.size, node.model.max_positions) == ("7b", 8192)
    assert (node.parallel.name, node.parallel.procs) == ("zero3", 3)


def test_an_unknown_stage_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["tokenise"]) == 2
    assert "did you mean 'tokenize'?" in capsys.readouterr().err
