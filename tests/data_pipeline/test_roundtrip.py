"""The round trip: the right picture beside its codes, PSNR as defined, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.roundtrip import Config as RoundtripConfig
from data_pipeline.roundtrip import roundtrip
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from mgpt.errors import DataError
from mgpt.images.pixels import open_image
from mgpt.images.psnr import MAX_PSNR_DB, psnr_db


@pytest.fixture
def made(tmp_path, tracker, vq, write_tar, picture):
    """A tokenised output of two pictures, one of which reaches 32 px."""
    members = {"big.png": picture(40, 40, seed=1), "small.png": picture(20, 24, seed=2)}
    write_tar(tmp_path / "raw" / "00000.tar", members)
    cfg = TokenizeConfig(
        input=str(tmp_path / "raw"), output=str(tmp_path / "tok"), vq=vq, resolution=[16, 32]
    )
    tokenize(cfg, tracker)
    return tmp_path


def config(made, vq, **changes) -> RoundtripConfig:
    settings = {"input": str(made / "tok"), "raw": str(made / "raw"), "vq": vq}
    return RoundtripConfig(output=str(made / "out"), **(settings | changes))


def test_rows_and_pictures(made, vq, tracker):
    rows = roundtrip(config(made, vq), tracker)
    assert [(row["resolution_px"], row["key"]) for row in rows] == [
        (16, "big"),
        (16, "small"),
        (32, "big"),
    ]
    assert json.loads((made / "out" / "roundtrip.json").read_text()) == rows
    for row in rows:
        original, decoded = (
            np.asarray(open_image(made / "out" / row[name])) for name in ("original", "decoded")
        )
        assert original.shape == decoded.shape == (row["height"], row["width"], 3)
        assert row["psnr_db"] == psnr_db(original, decoded)
        assert row["tokens"] == row["height"] * row["width"] // 16


def test_originals_are_the_fitted_pictures(made, vq, tracker, picture):
    rows = roundtrip(config(made, vq), tracker)
    original = np.asarray(open_image(made / "out" / rows[-1]["original"]))
    whole = open_image(picture(40, 40, seed=1)).convert("RGB")
    assert np.array_equal(original, np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC)))


def test_limit(made, vq, tracker):
    rows = roundtrip(config(made, vq, samples_per_resolution=1), tracker)
    assert [(row["resolution_px"], row["key"]) for row in rows] == [(16, "big"), (32, "big")]


def test_another_raw_shard_is_refused(made, vq, tracker, write_tar, picture):
    members = {"big.png": picture(40, 40, seed=3), "small.png": picture(20, 24, seed=2)}
    write_tar(made / "other" / "00000.tar", {**members, "more.png": picture()})
    with pytest.raises(DataError, match=r"00000\.tar"):
        roundtrip(config(made, vq, raw=str(made / "other")), tracker)


def test_psnr():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black) == MAX_PSNR_DB
    assert psnr_db(black, black + 255) == pytest.approx(0.0)
    assert psnr_db(black, black + 51) == pytest.approx(20 * np.log10(5))
