"""The expected time of a pipeline: stand-ins, units, and what has no estimate."""

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mgpt.evals.evaluate import EvaluateConfig
from mgpt.evals.scorers import SCORERS
from mgpt.lifecycle.rehearsal import Estimate, Scale
from mgpt.stages import estimate, evaluate_times, rehearsal
from mgpt.stages.estimate import PipelineEstimate, estimate_pipeline, in_minutes, is_long
from mgpt.stages.evaluate_times import rehearse_evaluation
from mgpt.stages.recipe import compose_recipe, read_recipe
from mgpt.stages.rehearsal import Job, Rehearsal, replaced


@dataclass(frozen=True)
class Config:
    output: str
    input: str = ""
    units: int = 0


def stage(rehearse: Any) -> SimpleNamespace:
    return SimpleNamespace(Config=Config, rehearse=rehearse)


def test_paths_lead_to_stand_ins_and_other_text_stays() -> None:
    config = {"a": ["out/raw", "out/raw/64", "out/rawer"], "b": {"c": "out/raw.tar", "d": 3}}
    assert replaced(config, {"out/raw": "/tmp/x"}) == {
        "a": ["/tmp/x", "/tmp/x/64", "out/rawer"],
        "b": {"c": "out/raw.tar", "d": 3},
    }


def test_a_stage_works_on_the_stand_in_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(cfg: Config, real: Config, scale: Scale) -> Estimate:
        Path(cfg.output).mkdir(parents=True)
        return Estimate(2.0, times=real.units / 10)

    def read(cfg: Config, real: Config, scale: Scale) -> Estimate:
        assert Path(cfg.input).parent == tmp_path and Path(cfg.input).is_dir()
        assert real.input == "out/make" and scale(f"{real.input}/64") == 50.0
        return Estimate(0.25 * scale(real.input), scale(real.input))

    stages = {"make": stage(make), "read": stage(read)}
    monkeypatch.setattr(rehearsal, "load_stage", stages.__getitem__)
    rehearsed = Rehearsal(tmp_path)
    first = rehearsed.run(Job("make", "make", {"output": "out/make", "units": 500}))
    second = rehearsed.run(Job("read", "read", {"output": "out/read", "input": "out/make"}))
    assert (first["seconds"], second["seconds"]) == (2.0, 12.5)


def test_a_stage_without_an_estimate_is_named_and_so_is_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: Config, real: Config, scale: Scale) -> Estimate:
        raise OSError("the disk is full\nmore")

    stages = {
        "fail": stage(fail),
        "none": SimpleNamespace(Config=Config),
        "reads": stage(lambda cfg, real, scale: Estimate(1.0)),
    }
    monkeypatch.setattr(rehearsal, "load_stage", stages.__getitem__)
    rehearsed = Rehearsal(tmp_path)
    reasons = [
        rehearsed.run(Job(name, name.split("_")[0], {"output": f"o/{name}", "input": read}))
        for name, read in (("fail", ""), ("none", ""), ("reads_it", "o/fail/64"), ("reads", "o"))
    ]
    assert [row["reason"] for row in reasons] == [
        "the disk is full",
        "mgpt none has no rehearsal",
        "it reads the output of fail, which has no estimate",
        "",
    ]


def test_batches_and_cases_of_an_evaluation_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(evaluate_times, "serving", lambda dataset, task, can_read: range(30))
    monkeypatch.setattr(evaluate_times, "shares", lambda processes: processes)
    asked: list[tuple[str, int]] = []

    def evaluation(cfg: EvaluateConfig, folder: Path) -> dict[str, dict]:
        (task,) = cfg.tasks
        cases = cfg.samples * (2 if task == "caption" else 1)
        asked.append((task, cfg.samples))
        clock[0] += 5.0 + 0.5 * cases
        return {task: {"cases": cases}}

    cfg = EvaluateConfig(
        tasks=("caption", "vqa", "depth"), samples=100, samples_of={}, batch_cases=64
    )
    scorers = dict.fromkeys(cfg.tasks, SCORERS["exact_match"])
    found = rehearse_evaluation(cfg, scorers, tmp_path, None, 4.0, 2, evaluation)  # type: ignore[arg-type]
    assert {task for task, _ in asked} == {"caption", "depth"}, "vqa has answers like caption"
    words = 2 * 5.0 + 100 * 0.5  # 200 cases, 100 a process, in two batches
    pictures = 5.0 + 50 * 0.5
    assert found.seconds == pytest.approx(2 * words + pictures)


def test_the_summary_says_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    made = PipelineEstimate({"pack": 30.0, "report": None}, {"report": "no rehearsal"}, 9.0)
    made.print()
    shown = capsys.readouterr().out
    assert "expected: 30 s from here" in shown and "no rehearsal" in shown
    assert made.record() == {"seconds": 30.0, "unknown": ["report"], "took_s": 9.0}
    assert [in_minutes(s) for s in (40, 1080, 7500)] == ["40 s", "18 min", "2 h 05 min"]


def test_a_rehearsal_that_dies_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate.sys, "executable", "/bin/false")
    assert estimate_pipeline([]) is None
    assert "no estimate of the time" in capsys.readouterr().out


def test_a_short_recipe_is_not_rehearsed(tmp_path: Path) -> None:
    def entries(*words: str) -> list:
        return read_recipe(compose_recipe([f"output={tmp_path}", *words]))

    assert not is_long(entries("recipe=tiny"))
    assert is_long(entries("recipe=tiny", "omni_sft.steps=200"))
    assert is_long(entries("recipe=quickstart"))


@pytest.mark.timeout(900)
def test_every_stage_of_a_recipe_has_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rehearsal itself, with two ranks, and nothing written where the pipeline will."""
    monkeypatch.setattr(estimate, "_LIMIT_S", 800.0)
    output = tmp_path / "out"
    words = ["recipe=tiny", f"output={output}", "parallel.procs=2"]
    made = estimate_pipeline(read_recipe(compose_recipe(words)))
    assert made is not None and made.unknown == [], made.reasons
    assert all(seconds > 0 for seconds in made.stages.values() if seconds is not None)
    assert not output.exists()
