"""What a start of training says of its checkpoint's type, and which vocabulary it takes."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

sys.path += [str(Path(__file__).parent)]
from step_folders import write_checkpoint

from mgpt.dtypes import DtypeChoice
from mgpt.errors import VocabularyError
from mgpt.models.sizes import SIZES
from mgpt.stages.train_start import changed_dtype, choose_vocabulary
from mgpt.train.step_folder import StepFolder

HERE = DtypeChoice("float32", "the CPU has no bfloat16 instructions")


@pytest.mark.parametrize(
    "saved",
    [
        {"dtype": {"name": "bfloat16", "reason": "the CPU multiplies bfloat16: AMX"}},
        {"config": {"parallel": {"dtype": "bfloat16"}}},  # from before `auto`
    ],
)
def test_a_checkpoint_of_the_other_type_is_named(saved: dict[str, Any], tmp_path: Path) -> None:
    step = write_checkpoint(tmp_path, SIZES["debug"], ranks=1)
    (step / "config.yaml").write_text(yaml.safe_dump(saved))
    told = changed_dtype(StepFolder(step, 1), HERE)
    assert told is not None
    assert f"{step} was trained in bfloat16, this start continues in float32" in told


@pytest.mark.parametrize("saved", [{"dtype": {"name": "float32"}}, {}])
def test_a_checkpoint_of_the_same_type(saved: dict[str, Any], tmp_path: Path) -> None:
    step = write_checkpoint(tmp_path, SIZES["debug"], ranks=1)
    (step / "config.yaml").write_text(yaml.safe_dump(saved))
    assert changed_dtype(StepFolder(step, 1), HERE) is None


def test_weights_without_a_vocabulary() -> None:
    cfg = SimpleNamespace(vocabulary=None, init_from="imported")
    weights: Any = SimpleNamespace(own_vocabulary=lambda: None)
    with pytest.raises(VocabularyError, match="init_from=imported has no vocabulary; give voc"):
        choose_vocabulary(cfg, weights)
