"""What a training objective cares about.

Denoising score matching with any positive definite ``Lambda(t)`` has the same minimiser. In
denoiser form it is ``E_t sum_i w_i(t) (z_0,i - D_i)^2`` with ``t`` drawn from a density ``p``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import look_up


class WeightingInputs(NamedTuple):
    """What a weighting may depend on; all ``(batch, 1 | n)``.

    Example:
        >>> import torch
        >>> from scoresde.weighting import WeightingInputs, denoised
        >>> at = WeightingInputs(*torch.tensor([0.8, 0.6, 9.0, 0.6, 1.0]).reshape(5, 1, 1))
        >>> denoised(at)
        tensor([[1.]])
    """

    alpha: Tensor
    sigma: Tensor
    snr_decay: Tensor
    """``-SNR' = alpha^2 g^2 / sigma^4``."""
    out: Tensor
    """``c_out`` of the parametrisation."""
    density: Tensor
    """Of the random times, per unit of time."""


Weighting = Callable[[WeightingInputs], Tensor]
"""``inputs -> w``, ``(batch, 1 | n)``."""


def likelihood(at: WeightingInputs) -> Tensor:
    """``-SNR'/2 = alpha^2 g^2 / (2 sigma^4)``, over the density of times.

    ``Lambda = diag(g_i^2)`` (Song et al. 2021b; Batzolis et al. 2022): the loss is an unbiased
    estimate of the diffusion part of the bound on ``-log p`` in nats, whatever the density.

    Example:
        >>> import torch
        >>> from scoresde.weighting import WeightingInputs, likelihood
        >>> at = WeightingInputs(*torch.tensor([0.8, 0.6, 9.0, 0.6, 1.0]).reshape(5, 1, 1))
        >>> likelihood(at)
        tensor([[4.5000]])
    """
    return at.snr_decay / (2 * at.density)


def noise(at: WeightingInputs) -> Tensor:
    """``alpha^2 / sigma^2``: plain squared error in the noise (Ho et al. 2020, eq. 14).

    Example:
        >>> import torch
        >>> from scoresde.weighting import WeightingInputs, noise
        >>> at = WeightingInputs(*torch.tensor([0.8, 0.6, 9.0, 0.6, 1.0]).reshape(5, 1, 1))
        >>> noise(at)
        tensor([[1.7778]])
    """
    return (at.alpha / at.sigma) ** 2


def score(at: WeightingInputs) -> Tensor:
    """``alpha^2 / sigma^4``: plain squared error in the score, ``Lambda = 1``.

    Example:
        >>> import torch
        >>> from scoresde.weighting import WeightingInputs, score
        >>> at = WeightingInputs(*torch.tensor([0.8, 0.6, 9.0, 0.6, 1.0]).reshape(5, 1, 1))
        >>> score(at)
        tensor([[4.9383]])
    """
    return (at.alpha / at.sigma**2) ** 2


def denoised(at: WeightingInputs) -> Tensor:
    """1: plain squared error in the denoised mean.

    Example:
        >>> import torch
        >>> from scoresde.weighting import WeightingInputs, denoised
        >>> at = WeightingInputs(*torch.tensor([0.8, 0.6, 9.0, 0.6, 1.0]).reshape(5, 1, 1))
        >>> denoised(at)
        tensor([[1.]])
    """
    return torch.ones_like(at.sigma)


def prediction(at: WeightingInputs) -> Tensor:
    """``1 / c_out^2``: plain squared error in what the network predicts (Karras et al. 2022).

    Example:
        >>> import torch
        >>> from scoresde.weighting import WeightingInputs, prediction
        >>> at = WeightingInputs(*torch.tensor([0.8, 0.6, 9.0, 0.6, 1.0]).reshape(5, 1, 1))
        >>> prediction(at)
        tensor([[2.7778]])
    """
    return at.out**-2


WEIGHTINGS: dict[str, Weighting] = {
    f.__name__: f for f in (likelihood, noise, score, denoised, prediction)
}
"""The weightings above, by name."""


def weighting(name: str | Weighting) -> Weighting:
    """A weighting by name; a function of one's own passes through.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> from scoresde.weighting import weighting
        >>> weighting("likelihood").__name__
        'likelihood'
    """
    return look_up("weighting", name, WEIGHTINGS)
