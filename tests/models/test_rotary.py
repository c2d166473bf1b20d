"""Rotary embedding: its formula and gradient, and where in its picture a token stands."""

import math
from dataclasses import replace

import pytest
import torch

from mgpt.errors import ConfigError
from mgpt.models.rotary import picture_places, rotary_angles, rotate
from mgpt.models.sizes import SIZES

BEGIN, LINE, END = 1, 2, 3
SIZE, CODE, TEXT = 4, 5, 6
AXIAL = replace(
    SIZES["debug"], axial_rope_dims=4, begin_image_id=BEGIN, end_line_id=LINE, end_image_id=END
)
# Two lines of two codes.
PICTURE = [BEGIN, SIZE, SIZE, CODE, CODE, LINE, CODE, CODE, LINE, END]
LINES = [0, 0, 0, 1, 1, 1, 2, 2, 2, 0]
COLUMNS = [0, 0, 0, 1, 2, 3, 1, 2, 3, 0]


def _row(*documents: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[token for document in documents for token in document]])
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    return ids, positions


def test_rotation_turns_pairs_half_a_head_apart():
    x_BTHK = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    x_BTHK[..., 1] = 1.0  # pairs with dimension 3; frequency 10000^(-2/4)
    positions_1T = torch.tensor([[0, 1, 7]])
    cfg = replace(SIZES["debug"], head_dim=4)
    turned = rotate(x_BTHK, rotary_angles(cfg, positions_1T, positions_1T, torch.float64))[0, :, 0]
    angle_T = torch.tensor([0.0, 0.01, 0.07], dtype=torch.float64)
    torch.testing.assert_close(turned[:, 1], angle_T.cos(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(turned[:, 3], angle_T.sin(), rtol=1e-6, atol=1e-8)
    assert not turned[:, [0, 2]].any()


def test_rotation_has_the_gradient_of_its_formula():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    positions_BT = torch.arange(10).view(2, 5)
    cfg = replace(SIZES["debug"], head_dim=8)
    rotary = rotary_angles(cfg, positions_BT, positions_BT, torch.float64)
    assert torch.autograd.gradcheck(lambda t: rotate(t, rotary), (x,))


def test_lines_and_columns_of_two_pictures_and_the_text_around_them():
    ids_BT, positions_BT = _row([TEXT, *PICTURE, TEXT, TEXT, *PICTURE, TEXT])
    line_BT, column_BT = picture_places(AXIAL, ids_BT, positions_BT)
    assert line_BT[0].tolist() == [0, *LINES, 0, 0, *LINES, 0]
    assert column_BT[0].tolist() == [0, *COLUMNS, 0, 0, *COLUMNS, 0]


def test_a_picture_that_is_cut_off_does_not_reach_into_the_next_document():
    ids_BT, positions_BT = _row([TEXT, *PICTURE[:7]], [TEXT, CODE, LINE], PICTURE)
    line_BT, column_BT = picture_places(AXIAL, ids_BT, positions_BT)
    assert line_BT[0].tolist() == [0, *LINES[:7], 0, 0, 0, *LINES]
    assert column_BT[0].tolist() == [0, *COLUMNS[:7], 0, 0, 0, *COLUMNS]


def test_places_do_not_depend_on_later_tokens():
    ids_BT, positions_BT = _row([TEXT, *PICTURE, *PICTURE])
    whole = picture_places(AXIAL, ids_BT, positions_BT)
    for length in range(1, ids_BT.shape[1]):
        part = picture_places(AXIAL, ids_BT[:, :length], positions_BT[:, :length])
        for axis_BT, whole_BT in zip(part, whole, strict=True):
            assert torch.equal(axis_BT, whole_BT[:, :length])


def test_pairs_turn_by_position_then_line_then_column():
    ids_BT, positions_BT = _row([TEXT, *PICTURE])
    cos, sin = rotary_angles(AXIAL, ids_BT, positions_BT, torch.float32)
    assert cos.shape == (1, 11, 1, 8)
    by_axis = [4, 2, 2]  # of 8 pairs
    place = [(t, y, x) for t, (y, x) in enumerate(zip([0, *LINES], [0, *COLUMNS], strict=True))]
    for token, axes in enumerate(place):
        wanted = [
            (1.0 if axis == 0 else math.pi) * at * AXIAL.rope_theta ** (-i / pairs)
            for axis, (at, pairs) in enumerate(zip(axes, by_axis, strict=True))
            for i in range(pairs)
        ]
        angles = torch.tensor(wanted)
        torch.testing.assert_close(cos[0, token, 0], angles.cos(), rtol=0, atol=1e-5)
        torch.testing.assert_close(sin[0, token, 0], angles.sin(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dims", [3, -2, 8, 16])
def test_axes_that_leave_no_pair_for_the_position_are_refused(dims: int):
    with pytest.raises(ConfigError, match=f"axial_rope_dims={dims} must be even and below half"):
        replace(SIZES["debug"], axial_rope_dims=dims)
