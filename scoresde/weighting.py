"""What a training objective cares about.

Denoising score matching with any positive definite ``Lambda(t)`` has the same minimiser. In
denoiser form it is ``E_t sum_i w_i(t) (z_0,i - D_i)^2`` with ``t`` drawn from a density ``p``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import named


class Levels(NamedTuple):
    """What a weighting may depend on; all ``(batch, 1 | n)``."""

    alpha: Tensor
    sigma: Tensor
    g2: Tensor
    out: Tensor
    density: Tensor


Weighting = Callable[[Levels], Tensor]
"""``levels -> w``, ``(batch, 1 | n)``."""


def likelihood(at: Levels) -> Tensor:
    """``-SNR'/2 = alpha^2 g^2 / (2 sigma^4)``, over the density of times.

    ``Lambda = diag(g_i^2)`` (Song et al. 2021b; Batzolis et al. 2022): the loss is an unbiased
    estimate of the diffusion part of the bound on ``-log p`` in nats, whatever the density.
    """
    return (at.alpha / at.sigma) ** 2 * at.g2 / at.sigma**2 / (2 * at.density)


def noise(at: Levels) -> Tensor:
    """``alpha^2 / sigma^2``: plain squared error in the noise (DDPM's "simple" loss)."""
    return (at.alpha / at.sigma) ** 2


def score(at: Levels) -> Tensor:
    """``alpha^2 / sigma^4``: plain squared error in the score, ``Lambda = 1``."""
    return (at.alpha / at.sigma**2) ** 2


def denoised(at: Levels) -> Tensor:
    """1: plain squared error in the denoised mean."""
    return torch.ones_like(at.sigma)


def prediction(at: Levels) -> Tensor:
    """``1 / c_out^2``: plain squared error in what the network predicts (Karras et al. 2022)."""
    return at.out**-2


WEIGHTINGS: dict[str, Weighting] = {
    f.__name__: f for f in (likelihood, noise, score, denoised, prediction)
}
"""The weightings above, by name."""


def weighting(name: str | Weighting) -> Weighting:
    """A weighting by name; a function of one's own passes through.

    Raises:
        ValueError: If the name is unknown.
    """
    return named("weighting", name, WEIGHTINGS)
