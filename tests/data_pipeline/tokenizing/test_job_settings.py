"""Settings stand once, whoever writes them first, and differ by name."""

import pytest

from data_pipeline.tokenizing.job_settings import read_settings, settle_settings
from mgpt.errors import ConfigError, DataError


def test_written_once_and_compared(tmp_path):
    first = settle_settings(tmp_path, {"seed": 0, "px": [1, 2]}, "a job")
    data = (tmp_path / "settings.json").read_bytes()
    assert settle_settings(tmp_path, {"px": [1, 2], "seed": 0}, "a job") == first
    assert settle_settings(tmp_path / "b", {"seed": 1, "px": [1, 2]}, "a job") != first
    with pytest.raises(ConfigError, match="seed=0 there, 1 here; x=None there, 2 here"):
        settle_settings(tmp_path, {"seed": 1, "px": [1, 2], "x": 2}, "a job")
    assert (tmp_path / "settings.json").read_bytes() == data
    assert [path.name for path in tmp_path.glob("*.json")] == ["settings.json"]


def test_unreadable(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_settings(tmp_path)
