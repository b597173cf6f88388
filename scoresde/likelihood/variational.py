"""The variational bound on ``-log p``, stochastic and cheap (Kingma et al. 2021, eq. 11).

    -log p(x) <= sum of KL(q(appended z | x) || prior of theirs)
                 + E[-log p(x | z_eps)] + diffusion loss,
    diffusion loss = E int sum_i (-SNR_i'/2) (z_i - D_i(z_t, t))^2 dt

The first sum is over the prior and, in a multi-scale model, what stages append; the last term is
denoising score matching with the likelihood weighting. Losses are sums over components, in nats.

``p`` is the density of the reverse SDE (``eta = 1``) from its prior, in infinitely many steps; a
block that was dropped enters as noise independent of the others. The probability flow has another
density, `scoresde.log_prob`, unless scores are exact and blocks enter without signal: where a block
is dropped at a finite SNR, the bound may be above or below the flow's ``-log p``.

Components that are observed are no part of ``x``: they count as infinitely noisy, in every term.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scoresde.checks import expect, finite, readable, whole
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.internals.free_memory import device_chunk_size
from scoresde.internals.modes import evaluation_mode
from scoresde.likelihood.finite import all_finite
from scoresde.noise import Generators, Noise
from scoresde.objectives.parametrization import shrinkage
from scoresde.objectives.time_distribution import GRID_STEPS, TimeDistribution
from scoresde.precision import cast_like, precision
from scoresde.sampling.grid import Grid, grid, restrict
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import SDE, Stage
from scoresde.selection import samples

_Floats = npt.NDArray[np.float64]

Moments = tuple[Tensor | float, Tensor | float]
"""Mean and standard deviation along the component axis, as of `scoresde.Basis.moments`."""


def prior_loss(sde: DiagonalSDE, x: Tensor) -> Tensor:
    """Divergences of the prior, and of what stages append, from the diffused data.

    Of ``N(alpha z, sigma^2)`` from ``N(alpha mean, alpha^2 std^2 + sigma^2)``, at the time at which
    each component enters; ``sum_i SNR_i (z_i - mean_i)^2 / 2`` where the SDE's ``std`` is 0
    (reference: Batzolis et al. 2022, section 5).

    Args:
        sde: Its blocks enter when they do.
        x: Events, ``(*batch, *event_shape)``.

    Returns:
        ``(*batch,)``, in nats.

    Raises:
        ValueError: If there is no density, see `scoresde.DiagonalSDE.unobserved`.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.likelihood.variational import prior_loss
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> float(prior_loss(sde, torch.ones(1, 2))) < 1e-4  # alpha_T is next to 0
        True
    """
    sde.unobserved()
    z = sde.basis(x)
    z = z - sde.blocks.expand(sde.mean).to(z)
    std = sde.blocks.expand(sde.std).expand(z.shape[-1])
    total: Tensor = z.new_zeros(z.shape[:-1])
    known = 0
    for stage in sde.stages():
        alpha, sigma = _kernel(sde, sde.scale.new_full((1,), stage.start), stage.dim)
        snr = (alpha / sigma).expand(stage.dim)[known:] ** 2
        wide = snr * std[known : stage.dim] ** 2  # by how much data widen what is drawn
        distance = (snr / (1 + wide)).to(z) * z[..., known : stage.dim] ** 2
        constant = (wide.log1p() - wide / (1 + wide)).to(z)
        total, known = total + (distance + constant).sum(-1) / 2, stage.dim
    return total


def reconstruction(sde: DiagonalSDE) -> Tensor:
    """``-E log N(z_0; z_eps / alpha, sigma^2 / alpha^2)``: the cost of starting at ``eps``.

    Raises:
        ValueError: If there is no density, see `scoresde.DiagonalSDE.unobserved`.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.likelihood.variational import reconstruction
        >>> reconstruction(DiagonalSDE(VP(), Identity((2,)))).shape
        torch.Size([])
    """
    alpha, sigma = sde.kernel(sde.scale.new_full((1,), sde.eps))
    unobserved = sde.unobserved()
    deviation = (sigma / alpha).expand(sde.basis.dim).masked_fill(~unobserved, 1.0)
    entropy: Tensor = deviation.log() + 0.5 * math.log(2 * math.pi * math.e)
    return entropy.masked_fill(~unobserved, 0.0).sum()


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
    """An unbiased estimate of an upper bound on ``-log p(x)`` under the SDE.

    ``p`` is the density of the reverse SDE from ``N(alpha_T mean, sigma_T^2)``; of a conditioned
    estimator, that of what is not observed. Differentiable in the parameters of the estimator and
    of its SDE: minimising the mean trains both, learned schedules included. Without gradients,
    networks are in evaluation mode, as for `scoresde.log_prob`.

    The variance is kept low in two ways. Times are stratified, over the batch and for every event,
    and weighted by their density. And with ``D'`` the linear denoiser of independent Gaussians
    with the given moments, only ``(z - D)^2 - (z - D')^2`` is estimated: the integral of the rest
    is known, with ``y = z - mean`` and ``u = 1 + SNR std^2`` at the ends of a stage,

        1/2 log(u_end / u_start) + 1/2 (y^2/std^2 - 1)(1/u_start - 1/u_end).

    Args:
        estimator: Of a `scoresde.DiagonalSDE`.
        x: Events, ``(*batch, *event_shape)``.
        condition: Passed on to the estimator with its batch flattened, see
            `scoresde.selection.samples`.
        generator: Seeds times and noise. With one generator per event, its value does not depend
            on the other events, and times are stratified over its draws alone.
        times: Density of the times: a grid's name or function; `importance` makes one.
        draws: Times per event.
        moments: Of the data, the SDE's mean and scale if None. The mean of the bound does not
            depend on them.

    Returns:
        ``(*batch,)``, in nats; average over events and draws.

    Raises:
        TypeError: If the estimator's SDE is not a `scoresde.DiagonalSDE`.
        ValueError: If ``x`` has the wrong shape or is not finite, ``draws`` is not a whole number
            of at least 1, the SDE has another prior, there is no density (observed components
            diffuse, or others stand still), or the result is not finite.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, bound, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> torch.allclose(bound(model, x), -log_prob(model, x).value, atol=1e-2)
        True
    """
    whole("draws", draws, 1)
    sde, noise, knots = _linear(estimator), Noise.of(generator), grid(times)
    expect(sde.prior is None, "prior", "None, the normal one", "one of your own")
    z, batch = _flat(estimator, x)
    start = prior_loss(sde, x) + reconstruction(sde).to(x)
    if readable(x):  # else looked at with what comes out, as that waits
        finite("x", x)
    total = start.expand(batch).reshape(-1)
    rows = torch.arange(len(z), device=z.device).repeat(draws)
    model, conditions = estimator.select(rows, batch), samples(condition, rows, batch)
    with nullcontext() if torch.is_grad_enabled() else evaluation_mode(estimator):
        for stage in sde.stages():
            prefix = z[..., : stage.dim]
            u = noise.stratified(z, draws)
            t, density = TimeDistribution(restrict(knots(sde, GRID_STEPS), stage))(u)
            xi = torch.cat([noise(prefix) for _ in range(draws)])
            gap = _gap(model, prefix.repeat(draws, 1), t.flatten(), xi, conditions, moments)
            total = total + (gap.reshape(density.shape) / density.to(gap)).mean(0)
            total = total + _known(sde, prefix, stage, moments)
    total = total.reshape(batch)
    all_finite({"x": x, "bound": total})
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

    It minimises the variance, is estimated on some events, and is mixed with a fifth of
    ``log_snr``'s so that no time is left out. For `bound`, or for training.

    Args:
        estimator: Of a `scoresde.DiagonalSDE`.
        x: Events, ``(*batch, *event_shape)``, one at least.
        condition: Passed on to the estimator with its batch flattened, see
            `scoresde.selection.samples`.
        generator: Seeds noise.
        moments: Those that `bound` will be given.
        strata: Number of times tried, in every stage at least two.

    Raises:
        TypeError: If the estimator's SDE is not a `scoresde.DiagonalSDE`.
        ValueError: If ``x`` has the wrong shape, is not finite or empty, or there is no density,
            see `bound`.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity, bound
        >>> from scoresde.likelihood import importance
        >>> model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))
        >>> x = torch.randn(9, 2)
        >>> times = importance(model, x)
        >>> bound(model, x, times=times).shape, times(model.sde, 4).shape
        (torch.Size([9]), torch.Size([5]))
    """
    sde, noise = _linear(estimator), Noise.of(generator)
    sde.unobserved()
    z, batch = _flat(estimator, x)
    if readable(x):  # else looked at with what comes out, as that waits
        finite("x", x)
    expect(len(z) > 0, "x", "at least one event", tuple(x.shape))
    rows = torch.arange(len(z), device=z.device)
    model, conditions = estimator.select(rows, batch), samples(condition, rows, batch)
    base, knots, sizes = grid("log_snr")(sde, strata), [], []
    with torch.no_grad(), evaluation_mode(estimator):
        for stage in sde.stages():
            knots.append(restrict(base, stage))
            middles, prefix = (knots[-1][1:] + knots[-1][:-1]) / 2, z[..., : stage.dim]
            for t in cast_like(middles, z):
                size = _gap(model, prefix, t.expand(len(z)), noise(prefix), conditions, moments)
                sizes.append(size.to(precision(z.device)).square().mean().sqrt())
    powers = torch.stack(sizes).cpu()
    if not bool(torch.isfinite(powers).all()):
        all_finite({"x": x, "importance": powers.to(x)}, "from the estimator")
    parts = powers.split([len(v) - 1 for v in knots])
    densities = [_mass(*pair) for pair in zip(knots, parts, strict=True)]

    def chosen(sde: SDE, steps: int) -> Tensor:
        each = max(1, steps // len(densities))
        parts = []
        for knots, mass in densities:
            part = np.interp(np.linspace(0, mass[-1], each + 1), mass, knots)
            part[-1] = knots[-1]
            parts.append(torch.from_numpy(part))
        return torch.cat([parts[0], *(part[1:] for part in parts[1:])])

    return chosen


def _mass(knots: Tensor, power: Tensor) -> tuple[_Floats, _Floats]:
    """Times, and how much of a density there is up to each."""
    share = power.double() * -knots.diff()
    # nothing is left to chance where the control is exact; that there is no power is no error
    share = share / share.sum().clamp(min=1e-300)
    share = (1 - _DEFENSIVE) * share + _DEFENSIVE / len(share)
    return knots.numpy(), np.concatenate([[0.0], share.cumsum(0).numpy()])


_DEFENSIVE = 0.2
"""Share of times that are drawn as `knots` are, whatever the power (Hesterberg 1995): weights are
at most 5 times those of even times."""


def _linear(estimator: ScoreEstimator) -> DiagonalSDE:
    expect_estimator(estimator)
    if not isinstance(estimator.sde, DiagonalSDE):
        raise TypeError(f"estimator: expected one of a DiagonalSDE, got {type(estimator.sde)}")
    return estimator.sde


def _flat(estimator: ScoreEstimator, x: Tensor) -> tuple[Tensor, torch.Size]:
    """States ``(N, n)``, and their batch."""
    z = estimator.states(x)
    return z.reshape(-1, z.shape[-1]), z.shape[:-1]


def _kernel(sde: DiagonalSDE, t: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """As `scoresde.DiagonalSDE.kernel`, with infinite noise on what is observed."""
    alpha, sigma = sde.kernel(t, dim)
    return alpha, torch.where(sde.observed[:dim].to(sigma.device), torch.inf, sigma)


def _normal(sde: DiagonalSDE, moments: Moments | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the components of a state."""
    mean, std = (sde.mean, sde.scale) if moments is None else moments
    moments_of_data = (
        sde.blocks.expand(torch.as_tensor(v, device=z.device)).to(z) for v in (mean, std)
    )
    mean, std = (v[..., : z.shape[-1]] if v.ndim else v for v in moments_of_data)
    return mean, std**2


def _gap(
    estimator: ScoreEstimator,
    z: Tensor,
    t: Tensor,
    xi: Tensor,
    condition: Any,
    moments: Moments | None,
) -> Tensor:
    """``sum_i (-SNR_i'/2) [(z_i - D_i)^2 - (z_i - D'_i)^2]`` at random states, ``(batch,)``.

    Of as many states at a time as there is memory for.
    """
    size = device_chunk_size(len(z), z[:1])
    if size is not None:
        parts = torch.arange(len(z), device=z.device).split(size)
        some = (
            (v, estimator.select(v, (len(z),)), samples(condition, v, (len(z),))) for v in parts
        )
        gaps = (_gap(model, z[v], t[v], xi[v], known, moments) for v, model, known in some)
        return torch.cat([*gaps])
    at = _linear(estimator).at(t.reshape(1, -1, 1), z)
    (denoise,), now = estimator.denoisers(at, condition), at[0]
    alpha, sigma, rate = (now.cast(v) for v in (now.alpha, now.sigma, now.snr_decay))
    weight = rate.masked_fill(estimator.sde.observed[: z.shape[-1]].to(z.device), 0.0) / 2
    z_t = alpha * z + sigma * xi
    mean, variance = _normal(_linear(estimator), moments, z)
    shrunk = mean + shrinkage(alpha, sigma, variance) * (z_t - alpha * mean)
    better = (z - denoise(z_t)) ** 2 - (z - shrunk) ** 2
    return (weight * better).sum(-1)


def _known(sde: DiagonalSDE, z: Tensor, stage: Stage, moments: Moments | None) -> Tensor:
    """The integral of ``sum_i (-SNR_i'/2) E(z_i - D'_i)^2`` over a stage, ``(batch,)``."""
    mean, variance = _normal(sde, moments, z)
    ends = (_kernel(sde, sde.scale.new_full((1,), t), stage.dim) for t in (stage.start, stage.end))
    start, end = (((alpha / sigma) ** 2).to(z) for alpha, sigma in ends)
    low, high = 1 + start * variance, 1 + end * variance
    # 1/low - 1/high, divided by the variance, which may be small
    fall = (end - start) / (low * high)
    return ((high / low).log() + ((z - mean) ** 2 - variance) * fall).sum(-1) / 2
