"""Codes back to pictures, with the very VQ model they were made with.

decoder = CodeDecoder("scenes_f8", read_settings(tokens)["vq_fingerprint"], str(tokens))
decoder(codes_HW).shape                       # (H * 8, W * 8, 3), uint8
"""

import numpy as np
import numpy.typing as npt
import torch

from mgpt.errors import DataError
from mgpt.tokenizers.folder import load_tokenizer


class CodeDecoder:
    """A VQ model that gives uint8 pictures [H, W, 3] for codes [h, w].

    Raises, when it is made: DataError where `vq` is not the model of `fingerprint`, with both.
    """

    def __init__(
        self,
        vq: str,
        fingerprint: str,
        where: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model = load_tokenizer(vq)
        found = self._model.fingerprint()
        if found != fingerprint:
            raise DataError(
                f"{where} was encoded with VQ model {fingerprint}, {vq} is {found}; give the model "
                "it was encoded with"
            )
        self._model = self._model.to(device).eval()
        self._device, self._dtype = device, dtype

    def __call__(self, codes_HW: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """One picture. Raises DataError where the model gives something that is no number."""
        with torch.inference_mode():
            codes_1HW = torch.from_numpy(codes_HW.astype(np.int64))[None].to(self._device)
            pixels_3HW = self._model.decode(codes_1HW, self._dtype)[0]
        if not pixels_3HW.isfinite().all():
            raise DataError("the VQ model decodes these codes to pixels that are not finite")
        return self._model.pixels.to_levels(pixels_3HW)
