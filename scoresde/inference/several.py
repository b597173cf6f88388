"""The posterior of several observations, from a model that has seen one at a time."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from torch.distributions import Transform

from scoresde.checks import choice, expect, validator, whole
from scoresde.conditioning import Composition, Particles
from scoresde.estimator import ScoreEstimator
from scoresde.inference.parameter_estimators import PosteriorEstimator
from scoresde.inference.posterior import Posterior
from scoresde.inference.prior import PriorEstimator
from scoresde.inference.product import ProductDistribution
from scoresde.likelihood.distribution import ScoreDistribution
from scoresde.sdes.diagonal import DiagonalSDE


@attrs.frozen(eq=False)
class SeveralObservations(Posterior):
    """Posteriors of parameters given ``n`` independent observations, any ``n`` from 1 on.

    The model has learned posteriors of single observations and is not trained again
    (`scoresde.conditioning.Composition`). Samples are those of weighted particles on a path of
    decreasing noise (`scoresde.conditioning.Particles`), which is right for any single posteriors;
    or those of the solver with denoised means composed to second order, which is right for
    Gaussians. Errors that single posteriors share add up, while the posterior becomes ``sqrt(n)``
    times as narrow. Samples stay within the prior's bounds.

    Takes the arguments of `Posterior`, and

    Args:
        method: `scoresde.conditioning.Particles`; or a name, by which the solver's samples are
            composed with covariances of clean parameters given noisy ones: ``"samples"``, as of
            Gaussians with the covariances of samples of every single posterior, or ``"jacobian"``,
            which takes more of posteriors into account that are not Gaussian, and is as many times
            more expensive as there are parameters.
        count: For ``"samples"``, how many of each.
        prior: An estimator of the prior, in the coordinates of `Coordinates.without_observation`;
            the exact one of independent or normal parameters if None.

    Raises:
        TypeError: If the prior is of another kind, and no estimator of it is given.
        ValueError: If a name is unknown, or observations diffuse.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE
        >>> from scoresde.inference import Coordinates, SeveralObservations
        >>> from solvers import ExponentialMultistep
        >>> from torch.distributions import Independent, Normal
        >>> prior, one = Independent(Normal(torch.zeros(1), 1.0), 1), torch.ones(1)
        >>> none = 0 * one
        >>> same = Coordinates(prior, none, one, none, torch.zeros(1, 1), one, none)
        >>> sde = DiagonalSDE(VP(), same.joint, same.joint.per_block(observation=0, parameter=1))
        >>> covariance = torch.tensor([[2.0, 1.0], [1.0, 1.0]])  # of theta and noise of variance 1
        >>> exact = Gaussian(sde, torch.zeros(2), covariance)
        >>> several = SeveralObservations(exact, same, ExponentialMultistep(20))
        >>> _ = torch.manual_seed(0)
        >>> seen = torch.tensor([[0.5], [1.5], [1.0], [1.0]])
        >>> theta = several(seen).sample((4000,))  # N(.8, .2)
        >>> theta.mean().round(decimals=1), theta.var().round(decimals=1)
        (tensor(0.8000), tensor(0.2000))
    """

    references = "linhart2024 geffner2023"

    method: Particles | str = attrs.field(factory=Particles, kw_only=True)
    count: int = attrs.field(default=500, kw_only=True, validator=validator(whole, 2))
    prior: ScoreEstimator | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.method, Particles):
            choice("method", self.method, "samples", "jacobian", "Particles()")

    @property
    def observation_ndim(self) -> int:
        """Number of axes of ``(n, *observation_shape)``."""
        return super().observation_ndim + 1

    def residual(self, observation: Tensor) -> ScoreDistribution:
        """The posterior in coordinates without an observation, ``(*batch, n, *shape)`` given."""
        shape = tuple(observation.shape)
        least = f"(*batch, n, *{tuple(self.coordinates.observation_mean.shape)}), n at least 1"
        enough = len(shape) >= self.observation_ndim and shape[-self.observation_ndim] > 0
        expect(enough, "observation", f"several observations {least}", shape)
        single = self.parameter_estimator()
        given = PosteriorEstimator.of(single, self.coordinates, observation)
        prior = self.prior
        if prior is None:
            assert isinstance(single.sde, DiagonalSDE)
            prior = PriorEstimator(self.coordinates, single.sde)
        if isinstance(self.method, Particles):
            known, to = self.coordinates.prior, self.coordinates.without_observation
            composed = Composition(given, prior)
            return ProductDistribution(composed, self.method, known, to, self.solver)
        covariances = None
        if self.method == "samples":
            covariances = self._measured(given), self._of_prior(given.shift)
        return ScoreDistribution(Composition(given, prior, covariances), self.solver)

    def transform(self, observation: Tensor) -> Transform:
        """The same for all observations."""
        return self.coordinates.without_observation

    def _measured(self, given: PosteriorEstimator) -> Tensor:
        """Covariances of single posteriors, ``(*batch, n, m, m)``."""
        with torch.no_grad():
            drawn = self.solver.sample(given, (self.count, *given.batch_shape))
        return _covariance(drawn.flatten(given.shift.ndim))

    def _of_prior(self, like: Tensor) -> Tensor:
        drawn = self.coordinates.prior.sample((_DRAWS,))
        real = self.coordinates.without_observation.inv(drawn).flatten(1)
        return _covariance(real.to(like))


_DRAWS = 10_000
"""Of the prior, for its covariance: within 1% of it."""


def _covariance(drawn: Tensor) -> Tensor:
    """The covariance of samples ``(N, *batch, m)``: ``(*batch, m, m)``, positive definite."""
    centred = (drawn - drawn.mean(0)).double()
    covariance = torch.einsum("k...i,k...j->...ij", centred, centred) / (len(drawn) - 1)
    unit = torch.eye(drawn.shape[-1], dtype=torch.float64, device=drawn.device)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    # of fewer samples than parameters, too: far below what samples know of it, above rounding
    return covariance + 1e-9 * scale * unit
