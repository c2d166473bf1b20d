"""Peak signal-to-noise ratio of 8-bit pictures.

psnr_db(original_HWC, decoded_HWC)      # 31.4
"""

import math

import numpy as np
import numpy.typing as npt

MAX_PSNR_DB = 100.0  # identical pictures have no finite one


def psnr_db(original_HWC: npt.NDArray[np.uint8], decoded_HWC: npt.NDArray[np.uint8]) -> float:
    """10 log10(255² / mean squared difference) over all channels, at most `MAX_PSNR_DB`."""
    difference_HWC = original_HWC.astype(np.float64) - decoded_HWC.astype(np.float64)
    mean_square = float(np.mean(difference_HWC**2))
    return min(MAX_PSNR_DB, 10 * math.log10(255**2 / mean_square)) if mean_square else MAX_PSNR_DB
