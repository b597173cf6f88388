"""The variational bound on ``-log p``, stochastic and cheap (Kingma et al. 2021, eq. 11).

    -log p(x) <= sum of KL(q(entering z | x) || law they enter with)
                 + E[-log p(x | z_eps)] + diffusion loss,
    diffusion loss = E int sum_i (-SNR_i'/2) (z_i - D_i(z_t, t))^2 dt

The first sum is over the prior and, in a multi-scale model, the handovers; the last term is
denoising score matching with the likelihood weighting. Sums and interval lengths count: nats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import expect, finite
from scoresde.diagonal import DiagonalSDE
from scoresde.estimator import ScoreEstimator
from scoresde.grid import Grid, TimeDistribution, grid, within
from scoresde.noise import Generators, Noise
from scoresde.sde import SDE, Stage

Moments = tuple[Tensor | float, Tensor | float]
"""Mean and standard deviation along the component axis, as of `scoresde.Basis.moments`."""


def entering(sde: DiagonalSDE, x: Tensor) -> Tensor:
    """``sum_i SNR_i(t_i) (z_i - mean_i)^2 / 2``, with the time ``t_i`` at which each enters.

    The divergence of ``N(alpha z, sigma^2)`` from ``N(alpha mean, sigma^2)``: of the prior and of
    every handover (reference: Batzolis et al. 2022, section 5).

    Args:
        sde: Its blocks enter when they do.
        x: Events, ``(batch, *event_shape)``.

    Returns:
        ``(batch,)``, in nats.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.bound import entering
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> float(entering(sde, torch.ones(1, 2))) < 1e-4  # there is hardly a signal left
        True
    """
    z = sde.basis(x)
    z = z - sde.blocks.expand(sde.mean).to(z)
    total: Tensor = z.new_zeros(z.shape[:-1])
    known = 0
    for stage in sde.stages():
        alpha, sigma = sde.kernel(z.new_full((1,), stage.start), stage.dim)
        fresh = (alpha / sigma * z[..., : stage.dim])[..., known:]
        total, known = total + (fresh**2).sum(-1) / 2, stage.dim
    return total


def reconstruction(sde: DiagonalSDE) -> Tensor:
    """``-E log N(z_0; z_eps / alpha, sigma^2 / alpha^2)``: the cost of starting at ``eps``.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.bound import reconstruction
        >>> reconstruction(DiagonalSDE(VP(), Identity((2,)))).round(decimals=2)
        tensor(-6.2800, dtype=torch.float64)
    """
    alpha, sigma = sde.kernel(sde.scale.new_full((1,), sde.eps))
    spread = (sigma / alpha).expand(sde.basis.dim)
    entropy: Tensor = spread.log() + 0.5 * math.log(2 * math.pi * math.e)
    return entropy.sum()


def bound(
    estimator: ScoreEstimator,
    x: Tensor,
    *,
    condition: Any = None,
    generator: Generators = None,
    times: str | Grid = "log_snr",
    draws: int = 1,
    moments: Moments | None = None,
) -> Tensor:
    """An unbiased estimate of an upper bound on ``-log p(x)``.

    Holds for priors ``N(alpha_T mean, sigma_T^2)``. Differentiable in the estimator's parameters
    and those of its SDE: minimising its mean trains both, learned schedules included.

    Two things keep its variance low. Times are stratified, over the batch and for every event,
    and weighted by their density. And with ``D'`` the linear denoiser of independent Gaussians
    with the given moments, only ``(z - D)^2 - (z - D')^2`` is left to chance: the integral of the
    rest is, with ``y = z - mean`` and ``u = 1 + SNR std^2`` at the ends of a stage,

        1/2 log(u_end / u_start) + 1/2 (y^2/std^2 - 1)(1/u_start - 1/u_end).

    Args:
        estimator: Of a `scoresde.DiagonalSDE`.
        x: Events, ``(batch, *event_shape)``.
        condition: Passed on to the estimator, ``(batch, ...)``.
        generator: Seeds times and noise.
        times: Density of the times: a grid's name or function; `importance` makes one.
        draws: Times per event.
        moments: Of the data, the SDE's mean and scale if None. The mean of the bound does not
            depend on them.

    Returns:
        ``(batch,)``, in nats; average over events and draws.

    Raises:
        TypeError: If the estimator's SDE is not a `scoresde.DiagonalSDE`.
        ValueError: If ``x`` has the wrong shape or is not finite, ``draws`` is not positive, or
            the SDE has another prior.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, bound, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> torch.allclose(bound(model, x), -log_prob(model, x).value, atol=1e-2)
        True
    """
    finite("x", x)
    expect(draws >= 1, "draws", "at least 1", draws)
    sde, noise = _linear(estimator), Noise.of(generator)
    expect(sde.prior is None, "prior", "None, the normal one", "one of your own")
    total, z, knots = entering(sde, x) + reconstruction(sde).to(x), sde.basis(x), grid(times)
    if condition is not None:
        condition = condition.repeat(draws, *[1] * (condition.ndim - 1))
    for stage in sde.stages():
        rows = z[..., : stage.dim].repeat(draws, 1)
        u = noise.strata(z, draws).flatten()
        t, density = TimeDistribution(within(knots(sde, 1024), stage))(u)
        gap = _gap(estimator, rows, t, noise, condition, moments)
        total = total + (gap / density.to(gap)).reshape(draws, len(z)).mean(0)
        total = total + _known(sde, z[..., : stage.dim], stage, moments)
    return total


def importance(
    estimator: ScoreEstimator,
    x: Tensor,
    *,
    condition: Any = None,
    generator: Generators = None,
    moments: Moments | None = None,
    strata: int = 64,
) -> Grid:
    """A density of times in proportion to the root mean square of the bound's integrand.

    That of the least variance, estimated on some events, and mixed with a fifth of ``log_snr``'s
    so that no time is left out. For `bound`, or for training.

    Args:
        estimator: Of a `scoresde.DiagonalSDE`.
        x: Events, ``(batch, *event_shape)``.
        condition: Passed on to the estimator.
        generator: Seeds noise.
        moments: Those that `bound` will be given.
        strata: Number of times tried, in every stage at least two.

    Raises:
        TypeError: If the estimator's SDE is not a `scoresde.DiagonalSDE`.
        ValueError: If ``x`` is not finite.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity, bound, importance
        >>> model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))
        >>> x = torch.randn(9, 2)
        >>> times = importance(model, x)
        >>> bound(model, x, times=times).shape, times(model.sde, 4).shape
        (torch.Size([9]), torch.Size([5]))
    """
    finite("x", x)
    sde, noise = _linear(estimator), Noise.of(generator)
    z, found = sde.basis(x), []
    base = grid("log_snr")(sde, strata)
    for stage in sde.stages():
        knots = within(base, stage)
        middles = (knots[1:] + knots[:-1]) / 2
        with torch.no_grad():
            sizes = [
                _gap(estimator, z[..., : stage.dim], t.expand(len(z)), noise, condition, moments)
                for t in middles.to(z)
            ]
        power = torch.stack([v.double().square().mean().sqrt().cpu() for v in sizes])
        share = power * -knots.diff()
        share = 0.8 * share / share.sum() + 0.2 / len(share)
        found.append((knots.numpy(), np.concatenate([[0.0], share.cumsum(0).numpy()])))

    def chosen(sde: SDE, steps: int) -> Tensor:
        each = max(1, steps // len(found))
        parts = []
        for knots, mass in found:
            part = np.interp(np.linspace(0, mass[-1], each + 1), mass, knots)
            part[-1] = knots[-1]
            parts.append(torch.from_numpy(part))
        return torch.cat([parts[0], *(part[1:] for part in parts[1:])])

    return chosen


def _linear(estimator: ScoreEstimator) -> DiagonalSDE:
    if not isinstance(estimator.sde, DiagonalSDE):
        raise TypeError(f"estimator: expected one of a DiagonalSDE, got {type(estimator.sde)}")
    return estimator.sde


def _normal(sde: DiagonalSDE, moments: Moments | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the components of a state."""
    mean, std = (sde.mean, sde.scale) if moments is None else moments
    both = (sde.blocks.expand(torch.as_tensor(v)).to(z) for v in (mean, std))
    mean, std = (v[..., : z.shape[-1]] if v.ndim else v for v in both)
    return mean, std**2


def _gap(
    estimator: ScoreEstimator,
    z: Tensor,
    t: Tensor,
    noise: Noise,
    condition: Any,
    moments: Moments | None,
) -> Tensor:
    """``sum_i (-SNR_i'/2) [(z_i - D_i)^2 - (z_i - D'_i)^2]`` at random states, ``(batch,)``."""
    sde, times = _linear(estimator), t.unsqueeze(-1)
    alpha, sigma = (v.to(z) for v in sde.kernel(times, z.shape[-1]))
    g2 = sde.rates(times, z.shape[-1])[1].to(z)
    weight = (alpha / sigma) ** 2 * g2 / sigma**2 / 2
    z_t = alpha * z + sigma * noise(z)
    mean, variance = _normal(sde, moments, z)
    shrunk = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (z_t - alpha * mean)
    better = (z - estimator.denoise(z_t, t, condition)) ** 2 - (z - shrunk) ** 2
    # clean components have nothing to be learned
    return torch.where(sigma == 0, 0.0, weight * better).sum(-1)


def _known(sde: DiagonalSDE, z: Tensor, stage: Stage, moments: Moments | None) -> Tensor:
    """The integral of ``sum_i (-SNR_i'/2) E(z_i - D'_i)^2`` over a stage, ``(batch,)``."""
    mean, variance = _normal(sde, moments, z)
    start, end = (
        sde.log_snr(sde.scale.new_full((1,), t), stage.dim).exp().to(z)
        for t in (stage.start, stage.end)
    )
    low, high = 1 + start * variance, 1 + end * variance
    # 1/low - 1/high, divided by the variance, which may be small
    fall = (end - start) / (low * high)
    return ((high / low).log() + ((z - mean) ** 2 - variance) * fall).sum(-1) / 2
