"""Settings of a training stage that are at odds with one another, or do nothing: named at once."""

import shlex
from pathlib import Path

import pytest

from mgpt.cli.stage_table import STAGES, compose_stage, configure, load_stage
from mgpt.errors import ConfigError, VocabularyError
from mgpt.models.sizes import SIZES
from mgpt.stages import generate
from mgpt.stages.build import ModelConfig
from mgpt.stages.train import Config as TrainingConfig
from mgpt.stages.train import warnings_of
from mgpt.stages.train_start import code_vectors
from mgpt.tokenizers.folder import load_tokenizer

SOURCE = ("data.sources.a.path=tokens", "data.sources.a.tasks.text_to_image=1")
FROM = ("init_from=weights", "output=out", "steps=100", *SOURCE)
FROM_NOTHING = ("vocabulary=text", "output=out", "steps=100", *SOURCE)


def config(stage: str, *words: str) -> TrainingConfig:
    module = load_stage(stage)
    made = configure(module, compose_stage(stage, module, words))
    assert isinstance(made, TrainingConfig)
    return made


def test_a_warm_up_that_never_ends() -> None:
    (told,) = warnings_of(config("pretrain", *FROM_NOTHING))
    assert "schedule.warmup_steps=4000 is not below steps=100" in told
    assert "ends at 2.5% of optim.lr=0.0001; set schedule.warmup_steps=5," in told
    assert warnings_of(config("pretrain", *FROM_NOTHING, "schedule.warmup_steps=100"))
    assert not warnings_of(config("pretrain", *FROM_NOTHING, "schedule.warmup_steps=99"))


@pytest.mark.parametrize("name", ["pretrain", "fp_sft", "omni_sft"])
def test_the_examples_of_the_help_leave_their_warm_up(name: str) -> None:
    example = " ".join(line for line in STAGES[name].doc if line.startswith("    "))
    assert not warnings_of(config(name, *shlex.split(example.replace("\\ ", ""))[2:]))


def test_validation_without_held_out_rows() -> None:
    with pytest.raises(ConfigError, match=r"validate_every=5 .* held_out\.sources\.<name>\.path"):
        config("fp_sft", *FROM, "validate_every=5")
    held_out = ("held_out.sources.a.path=b", "held_out.sources.a.tasks.caption=1")
    assert config("fp_sft", *FROM, "validate_every=5", *held_out).validate_every == 5
    with pytest.raises(ConfigError, match="held_out: the weights of all sources add up to 0"):
        config("fp_sft", *FROM, *held_out[:1], "held_out.sources.a.tasks.caption=0")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.sources.a.tasks.text_to_image=0"], r"add up to 0 \(a\.tasks\.text_to_image=0\)"),
        (["data.changes={10: {a: {text_to_image: 0}}}"], "changes at step 10: all weights are 0"),
    ],
)
def test_a_mix_of_nothing(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config("fp_sft", *FROM, *words)


def test_a_mix_that_moves_to_another_task() -> None:
    moved = "data.changes={10: {a: {text_to_image: 0, caption: 1}}}"
    assert config("fp_sft", *FROM, moved).data.changes


def test_another_size_than_that_of_the_weights() -> None:
    found = SIZES["debug"]
    with pytest.raises(ConfigError, match=r"model\.size=7b.*init_from=a has layers 2 and not 32"):
        ModelConfig("7b").check_same(found, "init_from=a")
    with pytest.raises(ConfigError, match=r"max_positions .* and not 9"):
        ModelConfig(max_positions=9).check_same(found, "init_from=a")
    ModelConfig("debug").check_same(found, "init_from=a")
    ModelConfig().check_same(found, "init_from=a")  # the default asks for no size


@pytest.mark.parametrize(("px", "rung"), [(256, 64), (16, 32), (640, 512), (512, 512)])
def test_any_resolution_has_the_settings_of_the_rung_below(px: int, rung: int) -> None:
    made, usual = (config("fp_sft", *FROM, f"resolution={number}") for number in (px, rung))
    assert made.resolution_px == px
    assert (made.data.row_tokens, made.data.step_rows) == (
        usual.data.row_tokens,
        usual.data.step_rows,
    )
    assert config("fp_sft", *FROM, f"resolution={px}", "data.step_rows=3").data.step_rows == 3


def test_a_resolution_that_is_no_number() -> None:
    with pytest.raises(ConfigError, match="resolution=big: resolution is one of"):
        config("fp_sft", *FROM, "resolution=big")


def test_the_home_folder_in_any_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = config(
        "fp_sft",
        *("init_from=~/w", "output=~/out", "steps=9"),
        *("data.sources.a.path=~/tokens", "data.sources.a.tasks.caption=1"),
    )
    assert made.init_from == f"{tmp_path}/w" and made.output == f"{tmp_path}/out"
    assert made.data.sources["a"].path == f"{tmp_path}/tokens"
    module = load_stage("encode")
    words = ("vq=~/vq", "input=['~/a.png','b~c/~d.png']", "output=~/codes.json")
    encode = configure(module, compose_stage("encode", module, words))
    assert encode.input == [f"{tmp_path}/a.png", "b~c/~d.png"]
    assert (encode.vq, encode.output) == (f"{tmp_path}/vq", f"{tmp_path}/codes.json")
    with pytest.raises(ConfigError, match="is your home"):
        configure(module, compose_stage("encode", module, (*words[:2], "output=~")))
    pipeline = load_stage("pipeline")
    words = ("recipe=tiny", "output=~/all")
    tree = configure(pipeline, compose_stage("pipeline", pipeline, words))
    assert tree.output == f"{tmp_path}/all"
    assert all(entry.config.output.startswith(f"{tmp_path}/all/") for entry in tree.entries)


@pytest.mark.parametrize("task", ["text_to_image", "vqa", "free"])
def test_a_missing_prompt(task: str, tmp_path: Path) -> None:
    cfg = generate.Config(ckpt="a", vq="b", output=str(tmp_path / "out"), task=task)
    with pytest.raises(ConfigError, match=f"task={task} asks with a prompt and there is none"):
        generate.main(cfg)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["depth", "caption", "pose"])
def test_tasks_that_ask_without_a_prompt(task: str) -> None:
    assert not generate.reads_prompt(task)


def test_a_codebook_beside_weights_that_have_rows_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"codebook=scenes_f8 is for a start from nothing, and"):
        config("pretrain", *FROM, "codebook=scenes_f8")


def test_a_codebook_of_another_tokenizer_than_the_data() -> None:
    own = load_tokenizer("scenes_f8").fingerprint()
    vectors = code_vectors("scenes_f8", own)
    assert vectors is not None and len(vectors) == 512
    with pytest.raises(VocabularyError, match=f"VQGAN 0123, codebook=scenes_f8 has those of {own}"):
        code_vectors("scenes_f8", "0123")
