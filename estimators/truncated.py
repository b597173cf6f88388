"""Exact scores: Gaussians between bounds."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.checks import expect, instance, numbers
from scoresde.estimator import KernelEstimator
from scoresde.objectives.parametrization import noiseless
from scoresde.precision import Float64Constants, Numbers, cast_like, full_precision
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde_coefficients import Kernel

if TYPE_CHECKING:  # it imports Pyro
    from scoresde.inference import Coordinates

_FAR = 1e30
"""Where a bound is that there is not: a number of float32, too."""


class Truncated(Float64Constants, KernelEstimator):
    """Independent Gaussians ``N(mean_i, std_i^2)`` on ``[low_i, high_i]``: exact.

    A component given its diffused state is again a Gaussian between the same bounds:

        D_i = E[z | low_i <= z <= high_i],  z ~ N((v alpha z_t + sigma^2 mean) / V, v sigma^2 / V),

    ``v = std^2``, ``V = alpha^2 v + sigma^2``.

    With a ``slope`` bounds are those of another quantity, ``w = z + k``, where the other
    components, of unit variance, determine ``k = y slope``; before truncation
    ``w ~ N(mean + std^2 k, std^2)``. That is, ``z`` is the residual of a linear regression of a
    bounded parameter ``w``, and the Gaussian is the narrowest likelihood that explains the
    regression, ``1/std^2`` being the share of the variance that it explains. This is exact if ``y``
    does not diffuse, or if one component alone is bounded: of a joint Gaussian, given that ``w`` is
    between bounds. Several bounded ones use ``y`` separately; ``y`` uses none of them. See
    `from_coordinates`.

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

    references = "barr1999"
    example: ClassVar = {
        "low": [-1.0, 0.0, -2.0],
        "high": [0.5, 3.0, 2.0],
        "mean": 0.3,
        "std": [0.7, 2.0],  # of two blocks
    }
    laws: ClassVar = {"exact": True}

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
        bounds_and_moments = {"low": low, "high": high, "mean": mean, "std": std}
        for name, value in bounds_and_moments.items():
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
    def from_coordinates(cls, coordinates: Coordinates, sde: DiagonalSDE) -> Self:
        """The posterior before anything is learned, a baseline for `Denoising`.

        From a linear regression on the observation, and the prior's bounds: exact for parameters
        that are uniform between them, each with its own linear Gaussian observation.

        Args:
            coordinates: Of pairs of parameters and observations.
            sde: Of joint events, on ``coordinates.joint``.
        """
        n, m = coordinates.slope.shape
        slope = coordinates.slope.new_zeros(n + m, n + m)
        slope[:n, n:] = coordinates.slope / coordinates.std
        low, high = coordinates.bounds
        # a Gaussian of no information is flat
        # and no wider than that of a thousandth: float32 divides by its square
        share = torch.where(low.isfinite(), coordinates.explained.clamp(min=1e-3), 1.0)
        unbounded = torch.full_like(slope[:n, 0], torch.inf)
        low, high = torch.cat([-unbounded, low]), torch.cat([unbounded, high])
        std = torch.cat([torch.ones_like(unbounded), share.rsqrt()])
        return cls(sde, low, high, std=std, slope=slope)

    @full_precision
    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """See the class."""
        m = z.shape[-1]
        alpha, sigma = kernel
        state, noise = z.to(alpha), sigma**2
        low, high, mean, std = (v[:m].to(alpha) for v in (self.low, self.high, self.mean, self.std))
        k, doubt, v = torch.zeros_like(std), torch.zeros_like(std), std**2
        if self.slope is not None:
            slope, power = self.slope[:m, :m].to(alpha), alpha**2 + noise
            k = (alpha / power * state) @ slope
            doubt = (noise / power).expand(*power.shape[:-1], m) @ slope**2
        # covariances of (z, w), Gaussian before truncation, and what the state says of both
        more, less = v * doubt, (v - 1) * doubt  # no square of v: it may be too large
        own, both, whole = v + (v - 1) * less, v + v * less, v + v * more
        power = alpha**2 * own + noise
        pull = alpha * (state - alpha * (mean + (v - 1) * k)) / power
        # sums of positive terms: the determinant of a covariance loses no digits
        variance = ((alpha**2 * more + noise * whole) / power).clamp(min=_NARROW)
        share = both * noise / power / variance
        kept = truncated_mean(mean + v * k + both * pull, variance.sqrt(), low, high)
        # z goes with the truncated w by its share; with all of it, nothing is subtracted from it
        rest = (1 - share) * mean + ((1 - share) * v - 1) * k + (own - share * both) * pull
        return noiseless(sigma, z, (share * kept + rest).to(z))


_NARROW = 1e-24
"""The least variance that float32 can be divided by, twice."""


def truncated_mean(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``E[x | low <= x <= high]`` of ``x ~ N(mean, std^2)``, wherever the bounds are.

    Quotients of densities and probabilities overflow, and cancel where bounds are narrow. Here
    ``x`` is measured from the place of the largest density between the bounds, ``p``:

        E[x] = p + int y w(y) dy / int w(y) dy,    w(y) = exp(-y^2/(2 std^2) - y (p - mean)/std^2),

    by Gauss's rule where ``w`` is more than a rounding error. Terms are positive and at most 1, so
    values and derivatives of any order are as accurate as the precision of ``p`` and, between
    narrow bounds, of their distance.

    Args:
        mean: Any shape, as all others; broadcast.
        std: Positive.
        low: Finite.
        high: Finite, above ``low``.

    Example:
        >>> import torch
        >>> from estimators.truncated import truncated_mean
        >>> truncated_mean(*torch.tensor([-60.0, 1.0, 0.0, 1.0]))
        tensor(0.0167)
    """
    nodes, masses, depth = _rule(mean)
    # constants: nothing that is sought depends on where one counts from, or stops
    origin = mean.clamp(low, high).detach()
    far, scale = _STEEP * std.detach(), std.unsqueeze(-1)
    tilt = ((origin - mean).clamp(-far, far) / std).unsqueeze(-1)
    reach = 2 * depth / (tilt.abs() + (tilt**2 + 2 * depth).sqrt())
    reach = (scale * reach).detach().squeeze(-1)
    left, right = (low - origin).clamp(min=-reach), (high - origin).clamp(max=reach)
    y = left.unsqueeze(-1) + (right - left).unsqueeze(-1) * nodes
    steps = y / scale
    weight = masses * (-steps * (steps / 2 + tilt)).exp()
    return origin + (weight * y).sum(-1) / weight.sum(-1)


_STEEP = 1e18
"""How many deviations beyond a bound a mean is taken to be at most; its square is a float32."""


def _rule(like: Tensor) -> tuple[Tensor, Tensor, float]:
    """Nodes in ``[0, 1]``, masses, and the logarithm of what is no more than a rounding error.

    Of Gauss's rules the shortest that integrates a Gaussian, cut off there, to the last digits:
    measured, to 1e-10 in float32 and 5e-15 in float64, where ``e^-depth`` is 1/60 and 2/5 of eps.
    """
    count, depth = (24, 20.0) if torch.finfo(like.dtype).eps > 1e-10 else (40, 37.0)
    nodes, masses = (cast_like(torch.from_numpy(v), like) for v in _legendre(count))
    return (nodes + 1) / 2, masses, depth


_legendre = functools.cache(np.polynomial.legendre.leggauss)  # eigenvalues, asked at every step
