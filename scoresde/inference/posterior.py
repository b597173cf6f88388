"""Simulation-based inference: a posterior from a prior and a simulator.

Parameters and observations make one joint event; a conditional estimator trained on simulated
pairs holds the posterior of every observation (neural posterior score estimation; Sharrock et
al. 2022, Geffner et al. 2023).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, constraints
from typing_extensions import Self

from scoresde.bases import Joint
from scoresde.checks import numbers, whole
from scoresde.conditioning import condition
from scoresde.estimator import ScoreEstimator
from scoresde.inference.coordinates import Coordinates
from scoresde.inference.parameter_estimators import PartEstimator, PosteriorEstimator
from scoresde.inference.share_inside import share_inside
from scoresde.inference.supports import bounds
from scoresde.internals.messages import warn
from scoresde.likelihood.distribution import ScoreDistribution
from scoresde.solver import Solver


@attrs.frozen(eq=False)
class Posterior:
    """Posteriors of a simulator's parameters, one for every observation.

    Args:
        estimator: Of joint events with the parts ``"observation"`` and ``"parameter"``, in
            coordinates; or of parameters, with observations as conditions, which any network may
            embed.
        coordinates: Those of the estimator.
        solver: Draws samples.
        clean: Whether observations are kept clean, see `scoresde.condition`.

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
        >>> to = Coordinates.fit(prior, theta, x)
        >>> sde = DiagonalSDE(VP(), to.joint, to.joint.per_block(observation=0.0, parameter=1.0))
        >>> exact = Truncated.from_coordinates(to, sde)  # this once there is nothing to learn
        >>> posterior = Posterior(exact, to, ExponentialMultistep(20))
        >>> # means of N(x, 1) between 0 and 1: the middle for x = .5, near the bound for x = 5
        >>> posterior(torch.tensor([0.5, 5.0])).sample((1000,)).mean(0).round(decimals=1)
        tensor([0.5000, 0.8000])
    """

    references = "sharrock2022 geffner2023"

    estimator: ScoreEstimator
    coordinates: Coordinates
    solver: Solver
    clean: bool = False

    def __call__(self, observation: Tensor) -> PosteriorDistribution:
        """The posterior of one observation, or of a batch of them, ``(*batch, *shape)``."""
        if not isinstance(observation, Tensor):
            with self.coordinates.mean.device:
                observation = numbers("observation", observation)
        distribution = PosteriorDistribution(self, observation)
        far = self.coordinates.relative_distance(observation)
        beyond = int((far > _BEYOND).sum())
        if beyond:
            warn(
                f"observation: {beyond} of {far.numel()} farther from the middle of the "
                f"simulations than any of them (up to {float(far.max()):.3g} times as far): "
                "nothing has been learned there, and such posteriors cannot be trusted"
            )
        return distribution

    @property
    def observation_ndim(self) -> int:
        """Number of axes of what one posterior is given."""
        return self.coordinates.observation_ndim

    def residual(self, observation: Tensor) -> ScoreDistribution:
        """The posterior in the coordinates, where the estimator knows it."""
        if not isinstance(self.estimator.sde.basis, Joint):
            given = PosteriorEstimator.of(
                self.estimator, self.coordinates, observation, shifted=False
            )
            return ScoreDistribution(given, self.solver)
        observed = self.coordinates.observation(observation)
        conditional = condition(self.estimator, clean=self.clean, observation=observed)
        return ScoreDistribution(conditional, self.solver)

    def transform(self, observation: Tensor) -> Transform:
        """From there to parameters."""
        return self.coordinates.transform(observation)

    def parameter_estimator(self) -> ScoreEstimator:
        """The estimator of parameters alone, to which an observation is a condition."""
        if not isinstance(self.estimator.sde.basis, Joint):
            return self.estimator
        return PartEstimator(self.estimator, "parameter", self.clean)


class PosteriorDistribution(TorchDistribution):
    """A posterior, inside the prior's support.

    Samples outside are drawn again. Densities are those of the probability flow, 0 outside and
    normalised inside (`mass`).

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
        self._own = self.base.batch_shape
        self._mass: Tensor | None = None
        super().__init__(self.base.batch_shape, self.prior.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The prior's."""
        support = self.prior.support
        assert support is not None  # said so by torch for distributions without one
        return support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same with a larger batch shape."""
        new: Self = self._get_checked_instance(PosteriorDistribution, _instance)  # type: ignore[no-untyped-call]
        new.__dict__.update(copy.copy(self.__dict__))
        new._batch_shape = torch.Size(batch_shape)
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``(*sample_shape, *batch_shape, *parameter_shape)``.

        Samples that are outside the prior's support every time are put on its border, with a
        ``RuntimeWarning``: the estimator has not learned enough for such an observation.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        dtype = self.posterior.coordinates.mean.dtype
        if not shape.numel():
            return torch.empty(shape, dtype=dtype, device=self._device)
        drawn = self.base.expand(self.batch_shape).sample(sample_shape).to(dtype)
        transform = self.posterior.transform(self.observation)
        parameters = transform(drawn).reshape(-1, *self.event_shape)
        rows = torch.arange(len(parameters), device=parameters.device)
        whose = torch.arange(self._own.numel(), device=rows.device).reshape(self._own)
        whose = whose.expand(batch).flatten()
        for _ in range(_TRIES):
            rows = rows[~self.support.check(parameters[rows])]
            if not len(rows):
                break
            # a solver takes as long for one sample as for hundreds
            redrawn = self._redraw(whose[rows], -(-_AGAIN // len(rows))).to(dtype)
            first = self.support.check(redrawn).int().argmax(0)
            parameters[rows] = redrawn[first, torch.arange(len(rows), device=first.device)]
        else:
            left = f"{len(rows)} of {len(parameters)} samples stay outside the prior's support"
            warnings.warn(f"{left}; they are put on its border", RuntimeWarning, stacklevel=3)
            parameters[rows] = parameters[rows].clamp(
                *(v.to(parameters) for v in bounds(self.prior))
            )
        samples: Tensor = parameters.reshape(shape)
        return samples

    def _redraw(
        self, whose: Tensor, count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples ``(count, k, *event_shape)`` for ``k`` of the observations."""
        estimator = self.base.estimator.select(whose, self._own)
        again = (count,) if estimator.batch_shape else (count, len(whose))
        shape = *again, *estimator.batch_shape
        drawn = self.base.solver.sample(estimator, shape, generator=generator)
        one = self.observation.shape[self.observation.ndim - self.posterior.observation_ndim :]
        parameters: Tensor = self.posterior.transform(self.observation.reshape(-1, *one)[whose])(
            drawn
        )
        return parameters

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*batch)``, in nats; minus infinity outside the support.

        Raises:
            ValueError: If arguments are validated and the value has the wrong shape, is NaN or
                outside the support; if the density of any other value is not a number.
        """
        if self._validate_args:
            self._validate_sample(value)
        inside, transform = (
            self.support.check(value),
            self.posterior.transform(self.observation),
        )
        axes = tuple([...] + [None] * len(self.event_shape))
        inside_value = transform(torch.zeros_like(value))
        # on the border of a half-bounded support events are infinite
        event = transform.inv(torch.where(inside[axes], value, inside_value))
        inside = inside & event.isfinite().flatten(event.ndim - len(self.event_shape)).all(-1)
        value = torch.where(inside[axes], value, inside_value)
        event = transform.inv(value)
        base = self.base.expand(self.batch_shape)
        log_prob = base.log_prob(event) - transform.log_abs_det_jacobian(event, value)
        density: Tensor = (log_prob - self.mass.log()).masked_fill(~inside, -torch.inf)
        return density

    @property
    def mass(self) -> Tensor:
        """The learned distribution's mass inside the support, ``(*batch_shape)``.

        Estimated by samples that are drawn once, until enough are inside (`share_inside`); 1 where
        no parameter has two bounds.
        """
        if self._mass is None:
            bounded = bool(bounds(self.prior)[0].isfinite().any())
            self._mass = self._inside() if bounded else torch.ones(self._own, device=self._device)
        return self._mass.expand(self.batch_shape)

    @torch.no_grad()
    def _inside(self) -> Tensor:
        chance = torch.Generator(self._device).manual_seed(0)

        def inside(whose: Tensor, count: int) -> Tensor:
            held: Tensor = self.support.check(self._redraw(whose, count, chance))
            return held

        mass = share_inside(inside, self._own.numel(), self._device)
        return mass.to(self.posterior.coordinates.mean).reshape(self._own)

    @property
    def _device(self) -> torch.device:
        return self.posterior.coordinates.mean.device

    def map(self, starts: int = 200, steps: int = 60) -> Tensor:
        """The mode, ``(*batch_shape, *parameter_shape)``: gradient ascent from the best samples.

        Args:
            starts: How many samples, two at least.
            steps: Of Adam, each of a twentieth of the samples' deviation at most: by default three
                deviations in all.
        """
        whole("starts", starts, 2)
        whole("steps", steps, 0)
        unchecked = self.expand(self.batch_shape)
        unchecked._validate_args = False
        drawn = self.sample((starts,))
        with torch.no_grad():
            density = unchecked.log_prob(drawn)
        axes = tuple([...] + [None] * len(self.event_shape))
        top, index = density.max(0)
        best = drawn.gather(0, index[axes].expand(drawn.shape[1:]).unsqueeze(0)).squeeze(0)
        unit = drawn.std(0).clamp(min=1e-12)  # of samples that are all the same
        shift = torch.zeros_like(best, requires_grad=True)
        start, optimizer = best, torch.optim.Adam([shift], lr=_ASCENT)
        for _ in range(steps):
            with torch.enable_grad():
                value = start + unit * shift
                density = unchecked.log_prob(value)
                (shift.grad,) = torch.autograd.grad(-density[density.isfinite()].sum(), shift)
            better = density.detach() > top
            top = torch.where(better, density.detach(), top)
            best = torch.where(better[axes], value.detach(), best)
            optimizer.step()
        return best


_ASCENT = 0.05
"""Of the samples' deviation, a step uphill at most: a mode is found to some hundredths of it."""

_BEYOND = 1.2
"""How much farther than all simulations an observation is no longer by chance."""

_TRIES, _AGAIN = 100, 1000
"""How often to draw what is outside the prior's support, and how many at least."""
