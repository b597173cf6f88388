"""Simulation-based inference: a posterior from a prior and a simulator.

Parameters and observations make one joint event; a conditional estimator trained on simulated
pairs holds the posterior of every observation (neural posterior score estimation; Sharrock et
al. 2022, Geffner et al. 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Transform,
    biject_to,
    constraints,
    identity_transform,
)
from tqdm.auto import tqdm
from typing_extensions import Self

from scoresde.bases import Joint
from scoresde.checks import expect, finite, positive, trailing_shape
from scoresde.distribution import ScoreDistribution
from scoresde.estimator import ScoreEstimator
from scoresde.solver import Solver

Simulator = Callable[[Tensor], Tensor]
"""Parameters ``(batch, *parameter_shape)`` to observations ``(batch, *observation_shape)``."""


def simulate(
    prior: Distribution,
    simulator: Simulator,
    count: int,
    *,
    batch_size: int = 1000,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draws of the prior and what the simulator makes of them.

    Pairs whose observation is not finite are left out, as simulators may fail.

    Args:
        prior: Of parameters: an event of any shape, no batch.
        simulator: See `Simulator`.
        count: How many draws.
        batch_size: How many at a time.
        progress: Whether to show a progress bar.

    Returns:
        ``(N, *parameter_shape)`` and ``(N, *observation_shape)``, ``N`` at most ``count``.

    Raises:
        ValueError: If the prior has a batch shape, the simulator returns another number of
            observations, or more than half of them are not finite.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> from scoresde.inference import simulate
        >>> prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> theta, x = simulate(prior, lambda theta: theta.sum(1, keepdim=True), 100)
        >>> theta.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 1]))
    """
    _unbatched(prior)
    parameters: list[Tensor] = []
    observations: list[Tensor] = []
    with torch.no_grad(), tqdm(total=count, desc="simulating", disable=not progress) as bar:
        for start in range(0, count, batch_size):
            drawn = prior.sample((min(batch_size, count - start),))
            seen = simulator(drawn)
            expect(len(seen) == len(drawn), "simulator", f"{len(drawn)} observations", len(seen))
            parameters.append(drawn)
            observations.append(seen)
            bar.update(len(drawn))
    theta, x = torch.cat(parameters), torch.cat(observations)
    good = torch.isfinite(x.flatten(1)).all(1)
    share = float(good.double().mean())
    expect(share > 0.5, "simulator", "finite observations", f"{1 - share:.0%} that are not")
    return theta[good], x[good]


class Coordinates(nn.Module):
    """Coordinates of simulated pairs in which a posterior is easy to learn.

    Observations are standardised; with ``ranks`` their normal scores come beside them, which long
    tails do not reach: ``ndtri`` of a number's rank among those simulated.

    Parameters are what a linear regression on the observation leaves of them, in units of its
    standard deviation: narrow posteriors are then as wide as wide ones, and alike wherever they
    are. Those of half-bounded support are first mapped to the real line (``biject_to``: the
    logarithm of a positive one).

    Those between two bounds keep them. A network would have to learn where they are, in coordinates
    that move with the observation; `estimators.Truncated.knowing` knows, and networks learn the
    rest around it.

    Args:
        prior: Of parameters, no batch.
        seen_mean: Of observations, ``(*observation_shape,)``.
        seen_std: Of observations.
        mean: Of parameters on the real line, ``(m,)``.
        slope: Of the regression on standardised observations, ``(n, m)``.
        std: Of what it leaves, ``(m,)``.
        explained: The share of the parameters' variance that it explains, ``(m,)``, below 1.
        ranked: Observations in order, ``(*observation_shape, N)``, for normal scores; none if None.

    Example:
        >>> import torch
        >>> from scoresde.inference import Coordinates, simulate
        >>> from torch.distributions import Independent, Uniform
        >>> prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
        >>> _ = torch.manual_seed(0)
        >>> theta, x = simulate(prior, lambda theta: 5 * theta + torch.randn_like(theta), 10_000)
        >>> to = Coordinates.fitted(prior, theta, x)
        >>> to.explained.round(decimals=1)  # 25/12 of 25/12 + 1
        tensor([0.7000])
        >>> to.pairs(theta, x).std(0).round(decimals=2)
        tensor([1., 1.])
    """

    seen_mean: Tensor
    seen_std: Tensor
    mean: Tensor
    slope: Tensor
    std: Tensor
    explained: Tensor
    ranked: Tensor | None

    def __init__(
        self,
        prior: Distribution,
        seen_mean: Tensor,
        seen_std: Tensor,
        mean: Tensor,
        slope: Tensor,
        std: Tensor,
        explained: Tensor,
        ranked: Tensor | None = None,
    ) -> None:
        super().__init__()
        _unbatched(prior)
        self.prior = prior
        self.register_buffer("seen_mean", seen_mean)
        self.register_buffer("seen_std", seen_std)
        self.register_buffer("mean", mean)
        self.register_buffer("slope", slope)
        self.register_buffer("std", std)
        self.register_buffer("explained", explained)
        self.register_buffer("ranked", ranked)

    @classmethod
    def fitted(
        cls,
        prior: Distribution,
        parameters: Tensor,
        observations: Tensor,
        *,
        ranks: bool = False,
    ) -> Coordinates:
        """To simulations.

        Args:
            prior: Of parameters, no batch.
            parameters: ``(N, *parameter_shape)``.
            observations: ``(N, *observation_shape)``.
            ranks: Whether to have normal scores.

        Raises:
            ValueError: If numbers are not finite, an observation has as many as there are
                simulations or more, or a parameter is the same in all of them.
        """
        count = len(observations)
        finite("observations", observations)
        real = _real(prior).inv(parameters).reshape(len(parameters), -1)
        finite("parameters", real)
        expect(len(real) == count, "parameters", f"as many as observations, {count}", len(real))
        variance, spread = real.var(0), observations.std(0)
        positive("variance of parameters", variance)
        found = cls(
            prior,
            observations.mean(0),
            torch.where(spread > 0, spread, 1.0),
            real.mean(0),
            real.new_zeros(0),
            variance.sqrt(),
            torch.zeros_like(variance),
            observations.movedim(0, -1).sort(-1).values.contiguous() if ranks else None,
        )
        seen = found.observation(observations).reshape(count, -1)
        fewest = f"more simulations than the {seen.shape[1]} numbers that an observation is seen as"
        expect(count > seen.shape[1] + 1, "observations", fewest, count)
        centred = real - found.mean
        # gelsd, as numbers in an observation may repeat each other
        fit = torch.linalg.lstsq(seen.cpu(), centred.cpu(), driver="gelsd")
        found.slope = fit.solution.to(seen)
        left = (centred - seen @ found.slope).var(0).clamp(min=1e-12 * variance)
        found.std, found.explained = left.sqrt(), 1 - left / variance
        return found

    @property
    def joint(self) -> Joint:
        """The basis of pairs, with the parts ``"observation"`` and ``"parameter"``."""
        seen = self.observation(self.seen_mean)
        return Joint(observation=tuple(seen.shape), parameter=tuple(self.prior.event_shape))

    def observation(self, x: Tensor) -> Tensor:
        """Observations ``(*batch, *observation_shape)``, standardised.

        With normal scores, of all numbers one after the other: ``(*batch, 2 n)``.

        Raises:
            ValueError: If their shape is another one.
        """
        trailing_shape("observation", x, self.seen_mean.shape)
        plain: Tensor = (x - self.seen_mean) / self.seen_std
        if self.ranked is None:
            return plain
        batch, count = x.shape[: x.ndim - self.seen_mean.ndim], self.ranked.shape[-1]
        table = self.ranked.reshape(-1, count)
        values = x.reshape(-1, len(table)).mT.contiguous().to(table)
        below, upto = (torch.searchsorted(table, values, right=right) for right in (False, True))
        # those equal share their ranks
        scores = torch.special.ndtri((below + upto + 1).double() / (2 * (count + 1)))
        both = torch.cat([plain.reshape(-1, len(table)), scores.mT.to(plain)], 1)
        return both.reshape(*batch, -1)

    def pairs(self, parameters: Tensor, observations: Tensor) -> Tensor:
        """Joint events ``(N, n + m)``, what an estimator is trained on."""
        event = self.at(observations).inv(parameters)
        return self.joint.join(observation=self.observation(observations), parameter=event)

    def at(self, observation: Tensor) -> Transform:
        """From these coordinates to parameters, given observations ``(*batch, *shape)``."""
        shape = self.prior.event_shape
        batch = observation.shape[: observation.ndim - self.seen_mean.ndim]
        seen = self.observation(observation).reshape(*batch, -1)
        centre = (self.mean + seen @ self.slope).reshape(*batch, *shape)
        affine = AffineTransform(centre, self.std.reshape(shape), event_dim=len(shape))
        return ComposeTransform([affine, _real(self.prior)])

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of parameters less their mean, in units of ``std``, ``(m,)``.

        Infinite where there are none.
        """
        low, high = (
            (v.expand(self.prior.event_shape).flatten().to(self.mean) - self.mean) / self.std
            for v in _bounds(self.prior)
        )
        return low, high


@attrs.frozen(eq=False)
class Posterior:
    """Posteriors of a simulator's parameters, one for every observation.

    Args:
        estimator: Of joint events with the parts ``"observation"`` and ``"parameter"``, in
            coordinates.
        coordinates: Where they are.
        solver: Draws samples.
        held: Whether observations are kept clean, see `scoresde.ScoreEstimator.condition`.

    Example:
        >>> import torch
        >>> from estimators import Truncated
        >>> from scoresde import VP, DiagonalSDE
        >>> from scoresde.inference import Coordinates, Posterior, simulate
        >>> from solvers import ExponentialMultistep
        >>> from torch.distributions import Independent, Uniform
        >>> prior = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
        >>> _ = torch.manual_seed(0)
        >>> theta, x = simulate(prior, lambda theta: theta + torch.randn_like(theta), 10_000)
        >>> to = Coordinates.fitted(prior, theta, x)
        >>> sde = DiagonalSDE(VP(), to.joint, to.joint.spread(observation=0.0, parameter=1.0))
        >>> exact = Truncated.knowing(to, sde)  # this once there is nothing to learn
        >>> posterior = Posterior(exact, to, ExponentialMultistep(20))
        >>> posterior(torch.tensor([0.5, 5.0])).sample((1000,)).mean(0).round(decimals=1)
        tensor([0.5000, 0.8000])
    """

    sources = "sharrock2022 geffner2023"

    estimator: ScoreEstimator
    coordinates: Coordinates
    solver: Solver
    held: bool = False

    def __call__(self, observation: Tensor) -> PosteriorDistribution:
        """The posterior of one observation, or of a batch of them, ``(*batch, *shape)``."""
        return PosteriorDistribution(self, observation)

    def residual(self, observation: Tensor) -> ScoreDistribution:
        """Its law in coordinates."""
        seen = self.coordinates.observation(observation)
        known = self.estimator.condition(held=self.held, observation=seen)
        return ScoreDistribution(known, self.solver)


class PosteriorDistribution(TorchDistribution):
    """A posterior, inside the prior's support.

    Samples outside are drawn again. Densities are those of the probability flow, and 0 outside: the
    less of it is there, the more exactly they are normalised.

    Args:
        posterior: Of every observation.
        observation: ``(*batch_shape, *observation_shape)``.
        validate_args: As everywhere in `torch.distributions`.

    Example:
        >>> from scoresde.inference import PosteriorDistribution
        >>> PosteriorDistribution.has_rsample
        False
    """

    arg_constraints = {}  # noqa: RUF012 (torch's contract)
    has_rsample = False

    def __init__(
        self,
        posterior: Posterior,
        observation: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.posterior, self.observation = posterior, observation
        self.base, self.prior = posterior.residual(observation), posterior.coordinates.prior
        super().__init__(self.base.batch_shape, self.prior.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The prior's."""
        found = self.prior.support
        assert found is not None  # said so by torch for distributions without one
        return found

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same with a larger batch shape."""
        found: Self = type(self)(self.posterior, self._seen(batch_shape), self._validate_args)
        return found

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``(*sample_shape, *batch_shape, *parameter_shape)``.

        Some that are outside the prior's support every time are put on its border, with a
        ``RuntimeWarning``: of such an observation the estimator has not learned enough.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        seen = self._seen(batch)
        seen = seen.reshape(-1, *seen.shape[len(batch) :])
        at = self.posterior.coordinates.at
        found = at(seen)(self.base.sample(sample_shape).reshape(-1, *self.event_shape))
        rows = torch.arange(len(found), device=found.device)
        for _ in range(_TRIES):
            rows = rows[~self.support.check(found[rows])]
            if not len(rows):
                break
            # a solver takes as long for one sample as for hundreds
            again = self.posterior.residual(seen[rows]).sample((-(-_AGAIN // len(rows)),))
            again = at(seen[rows])(again)
            first = self.support.check(again).int().argmax(0)
            found[rows] = again[first, torch.arange(len(rows), device=first.device)]
        else:
            left = f"{len(rows)} of {len(found)} samples stay outside the prior's support"
            warnings.warn(f"{left}; they are put on its border", RuntimeWarning, stacklevel=3)
            found[rows] = found[rows].clamp(*(v.to(found) for v in _bounds(self.prior)))
        samples: Tensor = found.reshape(shape)
        return samples

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*batch)``, in nats; minus infinity outside the support.

        Raises:
            ValueError: If arguments are validated and the value has the wrong shape, is NaN or
                outside the support; if the density of any other value is not a number.
        """
        if self._validate_args:
            self._validate_sample(value)
        inside, to = self.support.check(value), self.posterior.coordinates.at(self.observation)
        axes = tuple([...] + [None] * len(self.event_shape))
        centre = to(torch.zeros_like(value))
        # on the border of a half-bounded support events are infinite
        event = to.inv(torch.where(inside[axes], value, centre))
        inside = inside & event.isfinite().flatten(event.ndim - len(self.event_shape)).all(-1)
        value = torch.where(inside[axes], value, centre)
        event = to.inv(value)
        found = self.base.log_prob(event) - to.log_abs_det_jacobian(event, value)
        density: Tensor = found.masked_fill(~inside, -torch.inf)
        return density

    def _seen(self, batch: Sequence[int]) -> Tensor:
        """Observations with a larger batch."""
        return self.observation.expand(*batch, *self.posterior.coordinates.seen_mean.shape)


_TRIES, _AGAIN = 100, 1000
"""How often to draw what is outside the prior's support, and how many at least."""


def _unbatched(prior: Distribution) -> None:
    """Raises ``ValueError`` if a prior has a batch shape."""
    expect(prior.batch_shape == (), "prior", "no batch shape (Independent)", prior.batch_shape)


def _bounds(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of parameters that have both; infinite ones of others."""
    support: Any = prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    ends = (getattr(support, f"{name}_bound", None) for name in ("lower", "upper"))
    low, high = (None if end is None else torch.as_tensor(end) for end in ends)
    if low is None or high is None:
        return torch.tensor(-torch.inf), torch.tensor(torch.inf)
    return low, high


def _real(prior: Distribution) -> Transform:
    """From the real line, or what has two bounds, to parameters."""
    if _bounds(prior)[0].isfinite().all():
        return identity_transform
    found: Transform = biject_to(prior.support)
    return found
