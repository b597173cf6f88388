"""Grids that are optimised for a solver and the variances of data."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.planning.independent_gaussian import (
    IndependentGaussian,
    UnitNoise,
    expect_data_alone,
)
from scoresde.sampling import grid as grids
from scoresde.sampling.discontinuities import segments
from scoresde.sdes.sde import SDE
from scoresde.solver import Solver

_ITERATIONS = 60
"""Of L-BFGS. Measured, of four schedules: what can be lowered is lowered by then, or far below what
can be seen, ``W2^2`` of less than ``e^-18``."""

SMOOTH = 0.03
"""Weight of the squared differences between log-lengths of neighbouring steps: neighbours of very
different length are tuned to those, not to the data. Small beside a log-error of order one."""


@attrs.frozen(eq=False)
class OptimisedGrid:
    """The grid with which a solver's samples of Gaussian data are best.

    Times are optimised for the closed-form error of independent components; where rates jump,
    they are kept.

    Args:
        variances: Of the data, along the component axis of the SDE's basis.
        solver: A deterministic solver, the one that will use the grid.

    Raises:
        ValueError: If a variance is negative, or the solver is stochastic.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.planning import OptimisedGrid
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> times = OptimisedGrid(torch.tensor([1.0, 0.1]), DDIM())(sde, 6)
        >>> len(times), float(times[0])
        (7, 1.0)
    """

    variances: Tensor
    solver: Solver

    def __attrs_post_init__(self) -> None:
        good = bool(torch.isfinite(self.variances).all() and (self.variances >= 0).all())
        expect(good, "variances", "finite numbers, at least 0", self.variances)
        expect(self.solver.eta == 0, "solver", "a deterministic one (eta = 0)", self.solver)

    def __call__(self, sde: SDE, steps: int) -> Tensor:
        """A grid: ``(steps + 1,)`` decreasing times.

        Raises:
            ValueError: If states have velocities (`scoresde.PhaseSDE`), or the variances do not fit
                the SDE's basis.
        """
        expect_data_alone(sde)
        sde.basis.blocks.check("variances", self.variances)
        variances = sde.basis.blocks.expand(self.variances.double()).expand(sde.basis.dim)
        first = grids.arctan_log_snr(sde, steps)
        pieces = [(first[a], first[a : b + 1].diff()) for a, b in segments(sde, first)]
        start = torch.cat([(gaps / gaps.sum()).log() for _, gaps in pieces])
        estimator = IndependentGaussian(sde, variances)

        def times(logits: Tensor) -> Tensor:
            shares = logits.split([len(gaps) for _, gaps in pieces])
            moved = [
                begin + torch.cat([begin.new_zeros(1), (part.softmax(0) * gaps.sum()).cumsum(0)])
                for (begin, gaps), part in zip(pieces, shares, strict=True)
            ]
            return torch.cat([moved[0][:1], *(part[1:] for part in moved)])

        def loss(logits: Tensor) -> Tensor:
            solver = attrs.evolve(self.solver, steps=steps, grid=lambda *_: times(logits))
            std = solver.rsample(estimator, generator=UnitNoise(), dtype=torch.float64)
            gap: Tensor = (sde.basis(std) - variances.sqrt()).square().sum() / variances.sum()
            kept: Tensor = (logits - start).diff().square().sum()
            total: Tensor = gap.log() + SMOOTH * kept
            return total

        return times(minimise(loss, start, _ITERATIONS)).detach()


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """The best point on the way of a quasi-Newton method."""
    point, best, lowest = start.clone().requires_grad_(), start, math.inf
    optimizer = torch.optim.LBFGS(
        [point], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        nonlocal best, lowest
        optimizer.zero_grad()
        if not bool(point.isfinite().all()):
            return point.new_tensor(math.inf)  # a line search that has lost its way
        value: Tensor = loss(point)
        if (error := value.item()) < lowest:
            best, lowest = point.detach().clone(), error
        value.backward()
        return value

    optimizer.step(closure)
    return best
