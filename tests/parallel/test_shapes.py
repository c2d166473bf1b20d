"""Tensors that do not fit a model are named in one message, the first eight of them."""

import pytest
import torch

from mgpt.errors import CheckpointError
from mgpt.parallel.shapes import check_shapes


def test_what_fits_passes_and_what_does_not_is_named_with_both_shapes() -> None:
    wanted = {"a": torch.Size([4]), "b": torch.Size([2, 3])}
    check_shapes("the weights do not fit", dict(wanted), wanted)
    with pytest.raises(CheckpointError) as error:
        check_shapes("it does not fit", {"a": torch.Size([3]), "c": torch.Size([1])}, wanted)
    assert str(error.value) == (
        "it does not fit this model: b is missing; c is not in this model; "
        "a is [3], the model has [4]"
    )


def test_a_long_list_is_cut_short() -> None:
    wanted = {f"w{number}": torch.Size([1]) for number in range(10)}
    with pytest.raises(CheckpointError, match=r"w6 is missing; and 3 more$"):
        check_shapes("it does not fit", {}, wanted, others=["another optimizer"])
