"""What a VQGAN is trained with: reconstruction terms, the moving codebook, the patch discriminator.

`CodebookTrainer` keeps the codebook on the latents it stands for: an exponential moving average
of the latents each entry won (van den Oord et al. 2017, appendix A.1), and a new start, at a latent
of the current batch, for every entry that has won none for a while. The adversarial part is that
of Esser et al. 2021 (taming-transformers): hinge loss on patches, weighted by the ratio of the two
gradients at the decoder's last layer.

This module knows tensors and losses; steps, data and files are `mgpt.train.train_vqgan`.

    >>> codebook = CodebookTrainer(model.quantize.embedding.weight, decay=0.99,
    ...                            revive_after_steps=100, seed=0)
    >>> z_BDhw = model.latents(pixels_B3HW)
    >>> codes_Bhw = model.quantize(z_BDhw.detach())
    >>> codebook.observe(flatten_latents(z_BDhw.detach()), codes_Bhw.flatten(), step=0)

Shape suffixes: B pictures, C channels, H W pixels, h w latents, P positions (B·h·w of them),
N codebook entries, D their width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tokenizers.vqgan_layers import AttnBlock, Downsample, ResnetBlock, Upsample

__all__ = [
    "CodebookTrainer",
    "PatchDiscriminator",
    "ReconstructionWeights",
    "adaptive_weight",
    "code_usage",
    "discriminator_hinge_loss",
    "flatten_latents",
    "reconstruction_loss",
    "start_near_identity",
    "straight_through",
]

# Share of the usual initial weights that resampling convolutions keep.
_RESAMPLING_NOISE = 0.3
# Side of the window that `ReconstructionWeights.detail` compares a pixel with.
_AROUND_PX = 7
# Purpose numbers of the draws keyed by (seed, purpose, step).
_DRAW_START = 1
_DRAW_REVIVE = 2


@dataclass(frozen=True)
class ReconstructionWeights:
    """Weights of the terms of `reconstruction_loss`."""

    l1: float = 1.0
    """Mean absolute error."""
    l2: float = 4.0
    """Mean squared error."""
    edge: float = 0.5
    """Mean absolute error of neighbour differences, down and across: thin lines weigh in it as
    much as areas do in the other terms."""
    chroma: float = 4.0
    """Mean squared error of the channels' differences from their mean: hue is a small part of the
    squared error and is otherwise learned last."""
    contrast: float = 8.0
    """Extra weight, in the terms over pixels, of one far from its picture's mean colour: small
    things on a wide ground count. With `detail` 0 too, all pixels weigh alike."""
    detail: float = 0.0
    """The same for one far from the mean colour of the pixels around it: highlights and lines
    count, also where their own colour is the ground's."""


def reconstruction_loss(
    out_BCHW: Tensor, target_BCHW: Tensor, weights: ReconstructionWeights
) -> Tensor:
    """Weighted sum of the errors that `ReconstructionWeights` names.

    Returns:
        fp32 scalar.
    """
    target_BCHW = target_BCHW.float()
    error_BCHW = out_BCHW.float() - target_BCHW
    square_BCHW = weights.l2 * error_BCHW.square()
    if weights.chroma:
        chroma_BCHW = error_BCHW - error_BCHW.mean(dim=1, keepdim=True)
        square_BCHW = square_BCHW + weights.chroma * chroma_BCHW.square()
    by_pixel_BCHW = weights.l1 * error_BCHW.abs() + square_BCHW
    weight_B1HW = torch.ones_like(target_BCHW[:, :1])
    if weights.contrast:
        mean_BC11 = target_BCHW.mean(dim=(2, 3), keepdim=True)
        contrast_B1HW = (target_BCHW - mean_BC11).abs().mean(dim=1, keepdim=True)
        weight_B1HW = weight_B1HW + weights.contrast * contrast_B1HW
    if weights.detail:
        around_BCHW = F.avg_pool2d(
            target_BCHW, _AROUND_PX, stride=1, padding=_AROUND_PX // 2, count_include_pad=False
        )
        detail_B1HW = (target_BCHW - around_BCHW).abs().mean(dim=1, keepdim=True)
        weight_B1HW = weight_B1HW + weights.detail * detail_B1HW
    by_pixel_BCHW = by_pixel_BCHW * (weight_B1HW / weight_B1HW.mean())
    loss = by_pixel_BCHW.mean()
    if weights.edge:
        edges = error_BCHW.diff(dim=2).abs().mean() + error_BCHW.diff(dim=3).abs().mean()
        loss = loss + weights.edge * edges
    return loss


@torch.no_grad()
def start_near_identity(model: Vqgan) -> None:
    """Lets a fresh model begin as a nearly linear one that passes blurred colours through.

    Residual branches start at zero (as in Fixup, Zhang et al. 2019) and resampling convolutions
    near an average over their window. Colours are then learned in a few hundred steps; from the
    usual start a narrow model is grey for a thousand.
    """
    for module in model.modules():
        if isinstance(module, ResnetBlock | AttnBlock):
            last = module.conv2 if isinstance(module, ResnetBlock) else module.proj_out
            for parameter in last.parameters():
                parameter.zero_()
        elif isinstance(module, Downsample | Upsample):
            weight_OIHW = module.conv.weight
            weight_OIHW.mul_(_RESAMPLING_NOISE)
            window = 2 if isinstance(module, Downsample) else 3
            channels = torch.arange(len(weight_OIHW))
            weight_OIHW[channels, channels, :window, :window] += 1.0 / window**2


def flatten_latents(z_BDhw: Tensor) -> Tensor:
    """[B, D, h, w] to [B·h·w, D] in the order of flattened codes, fp32."""
    return z_BDhw.movedim(1, -1).flatten(0, 2).float()


def straight_through(z_BDhw: Tensor, quantised_BDhw: Tensor) -> Tensor:
    """The quantised value, with the gradient passed to the latent unchanged."""
    return z_BDhw + (quantised_BDhw - z_BDhw).detach()


def code_usage(wins_N: Tensor) -> dict[str, float]:
    """How evenly codes are used, from how often each was.

    Returns:
        `codes_used_percent`, and `codes_perplexity`: the number of codes that, used equally, would
        have the same entropy.
    """
    wins_N = wins_N.double()
    share_N = wins_N / wins_N.sum().clamp_min(1.0)
    entropy = -(share_N * share_N.clamp_min(1e-12).log()).sum()
    used_percent = 100.0 * (wins_N > 0).double().mean()
    return {
        "codes_used_percent": float(used_percent),
        "codes_perplexity": float(entropy.exp()),
    }


class CodebookTrainer:
    """Moves a codebook in place, revives its unused entries and counts how it is used.

    Args:
        weight_ND: the codebook, changed in place without gradient.
        decay: share of the old average kept each step; None leaves the entries to a codebook loss
            and its optimiser, and only revival touches them here.
        revive_after_steps: steps without a win after which an entry starts again.
        seed: key of the draws.
    """

    def __init__(
        self, weight_ND: Tensor, decay: float | None, revive_after_steps: int, seed: int
    ) -> None:
        self._weight_ND = weight_ND
        self._decay = decay
        self._revive_after_steps = revive_after_steps
        self._seed = seed
        num_entries = weight_ND.shape[0]
        device = weight_ND.device
        self._wins_N = torch.ones(num_entries, device=device)
        self._sum_ND = weight_ND.detach().clone().float()
        self._idle_steps_N = torch.zeros(num_entries, dtype=torch.int64, device=device)
        self._window_wins_N = torch.zeros(num_entries, dtype=torch.int64, device=device)

    @torch.no_grad()
    def start(self, z_PD: Tensor) -> None:
        """Puts every entry on a latent of the batch, spread over what there is."""
        everyone_N = torch.arange(self._weight_ND.shape[0], device=z_PD.device)
        self._place(everyone_N, z_PD, self._weight_ND[:0], (_DRAW_START, 0))

    @torch.no_grad()
    def observe(self, z_PD: Tensor, codes_P: Tensor, step: int) -> int:
        """Takes in one step's latents and the codes they got; returns how many entries revived."""
        num_entries = self._weight_ND.shape[0]
        wins_N = torch.bincount(codes_P, minlength=num_entries)
        self._window_wins_N += wins_N
        self._idle_steps_N = torch.where(wins_N > 0, 0, self._idle_steps_N + 1)
        if self._decay is not None:
            won_ND = torch.zeros_like(self._sum_ND).index_add_(0, codes_P, z_PD)
            self._wins_N.lerp_(wins_N.float(), 1.0 - self._decay)
            self._sum_ND.lerp_(won_ND, 1.0 - self._decay)
            # Laplace smoothing keeps entries of few wins finite (appendix A.1).
            total = self._wins_N.sum()
            smoothed_N = (self._wins_N + 1e-5) * total / (total + num_entries * 1e-5)
            self._weight_ND.copy_(self._sum_ND / smoothed_N[:, None])
        dead_K = (self._idle_steps_N >= self._revive_after_steps).nonzero().flatten()
        if len(dead_K):
            live_LD = self._weight_ND[self._idle_steps_N < self._revive_after_steps]
            self._place(dead_K, z_PD, live_LD, (_DRAW_REVIVE, step))
        return len(dead_K)

    def usage(self) -> dict[str, float]:
        """Use of the codebook since the last call; see `code_usage`."""
        usage = code_usage(self._window_wins_N)
        self._window_wins_N.zero_()
        return usage

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside the codebook itself."""
        return {
            "wins": self._wins_N,
            "sum": self._sum_ND,
            "idle_steps": self._idle_steps_N,
            "window_wins": self._window_wins_N,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def _place(
        self, entries_K: Tensor, z_PD: Tensor, live_LD: Tensor, key: tuple[int, int]
    ) -> None:
        """Puts entries on latents drawn in proportion to the squared distance from all others.

        This is the seeding of k-means++ (Arthur and Vassilvitskii 2007): rare latents, far from
        every entry, get one as surely as the many that look alike.
        """
        generator = np.random.default_rng([self._seed, *key])
        distance_P = torch.full((len(z_PD),), torch.inf, device=z_PD.device)
        if len(live_LD):
            distance_P = torch.cdist(z_PD, live_LD).amin(dim=1).square()
        spread = 1e-3 * z_PD.std().item()
        for entry in entries_K.tolist():
            weight_P = distance_P.double().cpu().numpy()
            total = weight_P.sum()
            if 0.0 < total < np.inf:
                place_D = z_PD[generator.choice(len(z_PD), p=weight_P / total)]
            else:  # The first of all, or more entries than different latents.
                place_D = z_PD[generator.integers(len(z_PD))]
            if total == 0.0:
                noise_D = generator.normal(0.0, spread, size=len(place_D))
                place_D = place_D + torch.from_numpy(noise_D).to(place_D)
            self._weight_ND[entry] = place_D
            distance_P = distance_P.minimum((z_PD - place_D).square().sum(dim=1))
        # One win as history: the entry follows its first real wins at once.
        self._wins_N[entries_K] = 1.0
        self._sum_ND[entries_K] = self._weight_ND[entries_K]
        self._idle_steps_N[entries_K] = 0


class PatchDiscriminator(nn.Module):
    """Real or generated, by patch: [B, 3, H, W] to logits [B, 1, H', W'].

    The PatchGAN of Isola et al. 2017 with `num_layers` halvings; GroupNorm stands for its batch
    norm, so that a picture's logits do not depend on its neighbours in the batch.
    """

    def __init__(self, channels: int = 32, num_layers: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        width = channels
        for index in range(1, num_layers + 1):
            before, width = width, channels * min(2**index, 8)
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(4, width),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.main(x_BCHW)


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½ (mean max(0, 1 - real) + mean max(0, 1 + fake)), fp32 scalar."""
    real, fake = F.relu(1.0 - real_logits.float()), F.relu(1.0 + fake_logits.float())
    return 0.5 * (real.mean() + fake.mean())


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer_weight: Tensor
) -> Tensor:
    """Weight of the adversarial loss: ratio of the two gradient norms at the decoder's last layer.

    Esser et al. 2021, equation 7; at most 1e4, without gradient.
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer_weight, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_layer_weight, retain_graph=True)
    ratio = of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)
    return ratio.clamp(0.0, 1e4).detach()
