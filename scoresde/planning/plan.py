"""Multi-scale plans from data: when to drop what, and where to put the steps.

For data with independent Gaussian components a deterministic solver is a linear map, and the
error of its samples is known in closed form. A plan minimises it: the data are replaced by the
eigenvalues of every band's covariance, times are moved by gradient descent, and steps are added
where they buy most. Coarse stages are cheap, so they get most of them.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.bases import Basis
from scoresde.checks import expect, finite
from scoresde.diagonal import DiagonalSDE
from scoresde.planning.gaussian_bed import Bed, Draft, Spectra
from scoresde.schedules import Schedule
from scoresde.sde import SDE
from scoresde.solver import Solver

_WORTH = 0.002
"""By how much a full-resolution evaluation must lower the logarithm of the error."""


def spectra(basis: Basis, data: Tensor) -> dict[str, Tensor]:
    """Eigenvalues of the covariance of every block of coefficients.

    Args:
        basis: Its blocks are the bands.
        data: Events, ``(N, *event_shape)``; of blocks longer than ``N`` the eigenvalues that
            so many events show.

    Returns:
        ``(size,)`` for every block, not increasing.

    Raises:
        ValueError: If the data are not finite.

    Example:
        >>> import torch
        >>> from scoresde import Haar
        >>> from scoresde.planning import spectra
        >>> bands = spectra(Haar((1, 4, 4), 1), torch.randn(100, 1, 4, 4))
        >>> {name: len(values) for name, values in bands.items()}
        {'a1': 4, 'd1': 12}
    """
    finite("data", data)
    z = basis(data.double())
    found = {}
    for name, block in basis.blocks.slices.items():
        centred = z[:, block] - z[:, block].mean(0)
        values = torch.linalg.svdvals(centred) ** 2 / len(z)
        found[name] = torch.nn.functional.pad(values, (0, centred.shape[1] - len(values)))
    return found


@attrs.frozen(eq=False)
class Plan:
    """A multi-scale SDE and the times at which to sample it.

    Use as ``Solver(steps=sum(plan.steps), grid=plan.grid)`` on an estimator of ``plan.sde``.

    Attributes:
        sde: Drops every block at the start of the stage that it enters.
        times: Decreasing, from ``T`` to ``eps``.
        steps: Steps per stage, coarse first.
        cost: Sum over steps of active over all components: full-resolution evaluations.
        error: Predicted ``W2^2 / trace`` between samples and data.
        handover: Bound on the divergence that the handovers cost, in nats:
            ``sum_k SNR_k(T_k) E|d_k|^2 / 2``.

    Example:
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import equal
        >>> from solvers import DDIM
        >>> made = equal(Haar((1, 4, 4), 1), LogLinear(), steps=4)
        >>> DDIM(sum(made.steps), grid=made.grid).times(made.sde).shape
        torch.Size([9])
    """

    sde: DiagonalSDE
    times: Tensor
    steps: tuple[int, ...]
    cost: float
    error: float
    handover: float

    def grid(self, sde: SDE, steps: int) -> Tensor:
        """The plan's times, as a `scoresde.grid.Grid`."""
        return self.times


def plan(
    basis: Basis,
    schedule: Schedule,
    bands: Spectra,
    solver: Solver,
    *,
    error: float = 0.0,
    cost: float = math.inf,
    evaluations: float = math.inf,
    quantiles: int = 32,
) -> Plan:
    """The cheapest plan found that reaches an error, or the best within a budget.

    Args:
        basis: Its blocks are dropped one by one, the last one first.
        schedule: Read by every band on a clock that stops when the band is dropped.
        bands: What is known of the data, see `spectra`.
        solver: A deterministic solver, whose grid is planned.
        error: Wanted ``W2^2 / trace``.
        cost: Allowed cost, in full-resolution evaluations.
        evaluations: Allowed number of steps in all.
        quantiles: Eigenvalues by which each band is represented.

    Raises:
        ValueError: If neither an error nor a budget is given, or the solver is stochastic, or
            the budget does not allow one step per stage.

    Example:
        >>> import torch
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import plan, spectra
        >>> from solvers import DDIM
        >>> _ = torch.manual_seed(0)
        >>> basis = Haar((1, 4, 4), 1)
        >>> bands = spectra(basis, torch.randn(100, 1, 1, 1) + 0.1 * torch.randn(100, 1, 4, 4))
        >>> made = plan(basis, LogLinear(), bands, DDIM(), evaluations=5)
        >>> sum(made.steps), made.cost < 5
        (5, True)
    """
    expect(
        error > 0 or min(cost, evaluations) < math.inf,
        "error, cost, evaluations",
        "one of them",
        (error, cost, evaluations),
    )
    expect(solver.eta == 0, "solver", "a deterministic one (eta = 0)", solver)
    for name, band in bands.items():
        expect(bool((band >= 0).all()), f"bands[{name!r}]", "variances, at least 0", band)
    expect(list(bands) == list(basis.blocks.sizes), "bands", f"{basis.blocks}", list(bands))
    bed = Bed(basis, schedule, bands, solver, quantiles)
    best = bed.tune(Draft.even([1] * len(bands)))
    expect(bed.cost(best) <= cost, "cost", f"at least {bed.cost(best):.3g}", cost)
    expect(len(bands) <= evaluations, "evaluations", f"at least {len(bands)}", evaluations)
    while best.error > error:
        # where one step more is worth nothing, two may be
        for more in (1, 2):
            grown = [best.grown(k, more) for k in range(len(bands))]
            grown = [d for d in grown if bed.cost(d) <= cost and sum(d.steps) <= evaluations]
            tuned = [bed.tune(draft) for draft in grown]
            gains = [math.log(best.error / d.error) / (bed.cost(d) - bed.cost(best)) for d in tuned]
            if gains and max(gains) > _WORTH:
                break
        else:
            break
        best = tuned[gains.index(max(gains))]
    best = bed.tune(best, iterations=100)
    sde, times = bed.sde(basis, best)
    return Plan(sde, times, best.steps, bed.cost(best), best.error, bed.handover(best))


def equal(basis: Basis, schedule: Schedule, steps: int, scale: Any = 1.0) -> Plan:
    """The paper's plan: ``T_k = k/K``, the same number of steps in every stage.

    Source:
        Batzolis et al. 2022 (arXiv 2207.09786), section 5.

    Args:
        basis: Its ``K`` blocks are dropped one by one.
        schedule: Read by every band on a clock that stops when the band is dropped.
        steps: Steps per stage, equal in time.
        scale: Unit of the noise, along the component axis.

    Example:
        >>> from scoresde import Haar, LogLinear
        >>> from scoresde.planning import equal
        >>> made = equal(Haar((1, 4, 4), 1), LogLinear(), steps=4)
        >>> made.steps, made.cost
        ((4, 4), 5.0)
    """
    count = len(basis.blocks)
    drop = [schedule.T * (count - k) / count for k in range(count)]
    sde = DiagonalSDE(schedule, basis, [schedule.T / t for t in drop], scale, drop)
    edges = [*drop, schedule.eps]
    pieces = [
        torch.linspace(a, b, steps + 1, dtype=torch.float64, device="cpu")[:-1]
        for a, b in itertools.pairwise(edges)
    ]
    times = torch.cat([*pieces, torch.tensor([schedule.eps], dtype=torch.float64, device="cpu")])
    sizes = list(itertools.accumulate(basis.blocks.sizes.values()))
    cost = steps * sum(sizes) / sizes[-1]
    return Plan(sde, times, (steps,) * count, cost, math.nan, math.nan)
