"""What a training stage says when its checkpoint was computed in another type."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path += [str(Path(__file__).parent)]
from step_folders import write_checkpoint

from mgpt.dtypes import DtypeChoice
from mgpt.models.sizes import SIZES
from mgpt.stages.training import _announce_dtype
from mgpt.tracking.tracker import Tracker, TrackingConfig

HERE = DtypeChoice("float32", "the CPU has no bfloat16 instructions")


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(TrackingConfig(mode="disabled"), tmp_path, "fp_sft", record=False)


@pytest.mark.parametrize(
    "saved",
    [
        {"dtype": {"name": "bfloat16", "reason": "the CPU multiplies bfloat16: AMX"}},
        {"config": {"parallel": {"dtype": "bfloat16"}}},  # from before `auto`
    ],
)
def test_a_checkpoint_of_the_other_type_is_named_in_one_line(
    saved: dict, tmp_path: Path, tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    step = write_checkpoint(tmp_path, SIZES["debug"], ranks=1)
    (step / "config.yaml").write_text(yaml.safe_dump(saved))
    _announce_dtype(tracker, tmp_path, HERE)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"dtype: {HERE}"
    assert f"{step} was trained in bfloat16, this start continues in float32" in second


def test_a_checkpoint_of_the_same_type_says_nothing_more(
    tmp_path: Path, tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    step = write_checkpoint(tmp_path, SIZES["debug"], ranks=1)
    (step / "config.yaml").write_text(yaml.safe_dump({"dtype": {"name": "float32"}}))
    _announce_dtype(tracker, tmp_path, HERE)
    assert len(capsys.readouterr().out.splitlines()) == 1
