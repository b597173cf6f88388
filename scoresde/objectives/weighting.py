"""Weightings of training objectives.

Denoising score matching with any positive definite ``Lambda(t)`` has the same minimiser. In
denoiser form it is ``E_t sum_i w_i(t) (z_0,i - D_i)^2`` with ``t`` drawn from a density ``p``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import look_up
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients


class WeightingInputs(NamedTuple):
    """Arguments of weightings; all ``(*, 1 | blocks | n)``.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.objectives.weighting import WeightingInputs
        >>> at, one = DiagonalSDE(EDM(), Identity((1,))).at(torch.tensor([[2.0]])), torch.ones(1, 1)
        >>> WeightingInputs(at, at.alpha, at.sigma, out=one, density=one).snr_decay
        tensor([[0.2500]])
    """

    at: DiagonalCoefficients
    """What the SDE says of random times."""
    alpha: Tensor
    sigma: Tensor
    """The noise's deviation; 1 where there is none, whose weight is 0 whatever is said of it."""
    out: Tensor
    """``c_out`` of the parametrisation."""
    density: Tensor
    """Of the random times, per unit of time."""

    @property
    def snr_decay(self) -> Tensor:
        """``-SNR' = alpha^2 g^2 / sigma^4``; found when it is asked for."""
        _, decay = self.at.blocks.broadcastable(self.alpha, self.at.snr_decay)
        return decay


Weighting = Callable[[WeightingInputs], Tensor]
"""``inputs -> w``, ``(*, 1 | blocks | n)``."""


def likelihood(at: WeightingInputs) -> Tensor:
    """``-SNR'/2 = alpha^2 g^2 / (2 sigma^4)``, over the density of times.

    ``Lambda = diag(g_i^2)`` (Song et al. 2021b; Batzolis et al. 2022): the loss is an unbiased
    estimate of the diffusion part of the bound on ``-log p`` in nats, whatever the density.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.objectives.weighting import WeightingInputs, likelihood
        >>> at = DiagonalSDE(EDM(), Identity((1,))).at(torch.tensor([[2.0]]))
        >>> likelihood(WeightingInputs(at, at.alpha, at.sigma, out=at.sigma, density=at.alpha))
        tensor([[0.1250]])
    """
    decay, density = at.at.blocks.broadcastable(at.snr_decay, at.density)
    return decay / (2 * density)


def noise(at: WeightingInputs) -> Tensor:
    """``alpha^2 / sigma^2``: plain squared error in the noise (Ho et al. 2020, eq. 14).

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.objectives.weighting import WeightingInputs, noise
        >>> at = DiagonalSDE(EDM(), Identity((1,))).at(torch.tensor([[2.0]]))
        >>> noise(WeightingInputs(at, at.alpha, at.sigma, out=at.sigma, density=at.alpha))
        tensor([[0.2500]])
    """
    return (at.alpha / at.sigma) ** 2


def score(at: WeightingInputs) -> Tensor:
    """``alpha^2 / sigma^4``: plain squared error in the score, ``Lambda = 1``.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.objectives.weighting import WeightingInputs, score
        >>> at = DiagonalSDE(EDM(), Identity((1,))).at(torch.tensor([[2.0]]))
        >>> score(WeightingInputs(at, at.alpha, at.sigma, out=at.sigma, density=at.alpha))
        tensor([[0.0625]])
    """
    return (at.alpha / at.sigma**2) ** 2


def denoised(at: WeightingInputs) -> Tensor:
    """1: plain squared error in the denoised mean.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.objectives.weighting import WeightingInputs, denoised
        >>> at = DiagonalSDE(EDM(), Identity((1,))).at(torch.tensor([[2.0]]))
        >>> denoised(WeightingInputs(at, at.alpha, at.sigma, out=at.sigma, density=at.alpha))
        tensor([[1.]])
    """
    return torch.ones_like(at.sigma)


def prediction(at: WeightingInputs) -> Tensor:
    """``1 / c_out^2``: plain squared error in what the network predicts (Karras et al. 2022).

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.objectives.weighting import WeightingInputs, prediction
        >>> at = DiagonalSDE(EDM(), Identity((1,))).at(torch.tensor([[2.0]]))
        >>> prediction(WeightingInputs(at, at.alpha, at.sigma, out=at.sigma, density=at.alpha))
        tensor([[0.2500]])
    """
    return at.out**-2


def balanced(at: WeightingInputs) -> Tensor:
    """``1 / (c_out,i mean_j c_out,j)``: between what is predicted and what is denoised.

    Where components have scales of their own, `prediction` counts each as much as any other: the
    many of fine bands outvote the few of coarse ones, which are learned last, and samples have too
    much contrast. With `denoised`, coarse bands alone count. This is the geometric mean of the two;
    of one scale it is `prediction`.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.objectives.weighting import WeightingInputs, balanced
        >>> at = DiagonalSDE(EDM(), Identity((2,))).at(torch.tensor([[2.0]]))
        >>> out = torch.tensor([[4.0, 1.0]])
        >>> balanced(WeightingInputs(at, at.alpha, at.sigma, out=out, density=at.alpha))
        tensor([[0.1000, 0.4000]])
    """
    out = at.out.abs()
    return (out * at.at.blocks.expand(out).mean(-1, keepdim=True)).reciprocal()


WEIGHTINGS: dict[str, Weighting] = {
    f.__name__: f for f in (likelihood, noise, score, denoised, prediction, balanced)
}
"""The weightings above, by name."""


def weighting(name: str | Weighting) -> Weighting:
    """A weighting by name; a function of one's own passes through.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> from scoresde.objectives.weighting import weighting
        >>> weighting("likelihood").__name__
        'likelihood'
    """
    return look_up("weighting", name, WEIGHTINGS)
