"""The product of posteriors, by weighted particles."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from typing_extensions import Self

from scoresde.checks import instance
from scoresde.conditioning import Composition, Particles
from scoresde.estimator import ScoreEstimator
from scoresde.likelihood.distribution import ScoreDistribution
from scoresde.solver import Solver


class ProductDistribution(ScoreDistribution):
    """The product of posteriors given several observations, in coordinates without any.

    Samples are particles', densities the product of those that single posteriors have by their
    probability flows, normalised by the particles' evidence:

        log p = sum_j log p(x | y_j) + (1 - n) log p(x) - log Z.

    Args:
        composition: Of single posteriors, each of one event ``(m,)``.
        particles: Draw samples.
        prior: Without observations, of parameters.
        transform: From the coordinates to parameters.
        solver: Of the single posteriors' densities.

    Example:
        >>> from scoresde.inference import ProductDistribution
        >>> ProductDistribution.has_rsample
        False
    """

    references = "moral2006 du2023"

    has_rsample = False

    def __init__(
        self,
        composition: Composition,
        particles: Particles,
        prior: Distribution,
        transform: Transform,
        solver: Solver,
    ) -> None:
        instance("particles", particles, Particles)
        super().__init__(composition, solver)
        self.single = ScoreDistribution(cast(ScoreEstimator, composition.posteriors), solver)
        self.solver = particles  # type: ignore[assignment]  # samples as solvers do
        self.composition, self.particles = composition, particles
        self.prior, self.transform = prior, transform
        self._evidence: Tensor | None = None

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same with a larger batch shape."""
        new: Self = self._get_checked_instance(ProductDistribution, _instance)  # type: ignore[no-untyped-call]
        new.__dict__.update(copy.copy(self.__dict__))
        new._batch_shape = torch.Size(batch_shape)
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``(*sample_shape, *batch_shape, *event_shape)``, inside the prior's support."""
        return self._draw(partial(self.particles.sample, inside=self._inside), sample_shape)

    def _inside(self, events: Tensor) -> Tensor:
        support: Any = self.prior.support
        possible: Tensor = support.check(self.transform(events))
        return possible

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """None: particles are drawn again."""
        raise NotImplementedError("ProductDistribution: particles have no derivatives")

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*batch)``, in nats, where the prior's density is not 0."""
        ndim = len(self.event_shape)
        apart = value.unsqueeze(value.ndim - ndim)
        each = self.single.log_prob(apart).sum(-1)
        parameters = self.transform(value)
        known = self.prior.log_prob(parameters)
        known = known + self.transform.log_abs_det_jacobian(value, parameters)
        density: Tensor = each - (self.composition.count - 1) * known - self.log_evidence
        # a prior's density may be none at its very bounds
        return density.masked_fill(known.isinf(), -torch.inf)

    @property
    def log_evidence(self) -> Tensor:
        """The logarithm of the product's integral, ``(*batch_shape)``, by particles of a seed."""
        if self._evidence is None:
            device = next(iter(self.estimator.buffers())).device
            chance = torch.Generator(device).manual_seed(self.seed)
            self._evidence = self.particles.draw(self.composition, _ENOUGH, chance).log_evidence
        return self._evidence.expand(self.batch_shape)


_ENOUGH = 2000
"""Particles by which a product's integral is known to a few percent, beside a prior's bound to
some 15% (eight observations near it)."""
