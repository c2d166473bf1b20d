"""mgpt plan: the full-size recipes, the machine's fields, shards at hand, refusals."""

import sys
import time
from pathlib import Path

import pytest

from mgpt.cli import command
from mgpt.errors import ConfigError
from mgpt.stages import plan

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from rank_runs import make_corpus

RECIPES = sorted(
    file.stem for file in (Path(__file__).parents[2] / "conf" / "recipe").glob("*gpu.yaml")
)
FP_SFT = [
    "fp_sft",
    "vocabulary=not_here",
    "model=7b",
    "resolution=512",
    "parallel.dtype=bfloat16",
    "parallel.recompute=full",
    "output=out",
    "steps=100",
    "data.sources.a.path=not_here",
    "data.sources.a.tasks.text_to_image=1",
]


def configured(*words: str) -> plan.Config:
    return plan.configure(plan.compose(words))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_full_size_recipe_fits_the_machine_it_names(recipe: str) -> None:
    cfg = configured("pipeline", f"recipe={recipe}")
    (run,) = (run for _, run in cfg.runs)
    planned, _ = plan.plan_stage(cfg, run)
    assert planned.machine.ranks == int(recipe.rpartition("_")[2].removesuffix("gpu"))
    assert planned.problems == planned.notes == []
    assert planned.num_parameters > (34e9 if "34b" in recipe else 7e9)
    is_34b, is_pretraining = "34b" in recipe, "pretrain" in recipe
    assert run.dropout == (0.0 if is_34b else 0.1 if is_pretraining else 0.05)
    assert (run.optim.lr, run.optim.max_norm) == ((1e-4, 1.0) if is_pretraining else (2e-5, 4.0))
    assert (run.optim.weight_decay, tuple(run.optim.betas), run.z_loss) == (0.1, (0.9, 0.95), 1e-5)
    assert run.optim.eps == (1e-5 if is_pretraining else 1e-8)
    assert run.schedule.kind == ("cosine" if is_pretraining else "constant")
    assert run.data.guidance_drop == (0.0 if is_pretraining else 0.1)
    if is_pretraining:
        assert 8e6 <= planned.step_tokens <= 12e6


def test_the_paper_s_seven_days_of_32_gpus() -> None:
    hours = 0.0
    for rung in (512, 768, 1024):
        cfg = configured("pipeline", f"recipe=fp_sft_7b_{rung}_32gpu")
        hours += plan.plan_stage(cfg, cfg.runs[0][1])[0].hours
    assert hours / 24 == pytest.approx(7, rel=0.15)


def test_1024_ranks_are_planned_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    words = ["pipeline", "recipe=pretrain_34b_256gpu", "nodes=128", "pretrain.data.step_rows=1024"]
    assert command.main(["plan", *words]) == 0
    assert time.monotonic() - began < 30, "10 s on a machine that is not busy"
    assert "1024 x A100-80" in capsys.readouterr().out


def test_what_cannot_fit_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", *FP_SFT, "device_gb=16"]) == 2
    shown = capsys.readouterr()
    assert "activations" in shown.out, "the tables come first"
    assert "cannot be queued" in shown.err and "no change of settings" not in shown.err


def test_the_command_wins_over_the_recipe_and_over_procs() -> None:
    cfg = configured("pipeline", "recipe=omni_sft_7b_32gpu", "nodes=2", "procs=4", "device_gb=90")
    machine = plan.plan_stage(cfg, cfg.runs[0][1])[0].machine
    assert (machine.ranks, machine.memory_gb, machine.device) == (8, 86.0, "A100-80")


def test_shards_at_hand_are_counted(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    words = [
        "omni_sft",
        f"vocabulary={corpus}/vocab",
        "model=debug",
        "output=out",
        "steps=10",
        "data.row_tokens=512",
        f"data.sources.a.path={corpus}/32",
        "data.sources.a.tasks.text_to_image=1",
    ]
    cfg = configured(*words)
    planned, lengths = plan.plan_stage(cfg, cfg.runs[0][1])
    assert lengths.origin.startswith("counted") and lengths.fill is not None
    assert 0.5 < lengths.fill <= 1
    assert lengths.best_row_tokens and lengths.best_fill
    assert planned.num_parameters < 1e6
    short = configured(*words, "data.row_tokens=16")
    (problem,) = plan.plan_stage(short, short.runs[0][1])[0].problems
    assert f"the longest document, {lengths.longest_tokens} tokens" in problem


@pytest.mark.parametrize("words", [[], ["pack"], ["fp_sft", "omni_sft"]])
def test_what_is_planned_is_a_training_stage_or_a_pipeline(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="takes one of pretrain"):
        plan.compose(words)


def test_mistakes_of_the_machine_are_named() -> None:
    with pytest.raises(ConfigError, match="device='A100' is none of A100-80"):
        configured(*FP_SFT, "device=A100")
    with pytest.raises(ConfigError, match="mfu=40"):
        configured(*FP_SFT, "mfu=40")
