"""From overrides to dataclasses: quoting, types, and every mistake in one message."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data_pipeline.pack import Config as PackStage
from mgpt.cli import command
from mgpt.cli.compose import compose, parse_value, schema_of
from mgpt.cli.config import config_text, read_config, validate
from mgpt.cli.settings import settings_of, type_at
from mgpt.errors import ConfigError


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-4
    """Peak learning rate."""
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
    """What OmegaConf resolves of what is written after `=`."""
    node = OmegaConf.create({"key": None})
    OmegaConf.update(node, "key", parse_value(value, kind))
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
    assert validate(Config, tree) == want


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
        validate(Config, tree)
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


@dataclass(frozen=True)
class Shape:
    """Every form of type that a stage's fields have."""

    flag: bool = False
    count: int = 1
    rate: float = 0.5
    limit: float | None = None
    text: str = ""
    level: Literal[1, 2, 3] = 1
    share: float | Literal["auto"] = "auto"
    procs: int | Literal["auto"] = "auto"
    raw: str | list[str] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    weights: dict[Literal["a", "b"], float] = field(default_factory=dict)
    changes: dict[int, dict[str, float]] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("rate", 1, 1.0),
        ("rate", "1e-4", 1e-4),  # as yaml 1.1 reads it
        ("rate", float("inf"), float("inf")),
        ("share", "1e-4", 1e-4),
        ("limit", None, None),
        ("limit", 3, 3.0),
        ("text", "~/a", str(Path("~/a").expanduser())),
        ("text", "1e-4", "1e-4"),
        ("procs", 2, 2),
        ("raw", ["a", "~/b"], ["a", str(Path("~/b").expanduser())]),
        ("sizes", [[1, 2], (3, 4)], ((1, 2), (3, 4))),
        ("weights", {"a": 1}, {"a": 1.0}),
        ("changes", {"-5": {"x": 1}}, {-5: {"x": 1.0}}),
        ("changes", {7: {}}, {7: {}}),
    ],
)
def test_what_a_field_takes(name: str, value: Any, want: Any) -> None:
    found = getattr(validate(Shape, {name: value}), name)
    assert repr(found) == repr(want), "with its type: fingerprints tell 1 from 1.0"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("flag", 1, "flag: 1 (int) where bool belongs"),
        ("flag", "true", "flag: 'true' (str) where bool belongs"),
        ("count", True, "count: True (bool) where int belongs"),
        ("count", 2.0, "count: 2.0 (float) where int belongs"),
        ("count", "2", "count: '2' (str) where int belongs"),
        ("count", None, "count: null where int belongs"),
        ("count", "???", "count: missing; give count=…"),
        ("rate", False, "rate: False (bool) where float belongs"),
        ("rate", "0.5", "rate: '0.5' (str) where float belongs"),
        ("limit", "x", "limit: 'x' (str) where float belongs"),
        ("text", 7, "text: 7 (int) where text belongs"),
        ("level", 4, "level: 4 (int) where 1 | 2 | 3 belongs"),
        ("procs", 1.5, "procs: 1.5 (float) where int | auto belongs"),
        ("raw", ["a", 1], "raw: ['a', 1] (list) where text | list of text | null belongs"),
        ("sizes", [[1, 2], [3]], "sizes[1]: 1 values where 2 belong: [3]"),
        ("sizes", [[1, 2, 3]], "sizes[0]: 3 values where 2 belong: [1, 2, 3]"),
        ("sizes", [[1, "b"]], "sizes[0][1]: 'b' (str) where int belongs"),
        ("weights", {"c": 1}, "a key of weights: 'c' (str) where a | b belongs"),
        ("weights", {"a": "x"}, "weights.a: 'x' (str) where float belongs"),
        ("changes", {"1.5": {}}, "a key of changes: '1.5' (str) where int belongs"),
        ("changes", {1: {"x.y": None}}, "changes.1.x.y: null where float belongs"),
        ("changes", 3, "changes: 3 (int) where int: text: float belongs"),
    ],
)
def test_what_a_field_refuses(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Shape, {name: value})
    assert str(caught.value) == f"the configuration has mistakes:\n  {problem}"


def test_a_tree_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"the configuration: \[1\] \(list\) where fields of Shape"
    ):
        validate(Shape, [1])
    with pytest.raises(ConfigError, match=r"optim: null where fields of Optim belongs"):
        validate(Config, {"name": "x", "optim": None})


@given(
    st.builds(
        Shape,
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.none() | st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8")).filter(
            lambda text: text[:1] != "~" and text != "???"
        ),
        st.sampled_from([1, 2, 3]),
        st.floats(allow_nan=False) | st.just("auto"),
        st.integers() | st.just("auto"),
        st.none() | st.sampled_from(["1e5", "null", "a: b", "2024-01-01", ["yes", "${x}"]]),
        st.lists(st.tuples(st.integers(), st.integers()), max_size=2).map(tuple),
        st.dictionaries(st.sampled_from(["a", "b"]), st.floats(allow_nan=False)),
        st.dictionaries(st.integers(), st.dictionaries(st.text("ab.1: "), st.floats(0, 1))),
    )
)
@settings(max_examples=100, deadline=None)
def test_a_file_gives_the_configuration_it_was_written_from(config: Shape) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(config_text(config))
        assert repr(validate(Shape, read_config(file))) == repr(config)


def test_mistakes_of_several_dataclasses_come_together() -> None:
    @dataclass(frozen=True)
    class Refusing:
        size: int = 0

        def __post_init__(self) -> None:
            raise ConfigError(f"size={self.size} is none of ours")

    @dataclass(frozen=True)
    class Both:
        a: Refusing
        b: Optim
        c: Source

    with pytest.raises(ConfigError) as caught:
        validate(Both, {"a": {"size": 3}, "b": {"lr": 0}, "c": {"path": "???"}})
    assert str(caught.value).splitlines()[1:] == [
        "  c.path: missing; give c.path=…",
        "  a: size=3 is none of ours",
        "  b: lr=0.0 must be above 0",
    ]


def test_a_refusal_of_the_dataclass_has_its_path() -> None:
    with pytest.raises(ConfigError, match=r"optim: lr=-1\.0 must be above 0"):
        validate(Config, {"name": "x", "optim": {"lr": -1.0}})


def test_settings_know_types_defaults_and_words() -> None:
    found = {setting.path: setting for setting in settings_of(Config)}
    assert found["name"].default == "???"
    assert found["kind"].doc == "what is made."
    assert (found["optim.lr"].default, found["optim.lr"].doc) == (0.5, "Peak learning rate.")
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
    assert set(composed.tree["scenes"]["kind_weights"]) == {"objects", "mannequin"}
    with pytest.raises(ConfigError, match="no such entry"):
        compose("pack", schema, ["~scenes.kind_weights.nothing"])


def test_groups_choose_and_fields_win(tmp_path: Path) -> None:
    from mgpt.stages.train import Config as PretrainStage

    words = ["model=7b", "parallel=zero3", "parallel.procs=3", "model.max_positions=8192"]
    tree = compose("pretrain", schema_of(PretrainStage), words).tree
    assert (tree["model"]["size"], tree["model"]["max_positions"]) == ("7b", 8192)
    assert (tree["parallel"]["name"], tree["parallel"]["procs"]) == ("zero3", 3)


def test_an_unknown_stage_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["tokenise"]) == 2
    assert "did you mean 'tokenize'?" in capsys.readouterr().err
