"""A diffusion model as a distribution object, for Pyro and for `torch.distributions`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import Self

from scoresde.checks import expect, floating, instance
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.likelihood import Method, Trace, log_prob
from scoresde.likelihood.finite import error_limit, warn_of_errors
from scoresde.solver import Solver


class ScoreDistribution(TorchDistribution):
    """Samples of a `scoresde.Solver` and densities of the probability flow, as one object.

    The event shape is the data's, the batch shape that of the conditions. Densities are
    differentiable in values, conditions and the estimator's parameters: the model can be a prior
    or a likelihood in Pyro, under NUTS and in SVI, and transforms of `torch.distributions` apply,
    for instance for a bounded support. Samples are differentiable, too. Samples are of the same
    density, up to the solver's steps, only with ``eta = 0``; with noise, only if the score is
    exact. Pyro is told of an estimator's parameters by ``pyro.module``.

    Args:
        estimator: Knows the score and its SDE.
        solver: Draws samples.
        condition: What the estimator is conditioned on, ``(*batch_shape, *condition_shape)``.
            An estimator that holds a batch of conditions itself
            (`scoresde.condition`) needs none.
        condition_ndim: Number of axes of a single condition.
        method: Of densities, see `scoresde.log_prob`.
        trace: Of densities. Random probes are those of ``seed`` at every call: the density is
            one function of the value, as HMC needs it.
        seed: Of the probes.
        validate_args: As everywhere in `torch.distributions`.

    Raises:
        TypeError: If the estimator, the solver or the condition is of another type.
        ValueError: If the condition has too few axes, or there are two.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Haar, ScoreDistribution
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(VP(), Haar((1, 2, 2), levels=1))
        >>> images = ScoreDistribution(Gaussian(sde, torch.zeros(1, 2, 2), torch.eye(4)), DDIM(8))
        >>> images.expand([5]).sample((3,)).shape
        torch.Size([3, 5, 1, 2, 2])
    """

    references = "chen2018 song2021"

    arg_constraints = {}  # noqa: RUF012 (torch's contract)
    has_rsample = True

    def __init__(
        self,
        estimator: ScoreEstimator,
        solver: Solver,
        *,
        condition: Tensor | None = None,
        condition_ndim: int = 1,
        method: Method | None = None,
        trace: Trace | None = None,
        seed: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        expect_estimator(estimator)
        instance("solver", solver, Solver)
        self.estimator, self.solver, self.method, self.trace = estimator, solver, method, trace
        self.condition, self.condition_ndim, self.seed = condition, condition_ndim, seed
        self._warned: list[bool] = []  # shared with what is expanded of it
        batch = estimator.batch_shape
        if condition is not None:
            instance("condition", condition, Tensor)
            lead = condition.ndim - condition_ndim
            wanted = f"at least {condition_ndim} axes, of a single condition"
            expect(lead >= 0, "condition", wanted, tuple(condition.shape))
            expect(not batch, "condition", f"None beside the estimator's own {tuple(batch)}", "one")
            batch = condition.shape[:lead]
        super().__init__(batch, estimator.sde.basis.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same with a larger batch shape."""
        new: Self = self._get_checked_instance(ScoreDistribution, _instance)  # type: ignore[no-untyped-call]
        new.__dict__.update(copy.copy(self.__dict__))
        new._batch_shape = torch.Size(batch_shape)
        if self.condition is not None:
            new.condition = self._conditions(new._batch_shape)
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``(*sample_shape, *batch_shape, *event_shape)``; see `scoresde.Solver.sample`."""
        return self._draw(self.solver.sample, sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """As `sample`, differentiable in the condition and the estimator's parameters."""
        return self._draw(self.solver.rsample, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*batch)``, in nats: batches of the value and of the distribution, broadcast.

        Minus infinity where a value is not finite, or so large that the model's answer is NaN and
        the value's fourth power is not finite: so are diverging Hamiltonian trajectories refused.

        Raises:
            TypeError: If the value is not a floating-point tensor.
            ValueError: If arguments are validated and the value has the wrong shape or is NaN; if
                the density of any other value is not a number.
        """
        floating("value", value)
        if self._validate_args and value.numel():  # torch cannot check what is not there
            self._validate_sample(value)
        lead = value.shape[: value.ndim - len(self.event_shape)]
        batch = torch.broadcast_shapes(lead, self.batch_shape)
        x, condition = value.expand(*batch, *self.event_shape), None
        size = x.abs().flatten(len(batch)).amax(-1)
        there = torch.isfinite(size)
        x = torch.where(there.reshape(*batch, *[1] * len(self.event_shape)), x, 0.0)
        if self.condition is not None:
            x = x.reshape(batch.numel(), *self.event_shape)
            condition = self._rows(batch)
        estimate = log_prob(
            self.estimator,
            x,
            self.method,
            trace=self.trace,
            condition=condition,
            generator=torch.Generator().manual_seed(self.seed),
            checked=False,
        )
        density = estimate.value.reshape(batch)
        lost = there & (density.isnan() | (density == torch.inf))
        # whose squares, and squares of these, a solver cannot hold
        far = size > torch.finfo(size.dtype).max ** 0.25
        wrong, limit = lost & ~far, error_limit(self.event_shape.numel())
        off = there & (estimate.error.reshape(batch) > limit)
        undefined, inexact = torch.stack([wrong.any(), off.any()]).tolist()
        if undefined:
            places = f"none for those at {wrong.nonzero().tolist()[:5]} of {tuple(batch)}"
            expect(False, "log_prob", "a number for every finite value", places)
        if inexact and not self._warned:  # once, not at every step of a chain
            self._warned.append(True)
            warn_of_errors(estimate.error, limit, self.method)
        return density.masked_fill(~there | lost, -torch.inf)

    def _draw(self, draw: Any, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        if self.condition is None:
            x: Tensor = draw(self.estimator, batch)
            return x
        condition = self._rows(batch)
        rows: Tensor = draw(self.estimator, (len(condition),), condition=condition)
        return rows.reshape(shape)

    def _conditions(self, batch: Sequence[int]) -> Tensor:
        """The condition with a larger batch."""
        assert self.condition is not None
        return self.condition.expand(*batch, *self._shape(self.condition))

    def _rows(self, batch: Sequence[int]) -> Tensor:
        """As `_conditions`, with the batch flattened, as networks take it."""
        conditions = self._conditions(batch)
        return conditions.reshape(torch.Size(batch).numel(), *self._shape(conditions))

    def _shape(self, condition: Tensor) -> torch.Size:
        return condition.shape[condition.ndim - self.condition_ndim :]
