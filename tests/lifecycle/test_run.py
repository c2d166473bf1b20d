"""The sequence around every stage: complete work is not repeated, and DONE is written last."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mgpt.errors import ConfigError, DataError
from mgpt.lifecycle.ranks import run_on_ranks
from mgpt.lifecycle.run import run_stage
from mgpt.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True)
class Config:
    output: str
    size: int = 1
    redo: bool = False
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(mode="disabled"))


class Work:
    """A stage's work: writes a row of the record, or fails; counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False

    def alone(self, cfg: Config, tracker: Tracker) -> dict[str, int]:
        self.calls += 1
        assert not Path(cfg.output, "DONE").exists()
        tracker.log(0, {"size": cfg.size})
        if self.fails:
            raise DataError("damaged")
        return {"size": cfg.size}

    def on_ranks(self, cfg: Config, world: object, tracker: Tracker) -> dict[str, int]:
        return self.alone(cfg, tracker)


def alone(cfg: Config, work: Work) -> None:
    run_stage("pack", cfg, {}, work.alone)


def on_ranks(cfg: Config, work: Work) -> None:
    run_on_ranks("evaluate", cfg, lambda cfg: {}, work.on_ranks, "single", procs=1, threads=1)


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(str(tmp_path / "out"))


@pytest.mark.parametrize("run", [alone, on_ranks])
class TestTheSequence:
    def test_complete_work_is_not_repeated(self, cfg: Config, run: Callable) -> None:
        work = Work()
        run(cfg, work)
        done = json.loads(Path(cfg.output, "DONE").read_text())
        assert done["figures"] == {"size": 1}
        run(cfg, work)
        assert work.calls == 1
        with pytest.raises(ConfigError, match="size 1 → 2"):
            run(Config(cfg.output, size=2), work)
        run(Config(cfg.output, size=2, redo=True), work)
        assert work.calls == 2
        rows = Path(cfg.output, "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["size"] for row in rows] == [2], "redo removes the old record"

    def test_work_that_fails_is_not_complete(self, cfg: Config, run: Callable) -> None:
        work = Work()
        work.fails = True
        with pytest.raises(DataError, match="damaged"):
            run(cfg, work)
        assert not Path(cfg.output, "DONE").exists()
        work.fails = False
        run(cfg, work)
        assert work.calls == 2 and Path(cfg.output, "DONE").exists()


def test_of_processes_that_share_a_stage_the_first_keeps_the_record(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("1", "0"):
        monkeypatch.setenv("SLURM_PROCID", number)
        monkeypatch.setenv("SLURM_NTASKS", "2")
        run_stage("pack", cfg, {}, Work().alone, shared=True)
        assert Path(cfg.output, "metrics.jsonl").exists() == (number == "0")
        Path(cfg.output, "DONE").unlink()


def test_a_stage_that_is_not_shared_writes_to_local_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="writes to local folders"):
        alone(Config("s3://bucket/out"), Work())
