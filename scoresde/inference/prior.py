"""The exact score of a prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal

from scoresde.estimator import KernelEstimator
from scoresde.inference.coordinates import Coordinates
from scoresde.inference.supports import from_unconstrained
from scoresde.objectives.parametrization import FAINT, noiseless
from scoresde.precision import cast_like, full_precision
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde_coefficients import Kernel


class PriorEstimator(KernelEstimator):
    """The score of a prior, in the coordinates of a posterior: exact.

    Of a multivariate normal prior in closed form; of independent parameters by Gauss's rule in each
    of them, on the part of the prior's range around the state,

        D_i = int u p_i(u) N(alpha u; z_i, sigma^2) du / int p_i(u) N(alpha u; z_i, sigma^2) du.

    Args:
        coordinates: Of parameters, and what their prior is.
        sde: Of parameters in these coordinates, without a regression: standardised, on the real
            line or between bounds.

    Raises:
        TypeError: If parameters are neither independent nor normal.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.inference import Coordinates, PriorEstimator
        >>> from torch.distributions import Independent, Uniform
        >>> prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
        >>> none, one = torch.zeros(1), torch.ones(1)
        >>> same = Coordinates(prior, none, one, none, torch.zeros(1, 1), one, none)
        >>> known = PriorEstimator(same, DiagonalSDE(EDM(), Identity((1,))))
        >>> known.denoise(torch.tensor([[0.5], [-9.0]]), 0.5).round(decimals=2)
        tensor([[0.5000],
                [0.0300]])
    """

    def __init__(self, coordinates: Coordinates, sde: DiagonalSDE) -> None:
        super().__init__(sde)
        self.coordinates, prior = coordinates, coordinates.prior
        self.marginals, self.normal = _marginals(prior), _plain(prior)
        if self.marginals is None and not isinstance(self.normal, MultivariateNormal):
            wanted = "prior: expected independent parameters or a MultivariateNormal"
            raise TypeError(f"{wanted}, got {prior}: give an estimator of it")

    @full_precision
    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        """See the class."""
        alpha, sigma = kernel
        mean = self._gaussian if self.marginals is None else self._each
        clean = mean(z, alpha, sigma)
        return noiseless(sigma, z, clean)

    def _gaussian(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        normal: Any = self.normal
        std, centre = (cast_like(v, z) for v in (self.coordinates.std, self.coordinates.mean))
        mean = (cast_like(normal.mean, z) - centre) / std
        covariance = cast_like(normal.covariance_matrix, z) / (std * std.unsqueeze(-1))
        a, s = (v.expand(*v.shape[:-1], z.shape[-1]) for v in (alpha, sigma))
        power = a.unsqueeze(-1) * covariance * a.unsqueeze(-2) + torch.diag_embed(s**2)
        pull = torch.linalg.solve(power, (z - a * mean).unsqueeze(-1)).squeeze(-1)
        clean: Tensor = mean + (covariance @ (a * pull).unsqueeze(-1)).squeeze(-1)
        return clean

    def _each(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        low, high = (cast_like(v, z) for v in self._range())
        visible, noise = alpha.clamp(min=FAINT), sigma.clamp(min=FAINT)
        place, width = z / visible, noise / visible
        origin = place.clamp(low, high).detach()
        # beyond that a weight is less than a rounding error
        tilt = ((origin - place) / width).abs().detach()
        reach = (width * 2 * _DEPTH / (tilt + (tilt**2 + 2 * _DEPTH).sqrt())).detach()
        left, right = torch.maximum(low - origin, -reach), torch.minimum(high - origin, reach)
        nodes, masses = (cast_like(torch.from_numpy(v), z) for v in _RULE)
        steps = left.unsqueeze(-1) + (right - left).unsqueeze(-1) * nodes
        # squares of distances from the origin, whose own is the same for all nodes
        far = ((origin - place) / width).unsqueeze(-1)
        near = steps / width.unsqueeze(-1)
        u = origin.unsqueeze(-1) + steps
        weight = self._log_density(u) - near * (near / 2 + far) + masses.log()
        clean: Tensor = origin + (weight.softmax(-1) * steps).sum(-1)
        return clean

    def _log_density(self, u: Tensor) -> Tensor:
        """Log-densities of every component, at nodes ``(*batch, m, k)``."""
        assert self.marginals is not None
        events = u.movedim(-1, 0)
        flat = events * cast_like(self.coordinates.std, u) + cast_like(self.coordinates.mean, u)
        real = flat.reshape(*flat.shape[:-1], *self.marginals.batch_shape)
        to = from_unconstrained(self.marginals)
        value = to(real)
        density: Tensor = self.marginals.log_prob(value) + to.log_abs_det_jacobian(real, value)
        # a node may be rounded to a bound, where there is none: all may be
        density = density.to(u).nan_to_num(neginf=_NONE)
        return density.reshape(flat.shape).movedim(0, -1)

    def _range(self) -> tuple[Tensor, Tensor]:
        """The range of the prior: between its bounds, or a dozen deviations."""
        low, high = self.coordinates.bounds
        far = _FAR * (1 - self.coordinates.explained).rsqrt()
        return torch.maximum(low, -far), torch.minimum(high, far)


_POINTS, _MASSES = np.polynomial.legendre.leggauss(64)
_RULE = (_POINTS + 1) / 2, _MASSES / 2
"""Nodes in [0, 1] and masses: exact to the last digits for a Gaussian on `_FAR` deviations."""

_NONE = -1e4
"""The logarithm of no density, beside numbers."""

_DEPTH = 37.0
"""The logarithm of a rounding error of float64."""

_FAR = 9.0
"""Deviations of an unbounded prior beyond which there is none of it, on the real line."""


def _plain(prior: Distribution) -> Distribution:
    """The distribution inside of `Independent`."""
    while isinstance(prior, Independent):
        prior = prior.base_dist
    return prior


def _marginals(prior: Distribution) -> Distribution | None:
    """The prior of every parameter, in one batch; None if they are not independent."""
    plain = _plain(prior)
    if plain.event_shape or plain.batch_shape != prior.event_shape:
        return None
    each: Distribution = plain.expand(plain.batch_shape)
    each._validate_args = False  # nodes may be outside by a rounding error
    return each
