"""Exact scores: Gaussians between bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.checks import expect, instance, numbers
from scoresde.diagonal import DiagonalSDE
from scoresde.estimator import ScoreEstimator
from scoresde.precise import Numbers, Precise

if TYPE_CHECKING:  # it imports Pyro
    from scoresde.inference import Coordinates

_FAR = 1e8
"""Where a bound is that there is not."""


class Truncated(Precise, ScoreEstimator):
    """Independent Gaussians ``N(mean_i, std_i^2)`` on ``[low_i, high_i]``: exact.

    What is known of a component after diffusion is again a Gaussian, between the same bounds:

        D_i = E[z | low_i <= z <= high_i],  z ~ N((v alpha z_t + sigma^2 mean) / V, v sigma^2 / V),

    ``v = std^2``, ``V = alpha^2 v + sigma^2``.

    With a ``slope`` bounds are those of another quantity, ``w = z + k``, of which the other
    components, of unit variance, say ``k = y slope``; before truncation
    ``w ~ N(mean + std^2 k, std^2)``. In words: ``z`` is what a linear regression leaves of a
    parameter ``w`` with bounds, and the Gaussian is as narrow a likelihood as explains the
    regression, ``1/std^2`` being the share of the variance that it explains. This is exact if ``y``
    does not diffuse, or if one component alone is bounded: of a joint Gaussian, given that ``w`` is
    between bounds. Of several, each hears of ``y`` by itself; ``y`` hears of none. See `knowing`.

    Source:
        Barr and Sherrill 1999, *Mean and variance of truncated normal distributions*.

    Args:
        sde: How data are diffused.
        low: Lower bounds, one or as many as components; may be minus infinity.
        high: Upper bounds; may be infinity.
        mean: Of the Gaussians, before truncation.
        std: Of the Gaussians, before truncation.
        slope: ``(n, n)``: ``k_i = sum_j y_j slope_ji``; none if None.

    Raises:
        TypeError: If an argument is neither numbers nor, ``slope``, a tensor.
        ValueError: If a lower bound is not below the upper one, a deviation is not positive, a
            number not finite, or a shape wrong.

    Example:
        >>> import torch
        >>> from estimators import Truncated
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> model = Truncated(DiagonalSDE(EDM(), Identity((1,))), low=0.0, high=1.0, std=10.0)
        >>> model.denoise(torch.tensor([[-20.0], [0.5], [20.0]]), 0.5).round(decimals=2)
        tensor([[0.0100],
                [0.5000],
                [0.9900]])
    """

    sources = "barr1999"

    sde: DiagonalSDE
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor
    slope: Tensor | None

    def __init__(
        self,
        sde: DiagonalSDE,
        low: Numbers,
        high: Numbers,
        mean: Numbers = 0.0,
        std: Numbers = 1.0,
        slope: Tensor | None = None,
    ) -> None:
        super().__init__(sde)
        n, blocks = sde.basis.dim, sde.basis.blocks
        given = {"low": low, "high": high, "mean": mean, "std": std}
        for name, value in given.items():
            tensor = numbers(name, value)
            expect(tensor.ndim < 2, name, "a number or a vector of numbers", tuple(tensor.shape))
            blocks.check(name, tensor)
            each = blocks.expand(tensor).expand(n).clone()  # averages of weights write on it
            if name in ("low", "high"):
                each = each.clamp(-_FAR, _FAR)
            self.constant(name, each, positive=name == "std")
        expect(bool((self.low < self.high).all()), "low", f"below high = {high}", low)
        if slope is None:
            self.slope = None
        else:
            instance("slope", slope, Tensor)
            expect(slope.shape == (n, n), "slope", f"shape {(n, n)}", tuple(slope.shape))
            self.constant("slope", slope)

    @classmethod
    def knowing(cls, coordinates: Coordinates, sde: DiagonalSDE) -> Self:
        """A posterior as far as it is known before anything is learned, for `Denoising`.

        That is a linear regression on the observation, and the prior's bounds: exact for parameters
        that are uniform between them, of each of which the observation says something linear and
        Gaussian.

        Args:
            coordinates: Of pairs of parameters and observations.
            sde: Of joint events, on ``coordinates.joint``.
        """
        n, m = coordinates.slope.shape
        slope = coordinates.slope.new_zeros(n + m, n + m)
        slope[:n, n:] = coordinates.slope / coordinates.std
        low, high = coordinates.bounds
        # a Gaussian of no information is flat
        share = torch.where(low.isfinite(), coordinates.explained.clamp(min=1e-3), 1.0)
        free = torch.full_like(slope[:n, 0], torch.inf)
        std = torch.cat([torch.ones_like(free), share.rsqrt()])
        return cls(sde, torch.cat([-free, low]), torch.cat([free, high]), std=std, slope=slope)

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See the class."""
        m = z.shape[-1]
        alpha, sigma = self.sde.kernel(self.sde.time(t, z), m)
        state, noise = z.to(alpha), sigma**2
        low, high, mean, std = (v[:m].to(alpha) for v in (self.low, self.high, self.mean, self.std))
        k, doubt, v = torch.zeros_like(std), torch.zeros_like(std), std**2
        if self.slope is not None:
            slope, power = self.slope[:m, :m].to(alpha), alpha**2 + noise
            k = (alpha / power * state) @ slope
            doubt = (noise / power).expand(*power.shape[:-1], m) @ slope**2
        # of (z, k), Gaussian before truncation: means and covariances, given the state
        mean, along, v = mean + (v - 1) * k, (v - 1) * doubt, v + (v - 1) ** 2 * doubt
        power = alpha**2 * v + noise
        pull = alpha * (state - alpha * mean) / power
        mean, k = mean + v * pull, k + along * pull
        doubt = doubt - (alpha * along) ** 2 / power
        along, v = along * noise / power, v * noise / power
        # truncation is of their sum, and z goes with it
        spread = (v + 2 * along + doubt).clamp(min=1e-24)
        moved = truncated_mean(mean + k, spread.sqrt(), low, high) - (mean + k)
        return (mean + (v + along) / spread * moved).to(z)


def truncated_mean(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``E[x | low <= x <= high]`` of ``x ~ N(mean, std^2)``, wherever the bounds are.

    The quotient of densities and probabilities, of which each may be far too small for a
    floating-point number: both are taken in units of the larger density.

    Args:
        mean: Any shape, as all others; broadcast.
        std: Positive.
        low: Finite.
        high: Finite, above ``low``.

    Example:
        >>> import torch
        >>> from estimators.truncated import truncated_mean
        >>> truncated_mean(*torch.tensor([-60.0, 1.0, 0.0, 1.0], dtype=torch.float64))
        tensor(0.0167, dtype=torch.float64)
    """
    a, b = (low - mean) / std, (high - mean) / std
    # mirrored, so that the nearer bound, or the one the mean is beyond, is a
    flip = a + b < 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    fall = (b - a) * (b + a) / 2  # log of the ratio of the densities at the bounds
    right, left, root = a.clamp(min=0), a.clamp(max=0), math.sqrt(2)
    beyond = torch.special.erfcx(right / root) - (-fall).exp() * torch.special.erfcx(b / root)
    inside = (torch.erf(b / root) - torch.erf(left / root)) * (left**2 / 2).clamp(max=600).exp()
    mass = math.sqrt(math.pi / 2) * torch.where(a > 0, beyond, inside)
    narrow = b - a < 1e-4  # nothing but rounding errors would be left
    ratio = -torch.expm1(-fall) / torch.where(narrow, 1.0, mass)
    ratio = torch.where(narrow, (a + b) / 2, ratio)
    found = mean + std * torch.where(flip, -ratio, ratio)
    return torch.minimum(torch.maximum(found, low), high)
