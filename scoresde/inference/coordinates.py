"""Coordinates of parameters and observations in which a posterior is easy to learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Transform,
)
from torch.nn.functional import pad

from scoresde.bases import Joint
from scoresde.checks import expect, finite, trailing_shape
from scoresde.inference.simulation_moments import (
    item_moments,
    observation_moments,
    parameter_moments,
    whitening,
)
from scoresde.inference.simulations import simulated_pairs
from scoresde.inference.smooth import Smooth
from scoresde.inference.supports import bounds, expect_prior, from_unconstrained
from scoresde.precision import full_precision


class Coordinates(nn.Module):
    """Coordinates of simulated pairs in which a posterior is easy to learn.

    Observations are standardised; with ``ranks`` their normal scores, ``ndtri`` of a number's rank
    among those simulated, come beside them, which long tails do not affect.

    Parameters are the residuals of a linear regression on the observation, in units of their
    standard deviation, so that narrow posteriors are as wide as wide ones. With ``smooth``, a
    regression by any smooth function (`scoresde.inference.smooth.Smooth`) takes its place where it
    leaves next to nothing, as for simulators with hardly any noise; its prediction is one more
    observation. Parameters of half-bounded support are first mapped to the real line
    (``biject_to``: the logarithm of a positive one).

    Parameters between two bounds keep them, at places that depend on the observation: give the
    network a baseline that knows them.

    Coordinates are in the dtype of the parameters, whatever that of observations.

    Args:
        prior: Of parameters, no batch.
        observation_mean: Of observations, ``(*observation_shape,)``.
        observation_std: Of observations; infinite for those that never vary.
        mean: Of parameters on the real line, ``(m,)``.
        slope: Of the regression on standardised observations, ``(n, m)``.
        std: Of what it leaves, ``(m,)``.
        explained: The share of the parameters' variance that it explains, ``(m,)``, below 1.
        sorted_observations: In increasing order, ``(*observation_shape, N)``, for normal scores;
            none if None.
        clip: Where standardised observations are clipped, ``(*observation_shape,)``; nowhere if
            None.
        items: See `fit`.
        whitening: Makes observations of the simulations no longer than 1, ``(n, n)``, or their
            items ``(features,)``, see `relative_distance`; None if not fitted.
        extremes: How far each number was from ``observation_mean`` at most,
            ``(*observation_shape,)``; of sets and series, how many items there were at least,
            ``()``. None if not known.
        smooth: State of a smooth regression, ``smooth.landmarks`` and so on.

    ``state_dict()`` holds all that was fitted, but for the prior and ``items``:
    ``Coordinates(prior, **state)`` makes the same again.

    Example:
        >>> import torch
        >>> from scoresde.inference import Coordinates, simulate
        >>> from torch.distributions import Independent, Uniform
        >>> prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
        >>> _ = torch.manual_seed(0)
        >>> theta, x = simulate(prior, lambda theta: 5 * theta + torch.randn_like(theta), 10_000)
        >>> to = Coordinates.fit(prior, theta, x)
        >>> to.explained.round(decimals=1)  # 25/12 of 25/12 + 1
        tensor([0.7000])
        >>> to.joint_events(theta, x).std(0).round(decimals=2)
        tensor([1., 1.])
    """

    observation_mean: Tensor
    observation_std: Tensor
    mean: Tensor
    slope: Tensor
    std: Tensor
    explained: Tensor
    sorted_observations: Tensor | None
    clip: Tensor
    whitening: Tensor | None
    extremes: Tensor | None

    def __init__(
        self,
        prior: Distribution,
        observation_mean: Tensor,
        observation_std: Tensor,
        mean: Tensor,
        slope: Tensor,
        std: Tensor,
        explained: Tensor,
        sorted_observations: Tensor | None = None,
        clip: Tensor | None = None,
        items: bool = False,
        whitening: Tensor | None = None,
        extremes: Tensor | None = None,
        **smooth: Tensor,
    ) -> None:
        super().__init__()
        expect_prior(prior)
        self.prior, self.items = prior, items
        self.register_buffer("observation_mean", observation_mean)
        self.register_buffer("observation_std", observation_std)
        self.register_buffer("mean", mean)
        self.register_buffer("slope", slope)
        self.register_buffer("std", std)
        self.register_buffer("explained", explained)
        self.register_buffer("sorted_observations", sorted_observations)
        endless = torch.full_like(observation_mean, torch.inf)
        self.register_buffer("clip", endless if clip is None else clip)
        self.register_buffer("whitening", whitening)
        self.register_buffer("extremes", extremes)
        self.smooth = _smooth(smooth)

    @classmethod
    def fit(
        cls,
        prior: Distribution,
        parameters: Tensor,
        observations: Tensor,
        *,
        ranks: bool = False,
        items: bool = False,
        smooth: bool = False,
    ) -> Coordinates:
        """Coordinates fitted to simulations.

        Observed numbers that never vary are left out; where few are outliers, centre and scale are
        those of the bulk, and outliers are clipped. A warning names both.

        Args:
            prior: Of parameters, no batch.
            parameters: ``(N, *parameter_shape)``.
            observations: ``(N, *observation_shape)``.
            ranks: Whether to have normal scores.
            items: Whether an observation is a set or a series, ``(n, features)``: of items that
                are measured together, and of which some may be missing (NaN). Nothing is
                regressed then: that is left to an embedding.
            smooth: Whether to try a smooth regression, which takes seconds.

        Raises:
            ValueError: If numbers are not finite, an observation has as many as there are
                simulations or more, or a parameter is the same in all of them.
        """
        parameters, observations = simulated_pairs(prior, parameters, observations)
        count = len(observations)
        finite("observations", observations.nan_to_num(nan=0.0) if items else observations)
        real = from_unconstrained(prior).inv(parameters).reshape(count, -1)
        finite("parameters", real)
        values = observations if observations.is_floating_point() else observations.double()
        centre, variance = parameter_moments(real)
        if items:
            expect(not ranks, "ranks", "False of sets and series", ranks)
            none = torch.zeros_like(variance).to(real)
            known = *item_moments(values), centre.to(real), none, variance.sqrt().to(real)
            # of its own memory, as files want it
            coordinates = cls(prior, *known, none.clone(), items=True)
            coordinates._measure_items(values)
            return coordinates
        measured = observation_moments(values.reshape(count, -1), ranks)
        mean, scale, clip = (v.reshape(values.shape[1:]).to(values) for v in measured)
        coordinates = cls(
            prior,
            mean,
            scale,
            centre.to(real),
            real.new_zeros(0),
            variance.sqrt().to(real),
            torch.zeros_like(variance).to(real),
            values.movedim(0, -1).sort(-1).values.contiguous() if ranks else None,
            clip,
        )
        coordinates._regress(observations, real.double() - centre, variance, smooth)
        # numbers that never vary may come in fewer digits
        coordinates.extremes = (values - mean).abs().amax(0).maximum(_ROUNDING * mean.abs())
        return coordinates

    def _measure_items(self, values: Tensor) -> None:
        """Keeps how far items of the simulations are, and how few there are."""
        told = self.observation(values)
        farthest = told[..., :-1].abs().amax((0, 1))
        self.whitening = farthest.clamp(min=1e-12).reciprocal()
        self.extremes = told[..., -1].sum(-1).amin().clone()

    def _regress(
        self, observations: Tensor, centred: Tensor, variance: Tensor, smooth: bool
    ) -> None:
        """Keeps what observations say of parameters less their mean, which are in float64."""
        count, like = len(observations), self.mean
        predictors = self._numbers(observations).reshape(count, -1).double()
        wanted = f"more simulations than the {predictors.shape[1]} predictors of an observation"
        expect(count > predictors.shape[1] + 1, "observations", wanted, count)
        self.whitening = whitening(predictors).to(like)
        # gelsd, as numbers in an observation may repeat each other
        solved = torch.linalg.lstsq(predictors.cpu(), centred.cpu(), driver="gelsd")
        slope = solved.solution.to(predictors)
        left = centred - predictors @ slope
        if smooth:
            std = left.std(0).clamp(min=1e-30)
            self.smooth = Smooth.fit(predictors, left / std)
            if self.smooth is not None:
                slope = torch.cat([slope, torch.diag(std)])
                explained, leverage = self.smooth.with_leverage(predictors)
                left = (left - explained * std) / (1 - leverage)
        # a parameter that the observation determines keeps a width: densities are finite
        residual_variance = left.var(0).clamp(min=1e-12 * variance)
        self.slope, self.std = slope.to(like).contiguous(), residual_variance.sqrt().to(like)
        self.explained = (1 - residual_variance / variance).clamp(min=0).to(like)

    @property
    def joint(self) -> Joint:
        """The basis of pairs, with the parts ``"observation"`` and ``"parameter"``."""
        observation = self.observation(self.observation_mean)
        return Joint(observation=tuple(observation.shape), parameter=tuple(self.prior.event_shape))

    @property
    def observation_ndim(self) -> int:
        """Number of axes of one observation."""
        return self.observation_mean.ndim

    def observation(self, x: Tensor) -> Tensor:
        """Observations ``(*batch, *observation_shape)``, standardised.

        With normal scores, of all numbers one after the other: ``(*batch, 2 n)``; with a smooth
        regression, followed by its predictions of ``m`` parameters. Of sets and series,
        ``(*batch, n, features + 1)``: the last number of an item is 1 where all of it is there, and
        0 else. Missing items are appended up to as many as the simulations had.

        Raises:
            ValueError: If their shape is another one, or numbers are not finite; NaN is missing
                in sets and series.
        """
        return self._with_leverage(x)[0]

    def _with_leverage(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`observation`, and leverages on the smooth regression, ``(*batch, m)``: 0 without any."""
        expect(not x.is_complex(), "observation", "real numbers", x.dtype)
        finite("observation", x.masked_fill(x.isnan(), 0) if self.items else x)
        none = torch.zeros_like(self.mean)
        if self.items:
            return self._items(x), none
        numbers = self._numbers(x)
        if self.smooth is None:
            return numbers, none
        batch = x.shape[: x.ndim - self.observation_ndim]
        numbers = numbers.reshape(*batch, numbers.shape[len(batch) :].numel())
        explained, leverage = self.smooth.with_leverage(numbers)
        return torch.cat([numbers, explained.to(numbers)], -1), leverage

    def _numbers(self, x: Tensor) -> Tensor:
        mean, std = self.observation_mean, self.observation_std
        trailing_shape("observation", x, mean.shape)
        standardised: Tensor = (x.to(mean) - mean) / std
        standardised = standardised.clamp(-self.clip, self.clip).to(self.mean.dtype)
        if self.sorted_observations is None:
            return standardised
        batch, count = x.shape[: x.ndim - mean.ndim], self.sorted_observations.shape[-1]
        table = self.sorted_observations.reshape(-1, count)
        values = x.reshape(-1, len(table)).mT.contiguous().to(table)
        smaller, at_most = (torch.searchsorted(table, values, right=r) for r in (False, True))
        # those equal share their ranks
        scores = torch.special.ndtri((smaller + at_most + 1).double() / (2 * (count + 1)))
        # those that never varied have no ranks, whatever their last digits
        ranks = scores.mT.to(standardised).masked_fill(std.isinf().flatten(), 0.0)
        both = torch.cat([standardised.reshape(-1, len(table)), ranks], 1)
        return both.reshape(*batch, -1)

    def _items(self, x: Tensor) -> Tensor:
        most, features = self.observation_mean.shape
        fits = x.ndim > 1 and x.shape[-1] == features and x.shape[-2] <= most
        expect(fits, "observation", f"shape (*batch, n, {features}), n <= {most}", tuple(x.shape))
        there = x.isfinite().all(-1, keepdim=True)
        mean, std = self.observation_mean[:1], self.observation_std[:1]
        values = (x.to(mean) - mean) / std
        told = torch.cat([values.where(there, 0.0), there.to(values)], -1)
        return pad(told, (0, 0, 0, most - x.shape[-2]))

    @full_precision
    def relative_distance(self, x: Tensor) -> Tensor:
        """How far observations are from the middle of the simulations, ``(*batch)``.

        Mahalanobis distance, or that of a number by itself, in units of the farthest simulation:
        beyond 1 nothing like it was simulated. Of sets and series that of any number of any item,
        infinite without items where no simulation was. 0 if coordinates are not fitted.
        """
        batch = x.shape[: x.ndim - self.observation_ndim]
        if self.whitening is None:
            return self.mean.new_zeros(batch)
        if self.items:
            told = self.observation(x)
            beyond: Tensor = (told[..., :-1].abs() * self.whitening).amax((-2, -1))
            none = told[..., -1].sum(-1) == 0
            unlike = self.extremes is not None and bool(self.extremes > 0)
            return beyond.masked_fill(none, torch.inf) if unlike else beyond
        seen = self._numbers(x)
        seen = seen.reshape(*batch, seen.shape[len(batch) :].numel())  # of no observations, too
        distance: Tensor = (seen @ self.whitening.to(seen)).norm(dim=-1)
        if self.extremes is None:
            return distance
        # outliers are clipped above, and what never varied is left out
        apart = (x.to(self.extremes) - self.observation_mean).abs() / self.extremes
        apart = apart.nan_to_num(nan=0.0, posinf=torch.inf).to(distance)
        both = [distance.unsqueeze(-1), apart.reshape(*batch, self.extremes.numel())]
        return torch.cat(both, -1).amax(-1)

    def joint_events(self, parameters: Tensor, observations: Tensor) -> Tensor:
        """Pairs in these coordinates as joint events ``(N, n + m)``: what an estimator learns.

        For the simulations that a smooth regression was fitted to: residuals are those of a
        regression without the pair itself.
        """
        seen, leverage = self._with_leverage(observations)
        explained = self._explained(seen, observations.shape[:1])
        event = self._around(self.mean + explained).inv(parameters)
        event = event / (1 - leverage).expand(explained.shape).reshape(event.shape).to(event)
        return self.joint.join(observation=seen, parameter=event)

    @full_precision
    def transform(self, observation: Tensor) -> Transform:
        """From these coordinates to parameters, given observations ``(*batch, *shape)``."""
        return self._around(self.mean + self.explanation(observation))

    @property
    def without_observation(self) -> Transform:
        """From coordinates in which nothing is explained, the same for all observations."""
        return self._around(self.mean)

    @full_precision
    def explanation(self, observation: Tensor) -> Tensor:
        """The regression's prediction of parameters less their mean, ``(*batch, m)``."""
        batch = observation.shape[: observation.ndim - self.observation_ndim]
        return self._explained(self.observation(observation), batch)

    @full_precision
    def _explained(self, seen: Tensor, batch: torch.Size) -> Tensor:
        """`explanation`, by standardised observations."""
        if self.items:
            return self.mean.new_zeros(*batch, len(self.mean))
        return seen.reshape(*batch, -1) @ self.slope

    def _around(self, centre: Tensor) -> Transform:
        shape = self.prior.event_shape
        centre = centre.reshape(*centre.shape[:-1], *shape)
        affine = AffineTransform(centre, self.std.reshape(shape), event_dim=len(shape))
        return ComposeTransform([affine, from_unconstrained(self.prior)])

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of parameters less their mean, in units of ``std``, ``(m,)``.

        Infinite where there are none.
        """
        low, high = (
            (v.expand(self.prior.event_shape).flatten().to(self.mean) - self.mean) / self.std
            for v in bounds(self.prior)
        )
        return low, high


def _smooth(state: dict[str, Tensor]) -> Smooth | None:
    kept = {name.removeprefix("smooth."): value for name, value in state.items()}
    return Smooth(**kept) if kept else None


_ROUNDING = 1e-6
"""Of a number: a few roundings of float32."""
