"""The variational bound on ``-log p``, stochastic and cheap (Kingma et al. 2021, eq. 11).

    -log p(x) <= sum of KL(q(entering z | x) || law they enter with)
                 + E[-log p(x | z_eps)] + diffusion loss

The first sum is over the prior and, in a multi-scale model, the handovers; the last term is
denoising score matching with the likelihood weighting. Sums and interval lengths count: nats.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor

from scoresde.checks import finite
from scoresde.diagonal import DiagonalSDE
from scoresde.noise import Generators
from scoresde.weighting import Weighting, likelihood


class Trainable(Protocol):
    """An estimator with a weighted loss per event."""

    sde: DiagonalSDE

    def losses(
        self,
        x: Tensor,
        condition: Any = None,
        generator: Generators = None,
        weighting: Weighting | None = None,
    ) -> Tensor:
        """``(batch,)``."""


def entering(sde: DiagonalSDE, x: Tensor) -> Tensor:
    """``sum_i SNR_i(t_i) z_i^2 / 2``, with the time ``t_i`` at which each component enters.

    The divergence of ``N(alpha z, sigma^2)`` from ``N(0, sigma^2)``: of the prior and of every
    handover (reference: Batzolis et al. 2022, section 5).

    Args:
        sde: Its blocks enter when they do.
        x: Events, ``(batch, *event_shape)``.

    Returns:
        ``(batch,)``, in nats.
    """
    z = sde.basis(x)
    total: Tensor = z.new_zeros(z.shape[:-1])
    known = 0
    for stage in sde.stages():
        alpha, sigma = sde.kernel(z.new_full((1,), stage.start), stage.dim)
        fresh = (alpha / sigma * z[..., : stage.dim])[..., known:]
        total, known = total + (fresh**2).sum(-1) / 2, stage.dim
    return total


def reconstruction(sde: DiagonalSDE) -> Tensor:
    """``-E log N(z_0; z_eps / alpha, sigma^2 / alpha^2)``: the cost of starting at ``eps``."""
    alpha, sigma = sde.kernel(sde.scale.new_full((1,), sde.eps))
    spread = (sigma / alpha).expand(sde.basis.dim)
    entropy: Tensor = spread.log() + 0.5 * math.log(2 * math.pi * math.e)
    return entropy.sum()


def bound(
    estimator: Trainable, x: Tensor, *, condition: Any = None, generator: Generators = None
) -> Tensor:
    """An unbiased estimate of an upper bound on ``-log p(x)``, for one random time per event.

    Holds for priors ``N(0, sigma_T^2)``.

    Args:
        estimator: Its ``losses`` are asked for with the likelihood weighting.
        x: Events, ``(batch, *event_shape)``.
        condition: Passed on to the estimator.
        generator: Seeds times and noise.

    Returns:
        ``(batch,)``, in nats; average over events and draws.

    Raises:
        ValueError: If ``x`` has the wrong shape or is not finite, or the SDE has another prior.
    """
    finite("x", x)
    if estimator.sde.prior is not None:
        raise ValueError("prior: expected None, the normal one, got one of your own")
    diffusion = estimator.losses(x, condition, generator, likelihood)
    return entering(estimator.sde, x) + reconstruction(estimator.sde).to(x) + diffusion
