"""People's own sources still find what they import under its name in mgpt 0.1."""

import importlib
import sys

import pytest

from data_pipeline.raw.shards import RawSample


def test_a_moved_module_is_found_and_its_new_name_said() -> None:
    sys.modules.pop("data_pipeline.raw_shards", None)
    with pytest.warns(FutureWarning, match=r"raw_shards is data_pipeline\.raw\.shards now"):
        module = importlib.import_module("data_pipeline.raw_shards")
    assert module.RawSample is RawSample


def test_a_module_that_never_was_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"data_pipeline\.raw_sharks"):
        importlib.import_module("data_pipeline.raw_sharks")
