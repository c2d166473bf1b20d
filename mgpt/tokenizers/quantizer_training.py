"""How each kind of quantizer is trained: what the decoder gets, and what is added to the loss.

    vq     a codebook that follows the latents it won; latents are pulled to their rows
    ibq    a codebook in which every row gets a gradient, through the softmax over all rows
           (Shi et al. 2024, Scalable Image Tokenization with Index Backpropagation Quantization)
    fsq    every channel rounded to a level; nothing is added (Mentzer et al. 2023)
    lfq    every channel a sign; sure signs, all used alike, are rewarded (Yu et al. 2023, MAGVIT-2)

Before `quantise_from_step` latents pass as they are, within the quantizer's range.

    >>> trainer = quantizer_trainer(model, cfg, seed=0)
    >>> made = trainer.quantise(model.latents(pixels_B3HW), is_quantising=True)
    >>> pictures_B3HW = model.reconstruct(made.z_BDhw)

Shape suffixes: B pictures, D width of a code's vector, h w latents, P positions, N codes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mgpt.tokenizers.quantizers import FiniteScalars, NearestCodebook, ProductCodebook
from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tokenizers.vqgan_loss import (
    CodebookTrainer,
    code_usage,
    flatten_latents,
    straight_through,
)

__all__ = ["Quantised", "QuantizerTrainer", "Weights", "quantizer_trainer"]

# A latent of 1 then has a probability of 98 % for its sign.
_SIGN_SHARPNESS = 4.0


class Weights(Protocol):
    """What a training's configuration says of its quantizer."""

    @property
    def commitment_weight(self) -> float: ...
    @property
    def codebook_decay(self) -> float | None: ...
    @property
    def entropy_weight(self) -> float: ...
    @property
    def revive_after_steps(self) -> int: ...


@dataclass(frozen=True)
class Quantised:
    """A batch's latents, quantised.

    Attributes:
        z_BDhw: what the decoder gets, with gradient.
        codes_Bhw: their codes.
        commitment: mean squared distance of latents from what stands for them.
        loss: what is added to the reconstruction loss.
    """

    z_BDhw: Tensor
    codes_Bhw: Tensor
    commitment: Tensor
    loss: Tensor


class QuantizerTrainer:
    """Trains a quantizer without a state of its own: gradients alone move it."""

    def __init__(self, model: Vqgan, cfg: Weights) -> None:
        self.model, self.cfg = model, cfg
        device = model.device
        self._window_wins_N = torch.zeros(model.num_codes, dtype=torch.int64, device=device)

    def start(self, z_PD: Tensor) -> None:
        """Called with the latents of the first step that quantises."""

    def quantise(self, z_BDhw: Tensor, is_quantising: bool) -> Quantised:
        """One step's latents."""
        raise NotImplementedError

    def observe(self, z_PD: Tensor, codes_P: Tensor, step: int) -> int:
        """Takes in the codes of one step, after its update; how many codebook rows revived."""
        self._window_wins_N += torch.bincount(codes_P, minlength=len(self._window_wins_N))
        return 0

    def usage(self) -> dict[str, float]:
        """Use of the codes since the last call; see `code_usage`."""
        usage = code_usage(self._window_wins_N)
        self._window_wins_N.zero_()
        return usage

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside the model itself."""
        return {"window_wins": self._window_wins_N}


class _Nearest(QuantizerTrainer):
    """The codebook of a running average, or of a loss where `codebook_decay` is None."""

    def __init__(self, model: Vqgan, cfg: Weights, seed: int) -> None:
        super().__init__(model, cfg)
        assert isinstance(model.quantize, NearestCodebook)
        weight_ND = model.quantize.embedding.weight
        weight_ND.requires_grad_(cfg.codebook_decay is None)
        self._codebook = CodebookTrainer(
            weight_ND, cfg.codebook_decay, cfg.revive_after_steps, seed
        )

    def start(self, z_PD: Tensor) -> None:
        self._codebook.start(z_PD)

    def quantise(self, z_BDhw: Tensor, is_quantising: bool) -> Quantised:
        codes_Bhw = self.model.quantize(z_BDhw.detach())
        rows_BDhw = self.model.embed(codes_Bhw) if is_quantising else z_BDhw
        commitment = F.mse_loss(z_BDhw.float(), rows_BDhw.detach().float())
        loss = self.cfg.commitment_weight * commitment
        if self.cfg.codebook_decay is None:
            loss = loss + F.mse_loss(rows_BDhw.float(), z_BDhw.detach().float())
        return Quantised(straight_through(z_BDhw, rows_BDhw), codes_Bhw, commitment, loss)

    def observe(self, z_PD: Tensor, codes_P: Tensor, step: int) -> int:
        return self._codebook.observe(z_PD, codes_P, step)

    def usage(self) -> dict[str, float]:
        return self._codebook.usage()

    def state(self) -> dict[str, Tensor]:
        return self._codebook.state()


class _Product(QuantizerTrainer):
    """Every row gets a gradient, whether it won a latent or not."""

    @torch.no_grad()
    def start(self, z_PD: Tensor) -> None:
        """Rows of equal length in the directions of latents: else the longest would win all."""
        weight_ND = self._weight_ND
        spread_P = torch.linspace(0, len(z_PD) - 1, len(weight_ND), device=z_PD.device).long()
        rows_ND = F.normalize(z_PD[spread_P] + 1e-2 * z_PD.std() * torch.randn_like(weight_ND))
        weight_ND.copy_(rows_ND * z_PD.norm(dim=1).mean())

    def quantise(self, z_BDhw: Tensor, is_quantising: bool) -> Quantised:
        with torch.autocast(z_BDhw.device.type, enabled=False):
            return self._by_softmax(z_BDhw, is_quantising)

    def _by_softmax(self, z_BDhw: Tensor, is_quantising: bool) -> Quantised:
        z_PD = flatten_latents(z_BDhw)
        share_PN = (z_PD @ self._weight_ND.t()).softmax(dim=1)
        codes_P = share_PN.argmax(dim=1)
        codes_Bhw = codes_P.view(z_BDhw.shape[0], *z_BDhw.shape[2:])
        if not is_quantising:
            zero = z_BDhw.new_zeros(())
            return Quantised(z_BDhw, codes_Bhw, zero, zero)
        one_hot_PN = F.one_hot(codes_P, share_PN.shape[1]).float()
        chosen_PN = one_hot_PN + share_PN - share_PN.detach()
        rows_PD = chosen_PN @ self._weight_ND
        commitment = F.mse_loss(z_PD, rows_PD.detach())
        loss = self.cfg.commitment_weight * commitment + F.mse_loss(rows_PD, z_PD.detach())
        loss = loss + self.cfg.entropy_weight * _indecision(share_PN)
        rows_BDhw = rows_PD.view(*codes_Bhw.shape, -1).movedim(-1, 1)
        return Quantised(rows_BDhw, codes_Bhw, commitment, loss)

    @property
    def _weight_ND(self) -> Tensor:
        assert isinstance(self.model.quantize, ProductCodebook)
        return self.model.quantize.embedding.weight


class _Scalars(QuantizerTrainer):
    """Rounding passes the gradient on unchanged; there is nothing else to learn."""

    def quantise(self, z_BDhw: Tensor, is_quantising: bool) -> Quantised:
        quantizer = self.model.quantize
        assert isinstance(quantizer, FiniteScalars)
        bound_BDhw = quantizer.bound(z_BDhw)
        zero = bound_BDhw.new_zeros(())
        level_BDhw = (
            straight_through(bound_BDhw, bound_BDhw.round()) if is_quantising else bound_BDhw
        )
        values_BDhw = quantizer.scale(level_BDhw)
        return Quantised(values_BDhw, quantizer(z_BDhw.detach()), zero, zero)


class _Signs(QuantizerTrainer):
    """Latents are pulled to 1 and -1, and to signs that are sure of themselves and all in use."""

    def quantise(self, z_BDhw: Tensor, is_quantising: bool) -> Quantised:
        z_BDhw = z_BDhw.float()
        codes_Bhw = self.model.quantize(z_BDhw.detach())
        signs_BDhw = self.model.embed(codes_Bhw)
        commitment = F.mse_loss(z_BDhw, signs_BDhw)
        if not is_quantising:
            zero = z_BDhw.new_zeros(())
            return Quantised(torch.tanh(z_BDhw), codes_Bhw, zero, zero)
        loss = self.cfg.commitment_weight * commitment
        positive_PD = (_SIGN_SHARPNESS * flatten_latents(z_BDhw)).sigmoid()
        shares_PD2 = torch.stack((positive_PD, 1 - positive_PD), dim=-1)
        bits = [_indecision(share_P2) for share_P2 in shares_PD2.unbind(1)]
        loss = loss + self.cfg.entropy_weight * torch.stack(bits).sum()
        return Quantised(straight_through(z_BDhw, signs_BDhw), codes_Bhw, commitment, loss)


def _indecision(share_PN: Tensor) -> Tensor:
    """Mean entropy of each position's shares, less the entropy of their mean: least where every
    position is sure, and all choices are made equally often."""
    of_each = -(share_PN * share_PN.clamp_min(1e-9).log()).sum(dim=1).mean()
    mean_N = share_PN.mean(dim=0)
    return of_each + (mean_N * mean_N.clamp_min(1e-9).log()).sum()


def quantizer_trainer(model: Vqgan, cfg: Weights, seed: int) -> QuantizerTrainer:
    """The trainer of a model's quantizer.

    Args:
        seed: key of the draws of a codebook that follows latents.
    """
    trainers: dict[str, Callable[[], QuantizerTrainer]] = {
        "vq": lambda: _Nearest(model, cfg, seed),
        "ibq": lambda: _Product(model, cfg),
        "fsq": lambda: _Scalars(model, cfg),
        "lfq": lambda: _Signs(model, cfg),
    }
    return trainers[model.cfg.quantizer]()
