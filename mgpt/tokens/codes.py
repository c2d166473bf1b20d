"""The integer type that picture codes are kept in: 16 bits where the codebook fits, else 32.

>>> code_dtype(65536), code_dtype(131072)
(dtype('uint16'), dtype('uint32'))
"""

import numpy as np

__all__ = ["code_dtype"]


def code_dtype(num_codes: int) -> "np.dtype[np.unsignedinteger]":
    """Little-endian type of the codes of a codebook."""
    return np.dtype("<u2" if num_codes <= 2**16 else "<u4")
