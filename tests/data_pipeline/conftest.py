"""Pictures and tars for the tests of the offline jobs."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgpt.tracking.tracker import Tracker, TrackingConfig


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(TrackingConfig(mode="disabled"), tmp_path / "run", "test", record=False)


def _picture(
    width: int = 32, height: int = 32, seed: int = 0, mode: str = "RGB", form: str = "PNG"
) -> bytes:
    levels_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels_HWC, "RGBA").convert(mode).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Encoded noise: `picture(width, height, seed, mode, form)`."""
    return _picture


def _write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """`write_tar(path, {member: bytes})`, with Python's own writer."""
    return _write_tar


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its bytes."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
