"""The training parts of the VQGAN: codebook movement and revival, losses, discriminator."""

import pytest
import torch

from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokenizers.vqgan_loss import (
    CodebookTrainer,
    PatchDiscriminator,
    ReconstructionWeights,
    adaptive_weight,
    discriminator_hinge_loss,
    flatten_latents,
    reconstruction_loss,
    start_near_identity,
    straight_through,
)


def trainer(weight: torch.Tensor, decay: float | None = 0.9, after: int = 3) -> CodebookTrainer:
    return CodebookTrainer(weight, decay, revive_after_steps=after, seed=0)


def test_entries_move_to_the_mean_of_what_they_win() -> None:
    weight = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    codebook = trainer(weight, after=1000)
    latents = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])
    for step in range(200):
        codebook.observe(latents, torch.tensor([0, 0, 1]), step)
    assert torch.allclose(weight, torch.tensor([[2.0, 3.0], [9.0, 9.0]]), atol=1e-3)


def test_entries_stay_without_decay() -> None:
    weight = torch.tensor([[0.0], [5.0]])
    trainer(weight, decay=None, after=1000).observe(torch.ones(4, 1), torch.zeros(4).long(), 0)
    assert weight.flatten().tolist() == [0.0, 5.0]


@pytest.mark.parametrize("decay", [0.9, None])
def test_dead_entries_start_again_at_latents_of_the_batch(decay: float | None) -> None:
    weight = torch.full((4, 2), 100.0)
    weight[0] = 0.0
    codebook = trainer(weight, decay, after=3)
    latents = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(8, dtype=torch.int64)
    assert [codebook.observe(latents, codes, step) for step in range(3)] == [0, 0, 3]
    rows = {tuple(row) for row in latents.tolist()}
    assert all(tuple(row) in rows for row in weight[1:].tolist())
    # A revived entry has its full span of steps before it can be moved again.
    assert codebook.observe(latents, codes, 3) == 0


def test_start_covers_the_codebook_even_from_fewer_latents() -> None:
    weight = torch.zeros(64, 2)
    latents = torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) + 1.0
    trainer(weight).start(latents)
    assert torch.cdist(weight, latents).min(dim=1).values.max() < 0.01
    assert len(weight.unique(dim=0)) == 64


def test_usage_counts_since_the_last_call() -> None:
    codebook = trainer(torch.zeros(4, 1), after=1000)
    codebook.observe(torch.zeros(8, 1), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0)
    usage = codebook.usage()
    assert usage["codes_used_percent"] == 50.0
    assert usage["codes_perplexity"] == pytest.approx(2.0)
    codebook.observe(torch.zeros(2, 1), torch.tensor([3, 3]), 1)
    assert codebook.usage()["codes_perplexity"] == pytest.approx(1.0)


def test_state_carries_over() -> None:
    latents = torch.rand(16, 2, generator=torch.Generator().manual_seed(1))
    codes = torch.arange(16) % 3
    weight_a = torch.rand(4, 2)
    codebook_a = trainer(weight_a)
    codebook_a.observe(latents, codes, 0)
    weight_b = weight_a.clone()
    codebook_b = trainer(weight_b)
    codebook_b.load_state({name: t.clone() for name, t in codebook_a.state().items()})
    for step in range(1, 6):
        codebook_a.observe(latents + step, codes, step)
        codebook_b.observe(latents + step, codes, step)
    assert torch.equal(weight_a, weight_b)


def only(**weights: float) -> ReconstructionWeights:
    return ReconstructionWeights(
        **{
            "l1": 0.0,
            "l2": 0.0,
            "edge": 0.0,
            "chroma": 0.0,
            "contrast": 0.0,
            "detail": 0.0,
            **weights,
        }
    )


def test_reconstruction_terms() -> None:
    target = torch.zeros(1, 3, 4, 4)
    assert reconstruction_loss(target + 0.5, target, only(l1=1.0)).item() == pytest.approx(0.5)
    assert reconstruction_loss(target + 0.5, target, only(l2=1.0)).item() == pytest.approx(0.25)
    # A constant error has no edges; a line has: two of three differences across are 1, none down.
    assert reconstruction_loss(target + 0.5, target, only(edge=1.0)).item() == 0.0
    line = target.clone()
    line[..., 1] = 1.0
    assert reconstruction_loss(line, target, only(edge=1.0)).item() == pytest.approx(2 / 3)
    # Grey errors have no chroma; one channel off by 1 leaves 2/3, -1/3, -1/3.
    assert reconstruction_loss(target + 0.5, target, only(chroma=1.0)).item() == 0.0
    red = target.clone()
    red[:, 0] = 1.0
    assert reconstruction_loss(red, target, only(chroma=1.0)).item() == pytest.approx(2 / 9)


def test_contrast_weighs_what_stands_out() -> None:
    target = torch.zeros(1, 3, 8, 8)
    target[..., 0, 0] = 1.0
    on_ground, on_thing = target.clone(), target.clone()
    on_ground[..., 5, 5] += 0.5
    on_thing[..., 0, 0] += 0.5
    weights = only(l1=1.0, contrast=8.0)
    loss_ground = reconstruction_loss(on_ground, target, weights)
    # The thing is 63/64 from the mean colour, the ground 1/64.
    expected = (1 + 8 * 63 / 64) / (1 + 8 / 64)
    ratio = reconstruction_loss(on_thing, target, weights) / loss_ground
    assert ratio.item() == pytest.approx(expected, rel=1e-4)


def test_detail_weighs_a_highlight_of_the_grounds_own_colour() -> None:
    target = torch.ones(1, 3, 32, 32)
    target[..., 8:24, 8:24] = -1.0
    target[..., 16, 16] = 1.0
    highlight, ground = target.clone(), target.clone()
    highlight[..., 16, 16] -= 0.5
    ground[..., 2, 2] -= 0.5
    weights = only(l1=1.0, detail=8.0)
    ratio = reconstruction_loss(highlight, target, weights) / reconstruction_loss(
        ground, target, weights
    )
    # 48 of the 49 pixels around differ by 2.
    assert ratio.item() == pytest.approx(1 + 8 * 2 * 48 / 49, rel=1e-4)


def test_a_fresh_model_near_identity_is_linear_in_its_blocks() -> None:
    torch.manual_seed(0)
    config = VqganConfig(
        ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, embed_dim=4, n_embed=16, num_groups=4
    )
    model = Vqgan(config)
    start_near_identity(model)
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(model.encoder.down[0].block[0](x), x)
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(model.decoder.mid(x), x)
    flat = torch.ones(1, 16, 4, 4)
    centre = model.decoder.up[1].upsample(flat)[0, :, 4, 4]
    assert centre.mean().item() == pytest.approx(1.0, abs=0.35)


def test_straight_through_gives_the_code_forward_and_the_latent_backward() -> None:
    latents = torch.randn(1, 2, 3, 3, requires_grad=True)
    quantised = torch.randn(1, 2, 3, 3)
    out = straight_through(latents, quantised)
    assert torch.allclose(out, quantised)
    (out * 3.0).sum().backward()
    assert torch.equal(latents.grad, torch.full_like(latents, 3.0))


def test_flattened_latents_are_in_the_order_of_flattened_codes() -> None:
    latents = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    flat = flatten_latents(latents)
    assert torch.equal(flat[1 * 20 + 2 * 5 + 3], latents[1, :, 2, 3].float())


def test_discriminator_learns_to_tell_and_is_independent_of_the_batch() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=8)
    real, fake = torch.rand(4, 3, 32, 32), torch.zeros(4, 3, 32, 32)
    assert torch.allclose(discriminator(real)[:1], discriminator(real[:1]), atol=1e-6)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = discriminator_hinge_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 < losses[0]


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    weight = torch.ones(4, requires_grad=True)
    ratio = adaptive_weight((weight * 6.0).sum(), (weight * 2.0).sum(), weight)
    assert ratio.item() == pytest.approx(3.0, rel=1e-3)
    assert not ratio.requires_grad
