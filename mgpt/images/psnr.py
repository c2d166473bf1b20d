"""Peak signal-to-noise ratio of pictures.

psnr_db(original_HWC, decoded_HWC)      # 31.4
"""

import math

import numpy as np
import numpy.typing as npt

MAX_PSNR_DB = 100.0  # identical pictures have no finite one


def psnr_db(original_HWC: npt.NDArray[np.uint8], decoded_HWC: npt.NDArray[np.uint8]) -> float:
    """10 log10(255² / mean squared difference) over all channels, at most `MAX_PSNR_DB`."""
    difference_HWC = original_HWC.astype(np.float64) - decoded_HWC.astype(np.float64)
    return psnr_of_error_db(float(np.mean(difference_HWC**2)), value_range=255.0)


def psnr_of_error_db(mean_square: float, value_range: float) -> float:
    """The same of a mean squared difference between values that span `value_range`."""
    if mean_square == 0.0:
        return MAX_PSNR_DB
    return min(MAX_PSNR_DB, 10 * math.log10(value_range**2 / mean_square))
