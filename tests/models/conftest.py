"""Small transformers with every parameter away from its initial value, so that each one matters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer


@pytest.fixture
def make_transformer() -> Callable[..., Transformer]:
    """`make(seed, **changes)`: the debug size with `changes`, in evaluation mode, fp64."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Transformer:
        model = Transformer(replace(SIZES["debug"], vocab_size=97, **changes))
        model.init_weights(seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator)
                parameter.add_(noise)
        return model.to(dtype).eval()

    return make
