"""What Weights & Biases is shown of a job: the whole job's figures, and its pictures."""

import numpy as np
import pytest

from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.views import job_view
from mgpt.tracking.tracker import Tracker, TrackingConfig


class Shown(Tracker):
    """A tracker that keeps what would be shown."""

    def __init__(self, folder) -> None:
        super().__init__(TrackingConfig(mode="disabled"), folder, "test", record=False)
        self.figures: list[tuple[int, dict]] = []
        self.pictures: dict[str, np.ndarray] = {}

    has_run = True

    def show(self, step, figures):
        self.figures.append((step, dict(figures)))

    def images(self, step, name, images):
        ((_, self.pictures[name]),) = images


@pytest.fixture
def config(tmp_path, vq, write_tar, picture) -> TokenizeConfig:
    for shard in range(3):
        members = {f"{n}.png": picture(36, 32, seed=n) for n in range(4)}
        write_tar(tmp_path / "raw" / f"{shard:05d}.tar", {**members, "small.png": picture(20, 20)})
    return TokenizeConfig(
        input=str(tmp_path / "raw"), output=str(tmp_path / "out"), vq=vq, resolution=[16, 32]
    )


def test_the_last_look_has_the_whole_job(tmp_path, config, monkeypatch):
    monkeypatch.setattr(job_view, "LOOK_EVERY_S", 0.0)
    shown = Shown(tmp_path)
    tokenize(config, shown)
    steps = [step for step, _ in shown.figures]
    assert steps == sorted(steps) and steps[-1] == 3 and len(steps) > 3
    last = dict(shown.figures[-1][1])
    assert last.pop("samples_per_s") >= 0
    assert last == {
        "shards": 3,
        "inputs": 15,
        "written.16": 15,
        "written.32": 12,
        "rejected.32.too_small": 3,
    }
    assert any(figures["samples_per_s"] > 0 for _, figures in shown.figures)
    assert shown.pictures.keys() == {"contact_sheet.16", "contact_sheet.32"}
    sheet = shown.pictures["contact_sheet.32"]
    assert sheet.dtype == np.uint8 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100


def test_a_job_taken_up_again_counts_what_was_done_before(tmp_path, config):
    tokenize(config, Shown(tmp_path))
    again = Shown(tmp_path)
    tokenize(config, again)
    assert [(step, figures["inputs"]) for step, figures in again.figures] == [(3, 15)]


def test_without_a_run_nothing_is_read(config, tracker, monkeypatch):
    monkeypatch.setattr(job_view, "read_manifests", lambda *_: pytest.fail("read"))
    tokenize(config, tracker)
