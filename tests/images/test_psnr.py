"""Peak signal-to-noise ratio, of 8-bit pictures and of a known error."""

import numpy as np
import pytest

from mgpt.images.psnr import MAX_PSNR_DB, psnr_db, psnr_of_error_db


def test_an_error_of_one_level_everywhere_is_48_db() -> None:
    picture_HWC = np.full((4, 6, 3), 100, np.uint8)
    assert psnr_db(picture_HWC, picture_HWC + 1) == pytest.approx(48.1308, abs=1e-4)
    # The same error of pixels in [-1, 1].
    assert psnr_of_error_db((2 / 255) ** 2, 2.0) == pytest.approx(48.1308, abs=1e-4)


def test_identical_pictures_reach_the_cap() -> None:
    picture_HWC = np.zeros((4, 6, 3), np.uint8)
    assert psnr_db(picture_HWC, picture_HWC) == psnr_of_error_db(1e-12, 2.0) == MAX_PSNR_DB
