"""What a recipe makes of its entries: order, rungs, weights handed on, shared groups."""

from pathlib import Path

import pytest

from mgpt.cli.config import read_config, validate
from mgpt.errors import ConfigError
from mgpt.stages import pipeline
from mgpt.stages.recipe import Entry, _stage_of, compose_recipe, read_recipe


def entries(*overrides: str) -> dict[str, Entry]:
    composed = compose_recipe(["recipe=tiny", *overrides])
    return {entry.name: entry for entry in read_recipe(composed, group="g")}


def test_weights_are_handed_on(tmp_path: Path) -> None:
    found = entries(f"output={tmp_path}")
    assert found["pretrain"].config.init_from is None
    assert found["fp_sft/32"].config.init_from == f"{tmp_path}/pretrain"
    assert found["fp_sft/64"].config.init_from == f"{tmp_path}/fp_sft/32"
    assert found["omni_sft"].config.init_from == f"{tmp_path}/fp_sft/64"
    assert found["generate"].config.ckpt == f"{tmp_path}/omni_sft"
    assert found["evaluate"].config.ckpt == f"{tmp_path}/omni_sft"


def test_fields_stand_under_the_entry_and_the_rung() -> None:
    found = entries("fp_sft.steps=7", "fp_sft.64.steps=9", "fp_sft.64.optim.lr=1e-3")
    assert (found["fp_sft/32"].config.steps, found["fp_sft/64"].config.steps) == (7, 9)
    assert found["fp_sft/64"].config.optim.lr == 1e-3
    assert found["fp_sft/64"].config.resolution_px == 64
    assert found["fp_sft/32"].config.optim.lr != 1e-3


def test_shared_groups_reach_the_stages_that_have_them() -> None:
    found = entries("parallel=zero3", "parallel.procs=3", "model=quickstart", "seed=5")
    for name in ("pretrain", "fp_sft/32", "omni_sft"):
        cfg = found[name].config
        assert (cfg.parallel.name, cfg.parallel.procs) == ("zero3", 3)
        assert (cfg.model.size, cfg.seed) == ("quickstart", 5)
    assert found["scenes_tokens"].config.seed == 5
    assert found["pretrain"].config.tracking.group == "g"


def test_an_entry_may_choose_its_own_group() -> None:
    found = entries("omni_sft.parallel=single")
    assert found["omni_sft"].config.parallel.name == "single"
    assert found["pretrain"].config.parallel.name == "fsdp2"


def test_the_file_of_a_stage_gives_the_same_configuration(tmp_path: Path) -> None:
    found = entries("title=it's (a), ${b}", "omni_sft.data.changes={2:{scenes:{caption:0.5}}}")
    for entry in found.values():
        file = pipeline.write_config(tmp_path, entry)
        assert file == tmp_path / "launch" / "stages" / f"{entry.name}.yaml"
        assert validate(entry.module.Config, read_config(file)) == entry.config


def test_values_are_read_by_the_types_of_their_fields(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "defaults:\n  - tiny\n\ntitle: 2024\n"
        "generate: {prompt: 7, seed: '3'}\nfp_sft: {steps: '11', optim: {lr: '1e-3'}}\n"
    )
    found = {e.name: e.config for e in read_recipe(compose_recipe([f"recipe={file}"]))}
    assert (found["report"].title, found["generate"].prompt) == ("2024", "7")
    assert found["generate"].seed == 3
    assert (found["fp_sft/64"].steps, found["fp_sft/64"].optim.lr) == (11, 1e-3)


def test_unknown_fields_of_all_entries_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_recipe(["recipe=tiny", "fp_sft.stps=1", "fp_sft.64.lr=1", "nothing.steps=1"])
    message = str(caught.value)
    assert "fp_sft.stps: no such field; did you mean 'fp_sft.steps'" in message
    assert "fp_sft.64.lr: no such field" in message and "nothing.steps: no such field" in message


def test_wrong_values_of_all_entries_come_together() -> None:
    composed = compose_recipe(["recipe=tiny", "pretrain.steps=0", "text.num_pieces=many"])
    with pytest.raises(ConfigError) as caught:
        read_recipe(composed)
    assert "steps=0 epochs=None: give one of the two, above 0" in str(caught.value)
    assert "num_pieces: 'many' (str) where int belongs" in str(caught.value)


def test_the_pipeline_s_own_values_are_checked_once(tmp_path: Path) -> None:
    words = ["recipe=tiny", f"output={tmp_path}", "seed=x", "redo=maybe"]
    with pytest.raises(ConfigError) as caught:
        pipeline.configure(pipeline.compose(words))
    message = str(caught.value)
    assert message.count("seed: 'x' (str) where int belongs") == 1
    assert "redo: 'maybe' (str) where bool belongs" in message


def test_a_command_without_a_record_is_no_entry() -> None:
    tree = {"codes": {"stage": "encode"}, "raw": {"stage": "pack"}}
    assert _stage_of(tree, "raw") == "pack"
    with pytest.raises(ConfigError, match="codes: mgpt encode keeps no record"):
        _stage_of(tree, "codes")


def test_a_recipe_of_ones_own_is_a_file_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults:\n  - tiny\n\nfp_sft:\n  steps: 11\n")
    composed = compose_recipe([f"recipe={file}", "fp_sft.64.steps=12"])
    assert composed.choices["recipe"] == "mine"
    found = {entry.name: entry.config for entry in read_recipe(composed)}
    assert (found["fp_sft/32"].steps, found["fp_sft/64"].steps) == (11, 12)
    assert found["pretrain"].steps == 4, "what tiny says"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("output: out\n", "no `order`"),
        ("order: [a, b]\noutput: out\na: {stage: pack}\n", "names b, which it has no fields of"),
        ("order: [a]\na: {stage: pack}\n", "no `output`"),
        ("- a list\n", "a yaml mapping belongs there"),
        ("order: [a\n", "mine.yaml"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        compose_recipe([f"recipe={tmp_path}/mine.yaml"])


def test_a_recipe_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such file"):
        compose_recipe([f"recipe={tmp_path}/nowhere.yaml"])


@pytest.mark.parametrize(
    ("until", "last", "first_later"),
    [("fp_sft/32", "fp_sft/32", "fp_sft/64"), ("fp_sft", "fp_sft/64", "omni_sft")],
)
def test_a_pipeline_ends_after_an_entry(
    until: str, last: str, first_later: str, tmp_path: Path
) -> None:
    words = ["recipe=tiny", f"output={tmp_path}", f"until={until}"]
    cfg = pipeline.configure(pipeline.compose(words))
    assert (cfg.entries[-1].name, cfg.later[0]) == (last, first_later)


def test_an_entry_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    words = ["recipe=tiny", f"output={tmp_path}", "until=fp_stf"]
    with pytest.raises(ConfigError, match=r"did you mean 'fp_sft/.*there are scenes_raw, train_vq"):
        pipeline.configure(pipeline.compose(words))
