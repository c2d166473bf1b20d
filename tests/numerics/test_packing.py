"""A packed row gives each document the hidden states, loss and gradients it has alone."""

from dataclasses import replace

import pytest
import torch

from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer

# Ids of begin-of-image, end-of-line and end-of-image; those of the tests are drawn below 6.
AXIAL = {"axial_rope_dims": 4, "begin_image_id": 0, "end_line_id": 1, "end_image_id": 2}
LAYOUTS = [{}, {"norm_placement": "post", "qk_norm_groups": 2}, {"qk_norm": "head"}, AXIAL]
POSITIONS_BT = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]])
DOCUMENTS = [(0, 0, 4), (0, 4, 7), (0, 7, 8), (0, 8, 10), (1, 0, 3), (1, 3, 10)]


def _model(layout: dict) -> Transformer:
    model = Transformer(replace(SIZES["debug"], vocab_size=50, **layout))
    model.init_weights(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=_generator(4)))
    return model.double()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids_BT = torch.randint(6, POSITIONS_BT.shape, generator=_generator(0))
    labels_BT = torch.randint(50, POSITIONS_BT.shape, generator=_generator(1))
    labels_BT[torch.rand(POSITIONS_BT.shape, generator=_generator(2)) < 0.3] = -100
    labels_BT[0, 4:7] = -100  # a document that is not trained at all
    return ids_BT, labels_BT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_packed_equal_those_alone(layout: dict):
    model, (ids_BT, _) = _model(layout), _batch()
    packed_BTD = model(ids_BT, POSITIONS_BT)
    for row, start, stop in DOCUMENTS:
        alone = model(ids_BT[row : row + 1, start:stop], torch.arange(stop - start)[None])
        # fp64: what is left is the order of sums.
        torch.testing.assert_close(packed_BTD[row, start:stop], alone[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_packed_equal_the_sum_of_those_alone(layout: dict):
    model, (ids_BT, labels_BT) = _model(layout), _batch()
    packed = model.training_sums(ids_BT, POSITIONS_BT, labels_BT, z_loss=0.01)
    packed.loss_sum.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row, start, stop in DOCUMENTS:
        part = (slice(row, row + 1), slice(start, stop))
        sums = model.training_sums(ids_BT[part], POSITIONS_BT[part], labels_BT[part], z_loss=0.01)
        sums.loss_sum.backward()
        total += sums.loss_sum.detach()
        torch.testing.assert_close(packed.token_nll[part], sums.token_nll)
    torch.testing.assert_close(packed.loss_sum.detach(), total, rtol=1e-12, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-11)


def test_an_empty_row_changes_nothing_and_reaches_every_parameter():
    model, (ids_BT, labels_BT) = _model({}), _batch()
    model.training_sums(ids_BT, POSITIONS_BT, labels_BT).loss_sum.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    padded = [torch.cat([t, t[:1]]) for t in (ids_BT, POSITIONS_BT, labels_BT)]
    padded[2][2] = -100
    model.training_sums(*padded).loss_sum.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-12, atol=1e-14)
    model.zero_grad()
    empty = model.training_sums(ids_BT, POSITIONS_BT, torch.full_like(labels_BT, -100))
    empty.loss_sum.backward()
    assert empty.loss_sum.item() == 0.0 and empty.num_trained.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
